import json
from dataclasses import replace

import pytest

from data_paths import shared_data
from sample_scores import make_run_values, make_scores
from stable_forgetting.evaluation.open_unlearning import read_log
from stable_forgetting.records import RunRecord, write_record
from stable_forgetting.runs.environment import environment
from stable_forgetting.runs.retain_log import log_sha256


def record_of(config):
    return RunRecord(
        name="a",
        task="language",
        status="finished",
        created="2026-01-01",
        config=config,
        environment=environment(),
    )


@pytest.fixture
def run_dir(tmp_path):
    return make_run_values(tmp_path / "run")


def test_a_published_log_as_table_and_as_json(forget):
    folder = shared_data("tofu_logs")
    log, retain = (folder / f"Llama-3.2-1B-Instruct_{name}.json.gz" for name in ("full_evals_forget01", "retain99"))
    shown = forget("score", "tofu", "--log", log, "--retain-log", retain)
    assert shown.code == 0
    assert "log10 p -2.170" in shown.out
    assert "mia_min_k_auc: not available" in shown.out
    found = forget("score", "tofu", "--log", log, "--retain-log", retain, "--json", "--compat", "open-unlearning")
    metrics = {metric["name"]: metric for metric in json.loads(found.out)["metrics"]}
    assert metrics["forget_quality"]["value"] == pytest.approx(0.006760732303569208, rel=1e-9)
    assert metrics["model_utility"]["low"] < metrics["model_utility"]["value"] < metrics["model_utility"]["high"]
    assert metrics["mia_min_k_auc"]["value"] == pytest.approx(1.0)


def test_an_exported_run_gives_the_numbers_of_the_run(forget, run_dir, tmp_path):
    assert forget("export", run_dir, "--format", "open-unlearning", "--out", tmp_path / "own").code == 0
    assert forget("export", run_dir, "--model", "retain", "--out", tmp_path / "retain").code == 0
    logs = [tmp_path / name / "TOFU_EVAL.json" for name in ("own", "retain")]
    summary = json.loads((tmp_path / "own" / "TOFU_SUMMARY.json").read_text())
    options = ("--json", "--compat", "open-unlearning")
    of_run = json.loads(forget("score", "tofu", "--log", run_dir, *options).out)["metrics"]
    of_log = json.loads(forget("score", "tofu", "--log", logs[0], "--retain-log", logs[1], *options).out)["metrics"]
    again = {metric["name"]: metric for metric in of_log if metric["value"] is not None}
    first = {metric["name"]: metric for metric in of_run if metric["name"] in again}
    assert first == again
    assert len(again) > 20
    assert summary["forget_quality"] == again["forget_quality"]["value"]
    assert summary["privleak"] == again["privacy_leakage"]["value"]


def test_a_run_with_a_retain_log_is_compared_with_that_log(forget, run_dir, tmp_path, monkeypatch):
    before = json.loads(forget("score", "tofu", "--log", run_dir, "--json").out)["metrics"]
    log = run_dir / "per_example" / "retain.json"
    used = log.rename(tmp_path / "retain.json")
    write_record(record_of({"retain_log": str(used)}), run_dir)
    assert json.loads(forget("score", "tofu", "--log", run_dir, "--json").out)["metrics"] == before
    assert forget("export", run_dir, "--out", tmp_path / "own").code == 0
    assert {"forget_quality", "privleak"} <= json.loads((tmp_path / "own" / "TOFU_SUMMARY.json").read_text()).keys()
    monkeypatch.setenv("HOME", str(tmp_path))
    write_record(record_of({"retain_log": "~/retain.json"}), run_dir)
    assert json.loads(forget("score", "tofu", "--log", run_dir, "--json").out)["metrics"] == before
    found = json.loads(forget("score", "tofu", "--log", run_dir, "--json").out)
    assert found["retain_log"] == str(used)
    for known, message in ((log_sha256(used), ""), ("another", "has changed since")):
        (run_dir / "inputs.json").write_text(json.dumps({"retain log": known}))
        ended = forget("score", "tofu", "--log", run_dir, "--json")
        assert (ended.code, message in ended.err) == (2 if message else 0, True)
    moved = used.rename(tmp_path / "moved.json")
    gone = forget("export", run_dir, "--out", tmp_path / "own")
    assert (gone.code, f"there is no file '{used}'" in gone.err) == (2, True)
    assert forget("export", run_dir, "--out", tmp_path / "own", "--retain-log", moved).code == 0
    write_record(record_of({}), run_dir)
    assert "Left out: forget_quality" in forget("export", run_dir, "--out", tmp_path / "own").out


def test_a_run_is_scored_by_the_protocol_that_it_was_measured_with(forget, run_dir):
    write_record(record_of({"evaluation": {"compat": "open-unlearning"}}), run_dir)
    scored, asked = (
        json.loads(forget("score", "tofu", "--log", run_dir, "--json", *more).out)
        for more in ((), ("--compat", "open-unlearning"))
    )
    assert (scored["compat"], scored["metrics"]) == ("open-unlearning", asked["metrics"])


def test_a_run_is_compared_with_its_base_model_where_it_left_values_of_it(forget, run_dir):
    def utility_kept():
        found = json.loads(forget("score", "tofu", "--log", run_dir, "--json").out)
        return [
            next(metric for metric in found[whose] if metric["name"] == "model_utility_kept")
            for whose in ("metrics", "retain_metrics")
        ]

    assert ["base model's per-example values" in metric["reason"] for metric in utility_kept()] == [True, True]
    base = make_scores("language", "base", seed=2, loss=0.1)
    (run_dir / "per_example" / "base.json").write_text(json.dumps(base.to_json()))
    assert all(metric["value"] > 0 for metric in utility_kept())


def test_a_retain_log_for_the_log_of_the_retain_model_itself_is_refused(forget, run_dir, tmp_path):
    out = tmp_path / "own"
    done = forget("export", run_dir, "--model", "retain", "--out", out, "--retain-log", tmp_path / "none.json")
    assert (done.code, "--retain-log is what a model is compared with" in done.err) == (2, True)
    assert not out.exists()


def test_files_that_cannot_be_scored(forget, run_dir, tmp_path):
    for arguments, message in (
        (("--log", tmp_path / "none.json"), "There is no file"),
        (("--log", tmp_path), "has no values of its unlearned model"),
        (("--log", run_dir / "per_example" / "unlearned.json", "--retain-log", __file__), "is not JSON"),
    ):
        done = forget("score", "tofu", *arguments)
        assert done.code == 2
        assert message in done.err
        assert "Traceback" not in done.err


def test_logs_of_different_sizes(forget, run_dir, tmp_path):
    other = make_run_values(tmp_path / "other", count=5)
    done = forget("score", "tofu", "--log", run_dir, "--retain-log", other)
    assert done.code == 2
    assert "different forget examples" in done.err


def test_the_role_is_what_the_log_is_taken_for(run_dir):
    values = read_log(run_dir / "per_example" / "retain.json", "unlearned")
    assert values.role == "unlearned"
    assert replace(values, role="retain").sets is values.sets
