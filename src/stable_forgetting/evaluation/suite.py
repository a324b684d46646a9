"""From per-example values to the metrics of a model, and to the gap to the retain model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from stable_forgetting.data.examples import ExampleSet, LanguageExample
from stable_forgetting.errors import DataError
from stable_forgetting.evaluation.metric import Metric, MetricInputs, Need
from stable_forgetting.evaluation.metrics import METRICS
from stable_forgetting.evaluation.scores import ModelScores
from stable_forgetting.evaluation.values import Definitions, ModelValues, SetValues, values_of
from stable_forgetting.records import MetricValue, ModelEvaluation, ModelRole

_ADVICE = {
    "forget": "needs a forget set; give data.forget",
    "retain": "needs a retain set; give data.retain",
    "holdout": "needs a holdout set; give data.holdout",
    "test": "needs test texts; give data.test",
    "forgotten_before": "needs what earlier requests deleted; give data.forgotten_before",
    "real_authors": "needs the questions about real authors; give data.real_authors",
    "world_facts": "needs the questions about the world; give data.world_facts",
    "forget_test": "needs test images of what is forgotten; give data.test",
    "retain_test": "needs test images of what is kept; give data.test",
}

_MODEL_ADVICE = {
    "retain": "needs the retain model's per-example values; give retain_model or retain_log",
    "base": "needs the base model's per-example values, as `forget run` has them",
}


def evaluate_scores(
    scores: ModelScores | ModelValues,
    retain_scores: ModelScores | ModelValues | None,
    *,
    num_resamples: int,
    seed: int,
    definitions: Definitions | None = None,
    base_scores: ModelScores | ModelValues | None = None,
) -> ModelEvaluation:
    """All metrics of one model; one whose needs are not met has no value but the reason.

    Args:
        scores: Per-example values of the model, measured here or read from a log.
        retain_scores: Those of the retain model, which may be `scores` itself; None if there is no retain model.
        num_resamples: Bootstrap resamples behind each interval.
        seed: Of the bootstrap.
        definitions: Choices between published definitions.
        base_scores: Values of the base model, which may be `scores` itself; None if they are not known.

    Raises:
        DataError: The models were measured on different examples.
    """
    own = _values(scores)
    retain = own if own.role == "retain" else None if retain_scores is None else _values(retain_scores)
    base = own if own.role == "base" else None if base_scores is None else _values(base_scores)
    inputs = MetricInputs(
        own=own.sets,
        retain={} if retain is None else retain.sets,
        num_resamples=num_resamples,
        seed=seed,
        definitions=definitions or Definitions(),
        base={} if base is None else base.sets,
    )
    check_same_examples(inputs.own, inputs.retain)
    check_same_examples(inputs.own, inputs.base, whose="base")
    metrics = [_evaluate(metric, inputs, own) for metric in METRICS.values() if _is_listed(metric, own)]
    return ModelEvaluation(role=own.role, source=own.source, metrics=metrics)


def _values(scores: ModelScores | ModelValues) -> ModelValues:
    return values_of(scores) if isinstance(scores, ModelScores) else scores


def _is_listed(metric: Metric, values: ModelValues) -> bool:
    has_part = not metric.listed_with or bool(values.parts.intersection(metric.listed_with))
    return values.task in metric.tasks and has_part


def _evaluate(metric: Metric, inputs: MetricInputs, values: ModelValues) -> MetricValue:
    reason = _missing(metric, inputs, values)
    if reason is not None:
        return MetricValue(name=metric.name, reason=reason, direction=metric.direction)
    found = metric.function(inputs)
    low, high = found.interval or (None, None)
    return MetricValue(
        name=metric.name,
        value=found.value,
        reason=found.reason,
        count=found.count,
        low=low,
        high=high,
        direction=metric.direction,
        details=dict(found.details),
    )


def _missing(metric: Metric, inputs: MetricInputs, values: ModelValues) -> str | None:
    """Why the metric cannot be computed, or None if it can."""
    if metric.compares and values.role == "retain":
        return "it is the reference"
    if metric.starts_from_base and values.role == "base":
        return "it is the model that the change is measured from"
    several = len({need.set_name for need in metric.needs}) > 1
    for need in metric.needs:
        if need.model != "own" and not inputs.sets(need.model):
            return _MODEL_ADVICE[need.model]
        reason = _unmet(need, inputs, values.role if need.model == "own" else need.model)
        if reason is not None:
            return f"{reason} ({need.set_name} set)" if several and need.set_name not in reason else reason
    return None


def _unmet(need: Need, inputs: MetricInputs, owner: str) -> str | None:
    found = inputs.sets(need.model).get(need.set_name)
    if found is None:
        is_own = need.model == "own"
        if need.set_name == "forget_test" and "retain_test" in inputs.sets(need.model):
            return "needs test images of what is forgotten, but the classes of all forgotten images stay"
        return _ADVICE[need.set_name] if is_own else f"needs the {owner} model's values of the {need.set_name} set"
    # An answer can be read though the right one has probability 0, but not that of a model which computes NaN.
    bad = found.not_a_number if need.column == "rouge_l_recall" else found.not_finite
    if bad:
        return _not_finite("likelihood", bad, found, f"the {owner} model's", need.set_name)
    try:
        values = inputs.column(need.set_name, need.column, need.model)
    except DataError as error:
        return str(error)
    bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1)).tolist()
    return _not_finite(need.column, bad, found, f"the {owner} model's", need.set_name) if bad else None


def _not_finite(what: str, bad: list[int], values: SetValues, whose: str, set_name: str) -> str:
    return f"{whose} {what} is not finite for {len(bad)} of {values.size} {set_name} examples (first: {bad[0]})"


def check_same_examples(
    own: Mapping[str, SetValues], other: Mapping[str, SetValues], *, whose: ModelRole = "retain"
) -> None:
    """Check that the sets that two models share are of the same examples, as far as both sides know them.

    Args:
        own: Sets of a model.
        other: Sets of the model that it is compared with.
        whose: Which model that is.

    Raises:
        DataError: A set is not.
    """
    for name in (name for name in own if name in other):
        problem = _difference(own[name], other[name])
        if problem is not None:
            raise DataError(
                f"The model and the {whose} model were measured on different {name} examples{problem}. "
                "Score both on the same example sets."
            )


def described(example_set: ExampleSet[Any]) -> SetValues:
    """A set without any model's values: enough to tell whether others are of the same examples."""
    answers = tuple(example.answer for example in example_set if isinstance(example, LanguageExample))
    return SetValues(len(example_set), example_set.sha256, references=answers or None)


def _difference(own: SetValues, retain: SetValues) -> str | None:
    """How the examples differ, as far as both sides know them; None if they do not."""
    if own.size != retain.size:
        return f" ({own.size} and {retain.size})"
    if own.sha256 is not None and retain.sha256 is not None:
        return "" if own.sha256 != retain.sha256 else None
    if own.references is None or retain.references is None:
        return None
    pairs = zip(own.references, retain.references, strict=True)
    other = [index for index, (first, second) in enumerate(pairs) if first.split() != second.split()]
    return f" ({len(other)} of {own.size} right answers differ, first: number {other[0]})" if other else None


def gap(evaluation: ModelEvaluation, retain_evaluation: ModelEvaluation) -> dict[str, float]:
    """Gap of each metric to the retain model: this model's value minus the retain model's.

    Signed, so that it shows on which side of the retain model this one is; 0 is equal.

    Args:
        evaluation: Metrics of the model.
        retain_evaluation: Metrics of the retain model.

    Returns:
        By metric name, for metrics that both models have.
    """
    reference = {metric.name: metric.value for metric in retain_evaluation.metrics}
    gaps = {}
    for metric in evaluation.metrics:
        target = reference.get(metric.name)
        if metric.value is not None and target is not None:
            gaps[metric.name] = metric.value - target
    return gaps
