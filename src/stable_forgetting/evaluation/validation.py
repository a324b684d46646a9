"""Measuring a model in training on a part of the forget set and of the retain set.

Test images, real authors and world facts are not looked at: no checkpoint is chosen by what they say at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from stable_forgetting.data.examples import ExampleSet, LanguageExample
from stable_forgetting.data.splits import subset, subset_positions
from stable_forgetting.errors import NotFiniteError
from stable_forgetting.evaluation.alternatives import score_answers
from stable_forgetting.evaluation.likelihood import LikelihoodScores, score_examples
from stable_forgetting.evaluation.metric import MetricInputs
from stable_forgetting.evaluation.metrics_validation import (
    VALIDATED_SETS,
    VALIDATION_METRICS,
    VALIDATION_NAMES,
    Columns,
    ValidationInputs,
    columns_of_examples,
    columns_of_values,
    missing,
    reads_alternatives,
    retain_utility,
)
from stable_forgetting.evaluation.scores import ModelScores, SetScores, TaskName
from stable_forgetting.evaluation.suite import check_same_examples, described
from stable_forgetting.evaluation.values import Definitions, SetValues, values_of
from stable_forgetting.models.tasks import LanguageTask, Task


@dataclass(frozen=True, eq=False)
class ValidationData:
    """What a model in training is measured on, and what other models gave for the same examples.

    Args:
        parts: Some forget and some retain examples, by set.
        names: The metrics that can be had.
        columns: What can be had of every example of the whole sets.
        retain: The retain model's values of the parts; empty without one.
        base_utility: The base model's retain utility; None if its values are not known.
    """

    parts: Mapping[str, ExampleSet[Any]]
    names: tuple[str, ...]
    columns: Columns
    retain: Mapping[str, SetValues]
    base_utility: float | None


def validation_data(
    sets: Mapping[str, ExampleSet[Any]],
    *,
    size: int,
    seed: int,
    base: Mapping[str, SetValues] | None = None,
    retain: Mapping[str, SetValues] | None = None,
) -> ValidationData:
    """Draw the examples that validations measure.

    Args:
        sets: The forget set and the retain set as they are measured at the end.
        size: Largest number of examples of each.
        seed: Of the draw.
        base: The base model's values of the whole sets; None if they are not known.
        retain: The retain model's; None without one.

    Raises:
        DataError: The retain model was measured on other examples.
    """
    references = retain or {}
    check_same_examples({name: described(sets[name]) for name in VALIDATED_SETS}, references)
    columns = {name: columns_of_examples(sets[name]) for name in VALIDATED_SETS}
    of_retain = {name: columns_of_values(references[name]) for name in VALIDATED_SETS if name in references}
    positions = {name: subset_positions(len(sets[name]), size, seed) for name in VALIDATED_SETS}
    base_utility = None
    if base is not None:
        base_utility = retain_utility(_inputs({"retain": base["retain"].rows(positions["retain"])}, {}), columns)
    kind: TaskName = "image" if "correct" in columns["forget"] else "language"
    names = [name for name in VALIDATION_NAMES[kind] if missing(name, columns, of_retain) is None]
    return ValidationData(
        parts={name: subset(sets[name], size, seed) for name in VALIDATED_SETS},
        names=tuple(name for name in names if base_utility or name != "forget_quality_and_utility"),
        columns=columns,
        retain={name: references[name].rows(positions[name]) for name in of_retain},
        base_utility=base_utility,
    )


def without_alternatives(data: ValidationData) -> ValidationData:
    """The same without paraphrased and wrong answers, most of the work where there are any, and what is made from them.

    Where there are none nothing is left out.
    """
    if not any(isinstance(example, LanguageExample) and example.alternatives for example in _examples(data)):
        return data
    parts = {
        name: replace(part, examples=[replace(example, paraphrased=None, perturbed=()) for example in part])
        for name, part in data.parts.items()
    }
    return replace(
        data,
        parts=parts,
        names=tuple(name for name in data.names if not reads_alternatives(name)),
        columns={name: columns_of_examples(part) for name, part in parts.items()},
    )


def _examples(data: ValidationData) -> Iterator[Any]:
    return (example for part in data.parts.values() for example in part)


def validation_metrics(model: nn.Module, task: Task, data: ValidationData, batch_size: int) -> dict[str, float]:
    """Every metric that can be had, on the parts of both sets; language models also read the alternative answers.

    Args:
        model: The model in training; left in the mode it was in.
        task: Its task.
        data: What is measured, and what it is compared with.
        batch_size: Answers per forward pass.

    Returns:
        By the names in `data.names`.

    Raises:
        NotFiniteError: A likelihood is infinite or not a number.
    """
    scores = {name: _score(model, task, part, batch_size) for name, part in data.parts.items()}
    own = values_of(ModelScores(task.name, "unlearned", "in training", scores)).sets
    inputs = ValidationInputs(_inputs(own, data.retain), data.columns, data.base_utility)
    return {name: VALIDATION_METRICS[name].function(inputs) for name in data.names}


def _score(model: nn.Module, task: Task, part: ExampleSet[Any], batch_size: int) -> SetScores:
    if not isinstance(task, LanguageTask):
        likelihood = score_examples(model, task, part, batch_size=batch_size)
        _check_finite(likelihood, part.name)
        return SetScores(part.sha256, likelihood)
    found = score_answers(model, task, part, batch_size=batch_size)
    for answers in (found.likelihood, found.paraphrased, found.perturbed):
        if answers is not None:
            _check_finite(answers, part.name)
    return SetScores(
        part.sha256,
        found.likelihood,
        paraphrased=found.paraphrased,
        perturbed=found.perturbed,
        num_perturbed=found.num_perturbed,
    )


def _check_finite(scores: LikelihoodScores, set_name: str) -> None:
    bad = scores.not_finite
    if bad:
        raise NotFiniteError(
            f"The likelihood of {len(bad)} of {len(scores)} {set_name} examples is not finite (first: {bad[0]}). "
            "Lower training.learning_rate or adapter.scale."
        )


def _inputs(own: Mapping[str, SetValues], retain: Mapping[str, SetValues]) -> MetricInputs:
    return MetricInputs(own=own, retain=retain, num_resamples=0, seed=0, definitions=Definitions())
