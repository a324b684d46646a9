"""The seconds of a training: those of its updates, over all resumes, whatever its validations took."""

import json
from types import SimpleNamespace

import pytest
from peft import get_peft_model

from stable_forgetting.adapters import BoundedLoraConfig
from stable_forgetting.config import TrainingConfig
from stable_forgetting.models.tasks import LanguageTask
from stable_forgetting.objectives import build_objective
from stable_forgetting.training import Sets, TrainingOutcome, Validation, callbacks, train
from tiny_models import FakeTokenizer, language_set, tiny_language_model

STEP, VALIDATION = 10.0, 1000.0
"""Seconds on a clock that stands still but for them."""


class Killed(BaseException):
    """In place of a kill: nothing in the package catches it."""


@pytest.fixture
def clock(monkeypatch):
    found = SimpleNamespace(now=500.0)
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(perf_counter=lambda: found.now))
    return found


def run(folder, clock, *, kill_at: int | None = None, resume: bool = False) -> TrainingOutcome:
    """Four updates, each of them validated and saved; perhaps killed in a validation."""
    task, validations = LanguageTask(FakeTokenizer()), iter(range(1, 5))
    predict = task.predict

    def slow_predict(model, batch):
        clock.now += STEP
        return predict(model, batch)

    def measure(_) -> dict[str, float]:
        clock.now += VALIDATION
        if next(validations) == kill_at:
            raise Killed
        return {"forget_nll": 1.0}

    task.predict = slow_predict
    return train(
        get_peft_model(tiny_language_model(), BoundedLoraConfig(init_seed=0)),
        task,
        build_objective("gradient_difference"),
        Sets(language_set("forget", 6, 1), language_set("retain", 10, 2)),
        settings=TrainingConfig(steps=4, evaluate_every=1, save_every=1),
        output_dir=folder,
        validation=Validation(measure, {"forget_nll": True}),
        resume=resume,
    )


def test_validations_are_not_counted(tmp_path, clock):
    assert run(tmp_path, clock).seconds == 4 * STEP


def test_updates_before_a_kill_are_counted_once(tmp_path, clock):
    with pytest.raises(Killed):
        run(tmp_path, clock, kill_at=3)
    clock.now = 7.0
    assert run(tmp_path, clock, resume=True).seconds == 4 * STEP
    assert run(tmp_path, clock, resume=True).seconds == 4 * STEP  # finished earlier


def test_a_time_that_is_known_in_part_is_not_said(tmp_path, clock):
    with pytest.raises(Killed):
        run(tmp_path, clock, kill_at=3)
    path = tmp_path / "checkpoint-2" / "trainer_state.json"
    state = json.loads(path.read_text())
    for entry in state["log_history"]:
        entry.pop("training_seconds", None)
    path.write_text(json.dumps(state))
    assert run(tmp_path, clock, resume=True).seconds is None
