"""The table of metrics during training: what each is, what it needs, and how it is computed from per-example values.

They are the metrics of the end on a part of the forget and of the retain set; what is their own is defined here: a
utility without generated answers, one number for choosing a checkpoint, and a tug of war without test images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from stable_forgetting.data.examples import ExampleSet, ImageExample, LanguageExample
from stable_forgetting.errors import DataError
from stable_forgetting.evaluation.classification import tug_of_war
from stable_forgetting.evaluation.columns import column
from stable_forgetting.evaluation.metric import MetricInputs, Need
from stable_forgetting.evaluation.metrics import METRICS
from stable_forgetting.evaluation.metrics_tofu import UTILITY_PARTS
from stable_forgetting.evaluation.scores import TaskName
from stable_forgetting.evaluation.tofu import model_utility
from stable_forgetting.evaluation.values import Definitions, SetValues

PASSING_P = 0.05
"""Forget quality from which on a difference to the retain model is not significant: TOFU's limit."""

Columns = Mapping[str, frozenset[str]]
"""Names of the columns that can be had, by set."""

VALIDATED_SETS = ("forget", "retain")
"""Sets of which validations measure a part."""

_UTILITY_COLUMNS = tuple(name for name in UTILITY_PARTS["retain"] if name != "rouge_l_recall")
ALTERNATIVES = frozenset({"truth_ratio", "truth_ratio_score"})
"""Columns that need a paraphrased answer and wrong ones beside every right one."""

_WORDS = {
    "correct": "the predicted class of each image",
    **dict.fromkeys(ALTERNATIVES, "a paraphrased answer and wrong (perturbed) ones beside every right one"),
}
"""What a column is made from, where a set may be without it."""

_LANGUAGE: tuple[TaskName, ...] = ("language",)
_IMAGE: tuple[TaskName, ...] = ("image",)


@dataclass(frozen=True, eq=False)
class ValidationInputs:
    """What a validation metric is computed from.

    Args:
        values: The model in training and the retain model, on the same examples.
        columns: What can be had of every example of the whole sets.
        base_utility: Retain utility of the base model on the same examples; None if it is not known.
    """

    values: MetricInputs
    columns: Columns
    base_utility: float | None

    def end(self, name: str) -> float:
        """A metric of the end."""
        value = METRICS[name].function(self.values).value
        assert value is not None
        return value


@dataclass(frozen=True)
class ValidationMetric:
    """A metric during training.

    Args:
        greater_is_better: Whether more is better. On the forget set "better" means forgotten further; a checkpoint
            chosen by such a metric alone is the one that went furthest, not the one closest to the retain model.
        needs: What has to be there; else it is not available.
        function: Computes it.
        tasks: Kinds of models that have it.
    """

    greater_is_better: bool
    needs: tuple[Need, ...]
    function: Callable[[ValidationInputs], float]
    tasks: tuple[TaskName, ...]


def retain_utility(values: MetricInputs, columns: Columns) -> float:
    """Model utility of the retain set without ROUGE: harmonic mean of those of its parts that can be had.

    Range 0 to 1, higher is better. The parts are probability and truth ratio score, or probability alone where the
    retain set has no alternative answers. Answers are not generated in validations.

    Args:
        values: Values of the model.
        columns: What can be had of every example of the whole retain set.
    """
    names = [name for name in _UTILITY_COLUMNS if name in columns["retain"]]
    return float(model_utility(np.stack([values.column("retain", name) for name in names], axis=1)))


def _forget_quality_and_utility(inputs: ValidationInputs) -> float:
    """P / 0.1 if the forget quality p is at most 0.05, else (1 + min(1, U / U of the base model)) / 2, U the utility.

    Range 0 to 1, higher is better; up to 0.5 for those that do not pass, from 0.5 on for those that do. A p above 0.05
    says only that the test cannot tell the two models apart, and if they are alike every p is equally likely: more of
    it is no merit. So among the checkpoints that pass, the utility decides, and among those that do not, p. A utility
    above the base model's is no merit either: the base model was taught everything.
    """
    assert inputs.base_utility
    p = inputs.end("forget_quality")
    if p <= PASSING_P:
        return p / PASSING_P / 2
    return (1 + min(1.0, retain_utility(inputs.values, inputs.columns) / inputs.base_utility)) / 2


def _tow_train(inputs: ValidationInputs) -> float:
    return float(tug_of_war(*(inputs.values.pairs(name, "correct") for name in VALIDATED_SETS)))


def _of_the_end(name: str, *, greater_is_better: bool, tasks: tuple[TaskName, ...]) -> ValidationMetric:
    return ValidationMetric(greater_is_better, METRICS[name].needs, lambda inputs: inputs.end(name), tasks)


_OF_THE_END = {
    "forget_nll": (True, (*_LANGUAGE, *_IMAGE)),
    "forget_probability": (False, (*_LANGUAGE, *_IMAGE)),
    "forget_accuracy": (False, _IMAGE),
    "retain_nll": (False, (*_LANGUAGE, *_IMAGE)),
    "retain_probability": (True, (*_LANGUAGE, *_IMAGE)),
    "retain_accuracy": (True, _IMAGE),
    "forget_nll_ks": (True, (*_LANGUAGE, *_IMAGE)),
    "forget_quality": (True, _LANGUAGE),
    "retain_truth_ratio": (True, _LANGUAGE),
}
"""Metrics of the end that are measured in validations too: whether more is better, and the tasks."""

VALIDATION_METRICS: dict[str, ValidationMetric] = {
    **{
        name: _of_the_end(name, greater_is_better=greater_is_better, tasks=tasks)
        for name, (greater_is_better, tasks) in _OF_THE_END.items()
    },
    "retain_utility": ValidationMetric(
        True,
        (Need("retain", "probability"),),
        lambda inputs: retain_utility(inputs.values, inputs.columns),
        _LANGUAGE,
    ),
    "forget_quality_and_utility": ValidationMetric(
        True,
        (*METRICS["forget_quality"].needs, Need("retain", "probability")),
        _forget_quality_and_utility,
        _LANGUAGE,
    ),
    "tow_train": ValidationMetric(
        True,
        tuple(Need(name, "correct", model) for model in ("own", "retain") for name in VALIDATED_SETS),
        _tow_train,
        _IMAGE,
    ),
}
"""Every metric by name."""

VALIDATION_NAMES: dict[TaskName, tuple[str, ...]] = {
    "language": tuple(name for name, metric in VALIDATION_METRICS.items() if "language" in metric.tasks),
    "image": tuple(name for name, metric in VALIDATION_METRICS.items() if "image" in metric.tasks),
}
"""Validation metrics of each task."""


def reads_alternatives(name: str) -> bool:
    """Whether a metric is made from paraphrased and wrong answers, where examples have them."""
    needs = VALIDATION_METRICS[name].needs
    return name == "retain_utility" or any(need.column in ALTERNATIVES for need in needs)


def columns_of_examples(example_set: ExampleSet[ImageExample] | ExampleSet[LanguageExample]) -> frozenset[str]:
    """Columns of the table that every model gives of a set."""
    found = frozenset({"nll", "probability"})
    if not isinstance(example_set[0], LanguageExample):
        return found | {"correct"}
    examples = [example for example in example_set if isinstance(example, LanguageExample)]
    has_all = all(example.paraphrased is not None and example.perturbed for example in examples)
    return found | ALTERNATIVES if has_all else found


def columns_of_values(values: SetValues) -> frozenset[str]:
    """Columns of the table that can be made from what is known of a set."""
    return frozenset(name for name in ("nll", "probability", *_WORDS) if _can_be_made(values, name))


def _can_be_made(values: SetValues, name: str) -> bool:
    try:
        column(values, name, Definitions())
    except DataError:
        return False
    return True


def missing(name: str, own: Columns, retain: Columns) -> str | None:
    """What a validation metric needs and cannot have, or None if it is available.

    Args:
        name: The metric.
        own: Columns of the sets.
        retain: Columns of the retain model's values; empty if there is none.
    """
    for need in VALIDATION_METRICS[name].needs:
        if need.model == "retain" and not retain:
            return "it needs a retain model"
        known = own if need.model == "own" else retain
        if need.column not in known.get(need.set_name, ()):
            what = _WORDS.get(need.column, "the likelihood of each answer")
            where = "" if need.model == "own" else " of the retain model"
            return f"it needs {what} in the {need.set_name} set{where}"
    return None
