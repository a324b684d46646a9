"""A finished run with other settings that decide on its measuring alone: measured again, not trained again."""

import json
import logging
import shutil

import pytest

from stable_forgetting.errors import ModelError, RunDirectoryError
from stable_forgetting.records import read_record
from stable_forgetting.runs import measuring, run
from stable_forgetting.training.trainer import UnlearnTrainer

TRAINING = {"merge": True, "training__evaluate_every": 4}


@pytest.fixture
def there(finished, tmp_path):
    """A copy of the finished run, which has validations, and its record."""
    record, run_dir = finished
    return record, shutil.copytree(run_dir, tmp_path / "run")


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr(UnlearnTrainer, "train", refuse("trained again"))


def refuse(what, kind=AssertionError):
    def called(*_, **__):
        raise kind(what)

    return called


def values(record):
    """What follows from training and measuring, without times and places."""
    return record.evaluations, record.verdicts, record.examples, record.history, record.kept_step, record.models


def content(run_dir):
    return {path: path.read_bytes() for path in sorted(run_dir.rglob("*")) if path.is_file()}


def test_it_has_the_values_of_a_run_with_these_settings(problem, there, tmp_path, monkeypatch, caplog):
    record, run_dir = there
    changes = {"evaluation__max_new_tokens": 2, "evaluation__num_resamples": 200, "evaluation__num_examples": 1}
    config = problem.config(**TRAINING, **changes)
    whole = run(config, tmp_path / "whole")
    weights = (run_dir / "adapter" / "adapter_model.safetensors").read_bytes()
    monkeypatch.setattr(UnlearnTrainer, "train", refuse("trained again"))
    with caplog.at_level(logging.WARNING):
        again = run(config, run_dir, given={"name": "new"}, notes=["No test images."], resume=True)
    assert values(again) == values(whole)
    assert again.evaluation("unlearned") != record.evaluation("unlearned")
    assert (run_dir / "adapter" / "adapter_model.safetensors").read_bytes() == weights
    assert "measured again, not trained again (evaluation.max_new_tokens: 6 there, 2 now; " in caplog.text
    assert (again.config, again.given, again.notes) == (whole.config, {"name": "new"}, ["No test images."])
    names = sorted(path.name for path in (run_dir / "per_example").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "whole" / "per_example").iterdir())
    for name in names:
        assert (run_dir / "per_example" / name).read_text() == (tmp_path / "whole" / "per_example" / name).read_text()
    assert read_record(run_dir) == again
    assert run(config, run_dir, resume=True) == again, "and is finished now"


@pytest.mark.usefixtures("no_training")
def test_what_is_of_the_training_stays(problem, there):
    record, run_dir = there
    again = run(problem.config(**TRAINING, evaluation__num_resamples=200), run_dir, resume=True)
    of_training = ("created", "environment", "history", "kept_step", "certificate", "adapter", "peak_memory_bytes")
    for name in of_training:
        assert getattr(again, name) == getattr(record, name), name
    assert again.timings["unlearning"] == record.timings["unlearning"]
    assert record.measured_again is None
    assert again.measured_again.created >= record.created
    assert again.measured_again.versions == record.environment.versions


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(("name", "value", "is_measured"), [("num_resamples", 110, False), ("max_new_tokens", 2, True)])
def test_values_that_would_be_the_same_are_not_measured(problem, there, monkeypatch, name, value, is_measured):
    _, run_dir = there
    calls = []
    score = measuring.score
    monkeypatch.setattr(measuring, "score", lambda *given, **named: calls.append(1) or score(*given, **named))
    run(problem.config(**TRAINING, **{f"evaluation__{name}": value}), run_dir, resume=True)
    assert len(calls) == is_measured


@pytest.mark.usefixtures("no_training")
def test_back_to_the_first_settings(problem, there):
    record, run_dir = there
    other = run(problem.config(**TRAINING, evaluation__generate=False), run_dir, resume=True)
    assert other.evaluation("unlearned").metric("forget_rouge_l_recall").value is None
    assert values(run(problem.config(**TRAINING), run_dir, resume=True)) == values(record)


@pytest.mark.usefixtures("no_training")
def test_nothing_of_the_training_but_the_adapter_is_needed(problem, there):
    record, run_dir = there
    shutil.rmtree(run_dir / "checkpoints")
    shutil.rmtree(run_dir / "merged")
    again = run(problem.config(**TRAINING, evaluation__generate=False), run_dir, resume=True)
    assert again.history == record.history
    assert again.evaluation("unlearned").metric("forget_nll") == record.evaluation("unlearned").metric("forget_nll")


@pytest.mark.usefixtures("no_training")
def test_a_run_that_went_back_from_what_is_not_finite(problem, there):
    """Its training would go on from the last checkpoint, and might end otherwise."""
    record, run_dir = there
    stopped = record.model_copy(update={"status": "stopped", "stopped": "the loss became nan", "kept_step": 4})
    (run_dir / "record.json").write_text(stopped.model_dump_json())
    again = run(problem.config(**TRAINING, evaluation__generate=False), run_dir, resume=True)
    assert (again.status, again.stopped, again.kept_step) == ("stopped", "the loss became nan", 4)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("interrupted_in", ["score", "evaluate_scores"])
def test_until_it_is_measured_all_is_as_it_was(problem, there, monkeypatch, interrupted_in):
    record, run_dir = there
    before = content(run_dir)
    shorter = problem.config(**TRAINING, evaluation__max_new_tokens=2)
    with monkeypatch.context() as patch:
        patch.setattr(measuring, interrupted_in, refuse("out of memory", RuntimeError))
        for _ in range(2):
            with pytest.raises(RuntimeError, match="out of memory"):
                run(shorter, run_dir, resume=True)
    now = content(run_dir)
    assert {path: now[path] for path in before} == before
    assert run(problem.config(**TRAINING), run_dir, resume=True) == record
    again = run(shorter, run_dir, resume=True)
    assert values(again) != values(record)
    assert read_record(run_dir) == again


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("killed_in", ["write_scores", "write_record"])
@pytest.mark.parametrize("resumed_with", ["first", "second"])
def test_killed_while_all_is_replaced(problem, there, tmp_path, monkeypatch, killed_in, resumed_with):
    """Values of one of the settings are beside the record of the other, and neither is taken for finished."""
    record, run_dir = there
    settings = {"first": problem.config(**TRAINING), "second": problem.config(**TRAINING, evaluation__generate=False)}
    whole = run(settings["second"], shutil.copytree(run_dir, tmp_path / "whole"), resume=True)
    with monkeypatch.context() as patch:
        patch.setattr(measuring, killed_in, refuse("killed", KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(settings["second"], run_dir, resume=True)
    again = run(settings[resumed_with], run_dir, resume=True)
    assert values(again) == values({"first": record, "second": whole}[resumed_with])
    answers = json.loads((run_dir / "per_example" / "unlearned.json").read_text())["sets"]["forget"]["answers"]
    assert (answers is None) is (resumed_with == "second")


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("killed_in", ["write_scores", "write_record"])
def test_killed_on_the_way_there_and_on_the_way_back(problem, there, monkeypatch, killed_in):
    """Settings and record are the first ones again, and the values are still those of the second ones."""
    record, run_dir = there
    first, second = problem.config(**TRAINING), problem.config(**TRAINING, evaluation__generate=False)
    for config, place in ((second, "write_record"), (first, killed_in)):
        with monkeypatch.context() as patch:
            patch.setattr(measuring, place, refuse("killed", KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                run(config, run_dir, resume=True)
    third = run(problem.config(**TRAINING, evaluation__num_examples=1), run_dir, resume=True)
    assert third.evaluations == record.evaluations
    assert values(run(first, run_dir, resume=True)) == values(record)


def test_a_base_model_that_was_made_anew(problem, there, monkeypatch):
    """As the record has it, where the run's own note of its base model is missing."""
    record, run_dir = there
    (run_dir / "base_model.json").unlink()
    monkeypatch.setattr(measuring, "model_sha256", lambda _: "another")
    with pytest.raises(RunDirectoryError, match="was begun on a base model with other weights"):
        run(problem.config(**TRAINING, evaluation__generate=False), run_dir, resume=True)
    assert read_record(run_dir) == record


def test_an_adapter_that_is_gone(problem, there):
    record, run_dir = there
    shutil.rmtree(run_dir / "adapter")
    with pytest.raises(ModelError, match="adapter"):
        run(problem.config(**TRAINING, evaluation__generate=False), run_dir, resume=True)
    assert read_record(run_dir) == record


@pytest.mark.parametrize(
    "changes",
    [{"retain_limit": 5}, {"validation_size": 3}, {"seed": 1}, {"num_examples": 1, "generate": False, "seed": 1}],
)
def test_what_decides_on_the_training_is_refused(problem, there, changes):
    """Validations are made of the measured retain examples, so their number is for such a run a setting of training."""
    _, run_dir = there
    before = content(run_dir)
    config = problem.config(**TRAINING, **{f"evaluation__{name}": value for name, value in changes.items()})
    name = next(name for name in changes if name not in ("num_examples", "generate"))
    with pytest.raises(RunDirectoryError, match=rf"other settings \(evaluation.{name}: [^;]*\)"):
        run(config, run_dir, resume=True)
    assert content(run_dir) == before


def test_without_validations_the_limit_is_one_of_measuring(problem, tmp_path, monkeypatch):
    run(problem.config(), tmp_path / "run")
    monkeypatch.setattr(UnlearnTrainer, "train", refuse("trained again"))
    again = run(problem.config(evaluation__retain_limit=5), tmp_path / "run", resume=True)
    assert again.evaluation("unlearned").metric("retain_nll").count == 5


@pytest.mark.parametrize("interrupted_in", ["train", "save_adapter", "with_metrics"])
def test_a_run_that_was_not_finished_goes_on_with_the_new_settings(problem, tmp_path, monkeypatch, interrupted_in):
    """What was measured with the old ones is not taken for theirs."""
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(f"stable_forgetting.runs.pipeline.{interrupted_in}", refuse("killed", KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(problem.config(), run_dir)
    config = problem.config(evaluation__generate=False)
    found = run(config, run_dir, resume=True)
    assert found.measured_again is None
    assert found.evaluation("unlearned").metric("forget_rouge_l_recall").value is None
    assert values(found) == values(run(config, tmp_path / "whole"))


@pytest.mark.parametrize(("interrupted_in", "is_refused"), [("train", False), ("save_adapter", True)])
def test_batches_of_another_size_in_the_middle_of_a_training(
    problem, tmp_path, monkeypatch, interrupted_in, is_refused
):
    """Targets are rounded by them; the tiny training has checkpoints, and no adapter is saved yet."""
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(f"stable_forgetting.runs.pipeline.{interrupted_in}", refuse("killed", KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(problem.config(), run_dir)
    other = problem.config(evaluation__batch_size=3)
    if is_refused:
        with pytest.raises(RunDirectoryError, match="batch_size: 16 there, 3 now"):
            run(other, run_dir, resume=True)
    else:
        assert run(other, run_dir, resume=True).status == "finished"
