"""Metrics during training: few, cheap, and named as in `training.stop` and `training.best_metric`."""

from __future__ import annotations

from typing import Any

from torch import nn

from stable_forgetting.data.examples import ExampleSet
from stable_forgetting.errors import NotFiniteError
from stable_forgetting.evaluation.classification import accuracy
from stable_forgetting.evaluation.likelihood import score_examples
from stable_forgetting.evaluation.scores import TaskName
from stable_forgetting.evaluation.statistics import mean
from stable_forgetting.models.tasks import Task

VALIDATION_METRICS: dict[str, bool] = {
    "forget_nll": True,
    "forget_probability": False,
    "forget_accuracy": False,
    "retain_nll": False,
    "retain_probability": True,
    "retain_accuracy": True,
}
"""Whether more is better. On the forget set "better" means forgotten further; a checkpoint chosen by such a metric
alone is the one that went furthest, not the one closest to the retain model."""

VALIDATION_NAMES: dict[TaskName, tuple[str, ...]] = {
    "language": ("forget_nll", "forget_probability", "retain_nll", "retain_probability"),
    "image": tuple(VALIDATION_METRICS),
}
"""Validation metrics of each task."""


def validation_metrics(
    model: nn.Module,
    task: Task,
    forget_subset: ExampleSet[Any],
    retain_subset: ExampleSet[Any],
    batch_size: int,
) -> dict[str, float]:
    """Mean NLL per label and probability on both sets, for images also the accuracy; defined as in `METRICS`.

    Args:
        model: The model in training; left in the mode it was in.
        task: Its task.
        forget_subset: Forget examples.
        retain_subset: Retain examples.
        batch_size: Examples per forward pass.

    Returns:
        By the names in `VALIDATION_NAMES`.

    Raises:
        NotFiniteError: A likelihood is infinite or not a number.
    """
    found = {}
    for name, subset in (("forget", forget_subset), ("retain", retain_subset)):
        scores = score_examples(model, task, subset, batch_size=batch_size)
        bad = scores.not_finite
        if bad:
            raise NotFiniteError(
                f"The likelihood of {len(bad)} of {len(scores)} {name} examples is not finite (first: {bad[0]}). "
                "Lower training.learning_rate or adapter.scale."
            )
        found[f"{name}_nll"] = float(mean(scores.nll))
        found[f"{name}_probability"] = float(mean(scores.probability))
        if scores.predicted is not None and scores.label is not None:
            found[f"{name}_accuracy"] = accuracy(scores.predicted, scores.label)
    return found
