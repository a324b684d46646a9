"""Records: the same after a round trip, whole or not at all, and nothing made up."""

import json
import math
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

import stable_forgetting.records as records_module
from report.sample_records import ENVIRONMENT
from stable_forgetting.errors import RunDirectoryError
from stable_forgetting.records import (
    FORMAT,
    MetricValue,
    ModelEvaluation,
    RunRecord,
    StepRecord,
    read_record,
    write_record,
    write_text,
)
from stable_forgetting.training.history import step_records


def record(**changes) -> RunRecord:
    base = {
        "name": "run",
        "task": "language",
        "status": "finished",
        "created": "2026-01-02T03:04:05+00:00",
        "config": {"training": {"steps": 3}},
        "environment": ENVIRONMENT,
        "history": [StepRecord(step=1, epoch=0.5, loss=-3.25, validation={"forget_nll": 2.5})],
        "evaluations": [
            ModelEvaluation(
                role="unlearned",
                source="x",
                metrics=[
                    MetricValue(name="forget_nll", value=0.1 + 0.2, count=4, low=0.25, high=0.5, direction="retain"),
                    MetricValue(name="test_perplexity", reason="needs test texts", direction="lower"),
                ],
            )
        ],
    }
    return RunRecord(**base | changes)


def test_a_record_round_trips_to_the_last_bit(tmp_path):
    written = record(error="ümlaut \u2028 and ✓", timings={"unlearning": math.pi})
    assert write_record(written, tmp_path) == tmp_path / "record.json"
    assert read_record(tmp_path) == written
    assert read_record(tmp_path / "record.json") == written
    assert read_record(tmp_path).evaluation("unlearned").metric("forget_nll").value == 0.1 + 0.2
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_infinities_and_nan_survive(tmp_path):
    """A perplexity may be infinite; a stand-in would be a made-up number."""
    metrics = [
        MetricValue(name=name, value=value, direction="lower")
        for name, value in (("a", math.inf), ("b", -math.inf), ("c", math.nan))
    ]
    write_record(record(evaluations=[ModelEvaluation(role="base", source="x", metrics=metrics)]), tmp_path)
    found = [metric.value for metric in read_record(tmp_path).evaluation("base").metrics]
    assert found[:2] == [math.inf, -math.inf]
    assert math.isnan(found[2])


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1.5, 1.5), (0.0, 0.0), (None, None), (math.inf, None), (-math.inf, None), (math.nan, None)],
)
def test_the_history_holds_finite_numbers_only(value, expected):
    (step,) = step_records([{"step": 1, "epoch": 0.5, "loss": value}])
    assert step.loss == expected


def test_what_is_missing_is_none():
    empty = record(evaluations=[])
    assert empty.evaluation("base") is None
    assert record().evaluation("unlearned").metric("no_such_metric") is None
    missing = record().evaluation("unlearned").metric("test_perplexity")
    assert missing.value is None
    assert missing.reason


def test_unknown_fields_are_refused():
    with pytest.raises(ValidationError, match="extra"):
        record(accuracy=1.0)
    with pytest.raises(ValidationError):
        record(status="fine")


def test_a_record_without_classes_is_read(tmp_path):
    """As the first records are."""
    data = json.loads(record().model_dump_json())
    assert data.pop("class_names") == {}
    assert data.pop("class_accuracies") == []
    (tmp_path / "record.json").write_text(json.dumps(data))
    assert read_record(tmp_path) == record()


def test_numbers_of_classes_stay_numbers(tmp_path):
    named = record(class_names={3: "cat"})
    write_record(named, tmp_path)
    assert read_record(tmp_path).class_names == {3: "cat"}


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_written_files_can_be_read_by_whom_the_umask_lets(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        write_text(tmp_path / "file.txt", "new")
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert (tmp_path / "file.txt").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_failure_at_any_moment_leaves_the_old_file(tmp_path, monkeypatch, moment):
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def stop(*_, **__):
        raise KeyboardInterrupt

    if moment == "write":
        monkeypatch.setattr(records_module.os, "fdopen", _broken_fdopen)
    elif moment == "fsync":
        monkeypatch.setattr(records_module.os, "fsync", stop)
    else:
        monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    write_text(path, "new")
    assert path.read_text() == "new"


_fdopen = os.fdopen


def _broken_fdopen(handle, *given, **options):
    file = _fdopen(handle, *given, **options)
    file.write("ne")
    file.close()
    raise KeyboardInterrupt


def test_folders_are_made_and_text_is_utf8(tmp_path):
    write_text(tmp_path / "a" / "b" / "file.txt", "größer ≤ ∞")
    assert (tmp_path / "a" / "b" / "file.txt").read_bytes().decode("utf-8") == "größer ≤ ∞"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "is damaged"),
        ('{"format": 1', "is damaged"),
        ("[1, 2]", "format None"),
        (json.dumps({"format": FORMAT + 1}), f"format {FORMAT + 1}; this version reads {FORMAT}"),
        (json.dumps({"format": FORMAT}), "damaged at 'name'"),
        (json.dumps({"format": str(FORMAT)}), f"format '{FORMAT}'"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path, content, expected):
    (tmp_path / "record.json").write_text(content)
    with pytest.raises(RunDirectoryError, match=expected):
        read_record(tmp_path)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "record.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunDirectoryError, match="is damaged"):
        read_record(tmp_path)


def test_a_folder_of_runs_is_no_run_and_names_them(tmp_path):
    for name in ("second", "first"):
        write_record(record(), tmp_path / name)
    with pytest.raises(RunDirectoryError, match=rf"holds 2 runs, such as 'first'\. Give these: {tmp_path}/\*/"):
        read_record(tmp_path)


def test_a_missing_record_is_named(tmp_path):
    with pytest.raises(RunDirectoryError, match=r"No record at '.*nothing/record\.json'"):
        read_record(tmp_path / "nothing")
