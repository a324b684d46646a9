"""Stop rules: when each ends a training, what is said of it, and that a killed training ends at the same step."""

import pytest
import torch
from peft import PeftModel, get_peft_model

from stable_forgetting.adapters import BoundedLoraConfig
from stable_forgetting.config import StopRule, TrainingConfig
from stable_forgetting.errors import ConfigError
from stable_forgetting.models.tasks import LanguageTask
from stable_forgetting.objectives import build_objective
from stable_forgetting.runs.validation import wrong_metrics
from stable_forgetting.training import Sets, TrainingOutcome, Validation, train
from stable_forgetting.training.stop_rules import Measured, Stop
from tiny_models import FakeTokenizer, language_set, tiny_language_model

VALUES = [0.001, 0.2, 0.6, 0.4, 0.7, 0.5, 0.3, 0.9]
"""Above 0.05 from step 2 on; the best so far in the steps 3, 5 and 8."""


def stops_at(rule: Stop, values: list[float]) -> int | None:
    """The first validation that ends the training, from 1."""
    found = [Measured(10 * number, value) for number, value in enumerate(values, start=1)]
    return next((number for number in range(1, len(found) + 1) if rule.reason(found[:number])), None)


@pytest.mark.parametrize(
    ("limits", "values", "expected"),
    [
        ({"above": 0.5}, VALUES, 3),
        ({"below": 0.0005}, VALUES, None),
        ({"below": 0.35}, [0.9, 0.4, 0.3, 0.2], 3),
        ({"peak": 0.05}, VALUES, 4),
        ({"peak": 0.05, "patience": 2}, VALUES, 7),
        ({"peak": 0.65}, VALUES, 6),
        ({"peak": 0.95}, VALUES, None),
        ({"peak": 0.05}, [0.01, 0.02, 0.01, 0.001], None),  # falls, but never passed
        ({"peak": 0.05}, [0.1, 0.3, 0.3, 0.3], None),  # as good as the best is no fall
        ({"peak": 0.05, "patience": 2}, [0.3, 0.2, 0.3, 0.2, 0.1], 5),  # the count begins anew with the best
        ({"peak": 0.3}, [0.3, 0.2], None),  # passed means greater
    ],
)
def test_when_a_rule_ends_the_training(limits, values, expected):
    assert stops_at(Stop("forget_quality", **limits), values) == expected


def test_the_sentence_names_the_values():
    rule, found = Stop("forget_quality", peak=0.05), [Measured(20, 0.01), Measured(40, 0.31), Measured(60, 0.12)]
    assert rule.reason(found) == (
        "stop rule: forget_quality was above 0.05 and falls again (0.31 in step 40, 0.12 in step 60)"
    )


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({}, "give one of 'above', 'below' and 'peak'"),
        ({"above": 1, "peak": 1}, "give one of"),
        ({"above": 1, "patience": 2}, "'patience' belongs to 'peak'"),
        ({"peak": 0.05, "patience": 0}, "patience"),
    ],
)
def test_settings_that_say_nothing_are_refused(given, problem):
    with pytest.raises(ConfigError, match=problem):
        StopRule(metric="forget_quality", **given)


def train_on(tmp_path, values: list[float], *, less_is_better: bool = False, **rule) -> TrainingOutcome:
    remaining = iter(values)
    return train(
        adapted_model(),
        LanguageTask(FakeTokenizer()),
        build_objective("gradient_difference"),
        Sets(language_set("forget", 6, 1), language_set("retain", 10, 2)),
        settings=TrainingConfig(
            steps=4, learning_rate=1e-2, evaluate_every=1, save_every=1, stop=[StopRule(metric="x", **rule)]
        ),
        output_dir=tmp_path,
        validation=Validation(lambda _: {"x": next(remaining)}, {"x": not less_is_better}),
    )


def test_the_peak_of_what_should_fall_is_refused(tmp_path):
    def training(**rule):
        return TrainingConfig(evaluate_every=1, stop=[StopRule(metric="retain_nll", **rule)])

    with pytest.raises(ConfigError, match=r"'peak' for x, but of that less is better.*Use 'above' or 'below'"):
        train_on(tmp_path, [], less_is_better=True, peak=0.5)
    assert wrong_metrics(training(peak=1), "language") == [
        "training.stop has 'peak' for retain_nll, but of that less is better: falling is what it should do. Use "
        "'above' or 'below', or another metric."
    ]
    assert wrong_metrics(training(above=1), "language") == []


@pytest.mark.parametrize("rule", [{"above": 5}, {"below": -5}, {"peak": 5}])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_metric_that_is_not_finite_goes_back_to_the_step_before(tmp_path, rule, value):
    outcome = train_on(tmp_path, [1, 2, value], **rule)
    assert outcome.num_steps == 2
    assert outcome.stopped.startswith(f"the validation metric 'x' became {value} in step 3; the adapter of step 2")


def test_of_two_rules_that_apply_at_once_the_first_is_named_also_after_a_resume(tmp_path):
    names = ("x", "y")

    def call(**changes):
        return train(
            adapted_model(),
            LanguageTask(FakeTokenizer()),
            build_objective("gradient_difference"),
            Sets(language_set("forget", 6, 1), language_set("retain", 10, 2)),
            settings=TrainingConfig(
                steps=2, evaluate_every=1, save_every=1, stop=[StopRule(metric=name, above=0) for name in names]
            ),
            output_dir=tmp_path,
            validation=Validation(lambda _: dict.fromkeys(names, 1.0), dict.fromkeys(names, True)),
            **changes,
        )

    assert call().stopped == call(resume=True).stopped == "stop rule: x above 0 (1 in step 1)"


class Killed(BaseException):
    """In place of a kill: nothing in the package catches it."""


def adapted_model() -> PeftModel:
    return get_peft_model(tiny_language_model(), BoundedLoraConfig(init_seed=0))


def run(folder, model: PeftModel, first: int = 1, kill_at: int | None = None, **changes) -> TrainingOutcome:
    """A training of at most 8 steps, measured after each of them from the given one on."""
    steps = iter(range(first, 9))

    def measure(_) -> dict[str, float]:
        step = next(steps)
        if step == kill_at:
            raise Killed
        return {"forget_quality": VALUES[step - 1]}

    rule = StopRule(metric="forget_quality", peak=0.05, patience=2)
    return train(
        model,
        LanguageTask(FakeTokenizer()),
        build_objective("gradient_difference"),
        Sets(language_set("forget", 6, 1), language_set("retain", 10, 2)),
        settings=TrainingConfig(
            steps=8, learning_rate=1e-2, evaluate_every=1, save_every=1, best_metric="forget_quality", stop=[rule]
        ),
        output_dir=folder,
        validation=Validation(measure, {"forget_quality": True}),
        **changes,
    )


def adapter(model: PeftModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items() if "bounded_lora" in name}


@pytest.mark.parametrize("kill_at", [2, 6, 7])
def test_a_killed_training_stops_at_the_same_step_with_the_same_best_weights(tmp_path, kill_at):
    whole, killed, resumed = adapted_model(), adapted_model(), adapted_model()
    outcome = run(tmp_path / "whole", whole)
    assert outcome.num_steps == 5
    assert [step.step for step in outcome.history] == list(range(1, 8))
    assert outcome.stopped == (
        "stop rule: forget_quality was above 0.05 and falls again (0.7 in step 5, 0.3 in step 7)"
    )
    with pytest.raises(Killed):
        run(tmp_path / "killed", killed, kill_at=kill_at)
    again = run(tmp_path / "killed", resumed, first=kill_at, resume=True)
    assert again == outcome
    assert all(torch.equal(value, adapter(resumed)[name]) for name, value in adapter(whole).items())
    once_more = run(tmp_path / "killed", adapted_model(), first=9, resume=True)
    assert once_more == outcome
