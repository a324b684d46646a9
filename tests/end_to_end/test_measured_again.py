"""A run that is there with settings that decide on its measuring alone: measured again, not trained again."""

import logging
import shutil

import pytest

from stable_forgetting.errors import RunDirectoryError
from stable_forgetting.records import read_record
from stable_forgetting.runs import run
from stable_forgetting.training.trainer import UnlearnTrainer


@pytest.fixture
def there(finished, tmp_path):
    """A copy of the finished run, which has validations, and its record."""
    record, run_dir = finished
    return record, shutil.copytree(run_dir, tmp_path / "run")


@pytest.fixture
def no_training(monkeypatch):
    def train(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(UnlearnTrainer, "train", train)


def interrupt(*_, **__):
    raise KeyboardInterrupt


def settings(problem, **changes):
    return problem.config(merge=True, training__evaluate_every=4, **changes)


def values(record):
    return record.evaluations, record.verdicts, record.examples, record.history, record.kept_step, record.models


def test_it_has_the_values_of_a_run_with_these_settings(problem, there, tmp_path, monkeypatch, caplog):
    record, run_dir = there
    changes = {"evaluation__max_new_tokens": 2, "evaluation__num_resamples": 200, "evaluation__num_examples": 1}
    config = settings(problem, **changes)
    whole = run(config, tmp_path / "whole")
    weights = (run_dir / "adapter" / "adapter_model.safetensors").read_bytes()
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(UnlearnTrainer, "train", None)
        again = run(config, run_dir, resume=True)
    assert values(again) == values(whole)
    assert again.evaluation("unlearned") != record.evaluation("unlearned")
    assert (run_dir / "adapter" / "adapter_model.safetensors").read_bytes() == weights
    assert again.peak_memory_bytes == record.peak_memory_bytes
    assert again.timings["unlearning"] == record.timings["unlearning"]
    assert read_record(run_dir) == again
    assert "evaluation.max_new_tokens: 6 there, 2 now" in caplog.text
    assert run(config, run_dir, resume=True) == again


def test_back_to_the_first_settings(problem, there, no_training):
    record, run_dir = there
    other = run(settings(problem, evaluation__generate=False), run_dir, resume=True)
    assert other.evaluation("unlearned").metric("forget_rouge_l_recall").value is None
    assert values(run(settings(problem), run_dir, resume=True)) == values(record)


@pytest.mark.usefixtures("no_training")
def test_one_that_was_interrupted_is_not_taken_for_finished(problem, there, monkeypatch):
    """Neither with the new settings, whose values are not there, nor with the old ones, whose values are gone."""
    record, run_dir = there
    shorter = settings(problem, evaluation__max_new_tokens=2)
    with monkeypatch.context() as patch:
        patch.setattr("stable_forgetting.runs.pipeline.score", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(shorter, run_dir, resume=True)
    assert read_record(run_dir) == record
    first = run(settings(problem), run_dir, resume=True)
    assert first != record, "measured again"
    assert values(first) == values(record)
    assert values(run(shorter, run_dir, resume=True)) != values(record)


def test_what_decides_on_the_training_is_refused(problem, there):
    """Validations are made of the measured retain examples, so their number is for such a run a setting of training."""
    record, run_dir = there
    for changes in (
        {"evaluation__retain_limit": 5},
        {"evaluation__validation_size": 3},
        {"evaluation__seed": 1},
        {"evaluation__generate": False, "training__steps": 9},
    ):
        with pytest.raises(RunDirectoryError, match="other settings"):
            run(settings(problem, **changes), run_dir, resume=True)
    assert read_record(run_dir) == record


def test_without_validations_the_limit_is_one_of_measuring(problem, tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    run(problem.config(), run_dir)
    monkeypatch.setattr(UnlearnTrainer, "train", None)
    again = run(problem.config(evaluation__retain_limit=5), run_dir, resume=True)
    assert again.evaluation("unlearned").metric("retain_nll").count == 5


def test_a_run_whose_training_was_not_over_goes_on(problem, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("stable_forgetting.runs.pipeline.train", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(problem.config(), tmp_path / "run")
    config = problem.config(evaluation__generate=False)
    assert values(run(config, tmp_path / "run", resume=True)) == values(run(config, tmp_path / "whole"))
