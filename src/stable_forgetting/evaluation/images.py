"""Per-example values of images, from one forward pass each: likelihood, classes, and what a linear probe predicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from stable_forgetting.data.examples import ExampleSet
from stable_forgetting.evaluation.likelihood import (
    Ints,
    LikelihoodScores,
    Progress,
    Singles,
    collect,
    inference,
    plain_batches,
)
from stable_forgetting.evaluation.linear_probe import first_of_each, probe_predictions, with_features
from stable_forgetting.models.heads import find_head
from stable_forgetting.models.tasks import Task

SETS_WITH_CLASSES = ("forget", "forget_test")
"""Sets of which the log-probability of each class is kept: those whose distributions are compared between models."""

PROBE_TRAINING = ("forget", "retain")
"""Sets that a linear probe is trained on, together: training images of all classes."""

PROBE_TEST = ("forget_test", "retain_test")
"""Sets that it is tested on."""


@dataclass(frozen=True, eq=False)
class ImageScores:
    """One set of images under one model.

    Args:
        likelihood: Columns per image.
        probe_predicted: Class that a linear probe on the model's features predicts, (N,); None if there is no probe.
    """

    likelihood: LikelihoodScores
    probe_predicted: Ints | None = None


@dataclass(frozen=True, eq=False)
class _Measured:
    """Likelihoods by set, and features (N, D) of the sets that a probe needs."""

    likelihoods: dict[str, LikelihoodScores] = field(default_factory=dict)
    features: dict[str, Singles] = field(default_factory=dict)


def score_images(
    model: nn.Module,
    task: Task,
    sets: Mapping[str, ExampleSet[Any]],
    *,
    batch_size: int,
    linear_probe: bool,
    tell: Callable[[str], Progress | None],
) -> dict[str, ImageScores]:
    """Measure an image classifier on every image of the sets, one forward pass each.

    Args:
        model: Model of the task.
        task: The image task.
        sets: Sets by name.
        batch_size: Images per forward pass.
        linear_probe: Whether to train a linear probe on the features and to test it. There is none either if the model
            has no head that is known, if a set to train on is missing, or if the features are not finite.
        tell: Gives, for a description, what is told about the progress.
    """
    head = find_head(model) if linear_probe and set(PROBE_TRAINING) <= set(sets) else None
    measured = _Measured()
    with inference(model) as device:
        for name, images in sets.items():
            batches = plain_batches(model, task, images.examples, batch_size, device)
            features: dict[int, Singles] = {}
            if head is not None and name in (*PROBE_TRAINING, *PROBE_TEST):
                batches = with_features(batches, head, features)
            measured.likelihoods[name] = collect(
                batches,
                len(images),
                is_image=True,
                with_classes=name in SETS_WITH_CLASSES,
                progress=tell(f"likelihood of {name}"),
            ).scores()
            if features:
                measured.features[name] = np.stack([features[number] for number in range(len(images))])
    predicted = _probe(measured)
    return {name: ImageScores(scores, predicted.get(name)) for name, scores in measured.likelihoods.items()}


def _probe(measured: _Measured) -> dict[str, Ints]:
    """Classes that a probe predicts, by set; empty if there can be no probe."""
    features = measured.features
    tested = [name for name in PROBE_TEST if name in features]
    if not tested or not all(np.isfinite(each).all() for each in features.values()):
        return {}
    forget, retain = (measured.likelihoods[name].label for name in PROBE_TRAINING)
    assert forget is not None
    assert retain is not None
    # A limited retain set has few images of a class; one with many more would be told better than the others.
    usual = int(np.median(np.unique(retain, return_counts=True)[1]))
    chosen = first_of_each(forget, usual)
    found = probe_predictions(
        np.concatenate([features["forget"][chosen], features["retain"]]),
        np.concatenate([forget[chosen], retain]),
        *[features[name] for name in tested],
    )
    return dict(zip(tested, found, strict=True))
