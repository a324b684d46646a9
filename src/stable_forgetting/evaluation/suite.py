"""From per-example values to the metrics of a model, and to the gap to the retain model."""

from __future__ import annotations

from collections.abc import Mapping

from stable_forgetting.errors import DataError
from stable_forgetting.evaluation.metric import Metric, MetricInputs, Need
from stable_forgetting.evaluation.metrics import METRICS
from stable_forgetting.evaluation.scores import ModelScores, SetScores
from stable_forgetting.evaluation.text import has_rouge_words
from stable_forgetting.records import MetricValue, ModelEvaluation

_ADVICE = {
    "forget": "needs a forget set; give data.forget",
    "retain": "needs a retain set; give data.retain",
    "holdout": "needs a holdout set; give data.holdout",
    "test": "needs test texts; give data.test",
    "forget_test": "needs test images of what is forgotten; give data.test",
    "retain_test": "needs test images of what is kept; give data.test",
}


def evaluate_scores(
    scores: ModelScores, retain_scores: ModelScores | None, *, num_resamples: int, seed: int
) -> ModelEvaluation:
    """All metrics of one model; one whose needs are not met has no value but the reason.

    Args:
        scores: Per-example values of the model.
        retain_scores: Those of the retain model, which may be `scores` itself; None if there is no retain model.
        num_resamples: Bootstrap resamples behind each interval.
        seed: Of the bootstrap.

    Raises:
        DataError: The two models were measured on different examples.
    """
    inputs = MetricInputs(
        own=scores.sets,
        retain={} if retain_scores is None else retain_scores.sets,
        num_resamples=num_resamples,
        seed=seed,
    )
    _check_same_examples(inputs)
    metrics = [_evaluate(metric, inputs, scores) for metric in METRICS.values() if scores.task in metric.tasks]
    return ModelEvaluation(role=scores.role, source=scores.source, metrics=metrics)


def _evaluate(metric: Metric, inputs: MetricInputs, scores: ModelScores) -> MetricValue:
    reason = _missing(metric, inputs, scores)
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


def _missing(metric: Metric, inputs: MetricInputs, scores: ModelScores) -> str | None:
    """Why the metric cannot be computed, or None if it can."""
    if metric.compares and scores.role == "retain":
        return "it is the reference"
    for need in metric.needs:
        reason = _unmet(need, inputs.own if need.model == "own" else inputs.retain, scores.role)
        if reason is not None:
            return reason
    return None


def _unmet(need: Need, sets: Mapping[str, SetScores], role: str) -> str | None:
    owner = role if need.model == "own" else need.model
    found = sets.get(need.set_name)
    if found is None:
        is_own = need.model == "own"
        return _ADVICE[need.set_name] if is_own else "needs the retain model's per-example values; give retain_model"
    if need.what == "answers":
        return _unmet_answers(found)
    bad = found.likelihood.not_finite
    if bad:
        return (
            f"the {owner} model's likelihood is not finite for {len(bad)} of {len(found)} {need.set_name} examples "
            f"(first: {bad[0]})"
        )
    return None


def _unmet_answers(scores: SetScores) -> str | None:
    if scores.answers is None or scores.references is None:
        return "needs prompts with answers, and evaluation.generate to be true"
    bad = [index for index, reference in enumerate(scores.references) if not has_rouge_words(reference)]
    if bad:
        return (
            f"{len(bad)} of {len(scores)} right answers have no word in the letters a to z and digits, which is all "
            f"that ROUGE reads (first: {bad[0]})"
        )
    return None


def _check_same_examples(inputs: MetricInputs) -> None:
    for name in inputs.own.keys() & inputs.retain.keys():
        if inputs.own[name].sha256 != inputs.retain[name].sha256:
            raise DataError(
                f"The model and the retain model were measured on different {name} examples. "
                "Score both on the same example sets."
            )


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
