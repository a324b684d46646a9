"""`forget bench tofu`, the log of its run, and that log as the reference of another run: all on real questions."""

import json
from pathlib import Path

import pytest
import yaml

from data_paths import shared_data
from stable_forgetting.cli import commands
from stable_forgetting.records import read_record

EXPERIMENTS = Path(__file__).parents[2] / "experiments" / "tofu"
SMALL = (
    "training.steps=2", "training.save_every=2", "evaluation.max_new_tokens=4",
    "evaluation.num_resamples=100", "evaluation.batch_size=8", "adapter.rank=2",
)  # fmt: skip
NAMES = (
    "forget01_perturbed", "retain99", "retain_perturbed", "holdout01", "holdout10",
    "real_authors_perturbed", "world_facts_perturbed",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """The first four rows of each file; of holdout10 as many as leave four for the targets."""
    source = shared_data("tofu")
    for name in NAMES:
        rows = (source / f"{name}.json").read_text(encoding="utf-8").splitlines()
        rows = rows[: 204 if name == "holdout10" else 4]
        (tmp_path / f"{name}.json").write_text("\n".join(rows))
    return tmp_path


def bench(forget, folder, out, *more, changed=("model.finetune.epochs=1",)):
    changes = [part for change in (*SMALL, *changed) for part in ("--set", change)]
    model = ("--model", shared_data("models/stories260K"), "--data", folder, "--split", "forget01", "--out", out)
    return forget("bench", "tofu", *model, *changes, *more)


def metrics_of(record, role):
    evaluation = next(found for found in record.evaluations if found.role == role)
    return {metric.name: metric.value for metric in evaluation.metrics}


def test_the_benchmark_from_the_model_to_the_table_and_on_from_its_log(forget, folder, tmp_path):
    ended = bench(forget, folder, "runs", "--objectives", "gradient_difference,npo", "--bounds", "sine")
    assert ended.code == 0, ended.err
    run_dir = tmp_path.cwd() / "runs" / "npo-sine-seed0"
    record = read_record(run_dir)
    own = metrics_of(record, "unlearned")
    assert {"forget_quality", "model_utility", "mia_min_k_auc", "privacy_leakage"} <= set(own)
    assert own["forget_quality"] is not None
    assert {entry.name: entry.count for entry in record.sets}["real_authors"] == 4

    exported = forget("export", run_dir, "--model", "retain", "--out", "log")
    assert exported.code == 0, exported.err
    model = tmp_path.cwd() / "base"
    assert forget("merge", run_dir, "--out", model).code == 0
    log = tmp_path.cwd() / "log" / "TOFU_EVAL.json"
    again = bench(forget, folder, "again", "--bounds", "sine", "--retain-log", log, "--model", model, changed=())
    assert again.code == 0, again.err
    second = read_record(tmp_path.cwd() / "again" / "gradient_difference-sine-seed0")
    logged, measured = metrics_of(second, "retain"), metrics_of(record, "retain")
    for name in ("forget_truth_ratio", "retain_probability", "world_facts_truth_ratio", "model_utility"):
        assert logged[name] == pytest.approx(measured[name], abs=1e-9), name
    assert metrics_of(second, "unlearned")["forget_quality"] is not None

    config = tmp_path / "again.yaml"
    config.write_text(yaml.safe_dump(second.config))
    by_log = forget("eval", config, "--out", "by_log.json")
    assert by_log.code == 0, by_log.err
    evaluation = json.loads((tmp_path.cwd() / "by_log.json").read_text())
    found = {metric["name"]: metric["value"] for metric in evaluation["metrics"]}
    assert found["forget_quality"] == pytest.approx(metrics_of(second, "base")["forget_quality"])


def test_a_log_that_is_none_is_refused_before_anything_is_trained(forget, folder, tmp_path):
    wrong = tmp_path / "TOFU_EVAL.json"
    wrong.write_text(json.dumps({"forget": 1}))
    ended = bench(forget, folder, "runs", "--retain-log", wrong, changed=())
    assert ended.code == 2
    assert wrong.name in ended.err
    assert not (tmp_path.cwd() / "runs" / "gradient_difference-sine-seed0").exists()


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--seeds", "one", "whole numbers"),
        ("--split", "forget02", "forget02"),
        ("--bounds", "sinus", "sine"),
        ("--objectives", ",", "objectives = ',': names nothing"),
    ],
)
def test_what_is_not_allowed_is_said(forget, folder, option, value, said):
    ended = bench(forget, folder, "runs", option, value)
    assert ended.code == 2
    assert said in ended.err


@pytest.mark.parametrize(
    ("given", "split", "out"),
    [
        ([], "tofu-20", "tofu-tofu-20"),
        (["--split", "tofu-20-validation"], "tofu-20-validation", "tofu-tofu-20-tofu-20-validation"),
    ],
)
def test_an_experiment_on_another_split_has_a_directory_of_its_own(forget, monkeypatch, given, split, out):
    asked = []
    monkeypatch.setattr(commands, "run_benchmark", lambda options, directory: asked.append((options.split, directory)))
    ended = forget("bench", "run", EXPERIMENTS / "tofu-20.yaml", *given)
    assert ended.code == 0, ended.err
    assert asked == [(split, Path("runs") / out)]


@pytest.mark.parametrize(
    ("experiment", "said"),
    [("tofu/tofu-20", "split 'forget02'"), ("class_deletion/learning-rates", "Unknown setting 'split'")],
)
def test_a_split_that_there_is_not_is_refused(forget, experiment, said):
    ended = forget("bench", "run", EXPERIMENTS.parent / f"{experiment}.yaml", "--split", "forget02")
    assert ended.code == 2
    assert said in ended.err
