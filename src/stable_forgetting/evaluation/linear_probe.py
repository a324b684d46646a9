"""Linear probe: what the frozen features of an image classifier still tell, whatever its head makes of them.

N = images, D = features of one image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from torch import Tensor, nn

from stable_forgetting.errors import DataError
from stable_forgetting.evaluation.likelihood import Ints, ScoredBatch, Singles

PENALTY = 0.01
"""λ of the probe's penalty λ/2 · ‖W‖² on the mean loss. Being on the mean, it weighs the same however many images are
measured. The minimum is the only one, and some thirty iterations away. On DINOv2 features of CIFAR-100, 0.003 to 0.1
gave the same accuracy within its error."""

PROBE_FORMAT = 2
"""Grows whenever the same features would be given other predictions than before."""

_TOLERANCE = 1e-3
"""Largest entry of the gradient at the end; a tenth of it takes three times as long and gives the same accuracy."""

_MOST_ITERATIONS = 1000


def with_features(
    batches: Iterable[ScoredBatch], head: nn.Module, features: dict[int, Singles]
) -> Iterator[ScoredBatch]:
    """Pass batches on, and note what the head was given for each image, so that no second forward pass is needed.

    Args:
        batches: Runs the model, batch by batch.
        head: The model's head.
        features: Gets the features, (D,), by the number of the image.
    """
    inputs: list[Tensor] = []

    def note(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        inputs.append(given[0])

    handle = head.register_forward_pre_hook(note)
    try:
        for numbers, predictions in batches:
            rows = inputs.pop().flatten(1).float().cpu().numpy()
            features.update(zip(numbers, rows, strict=True))
            yield numbers, predictions
    finally:
        handle.remove()


def first_of_each(labels: Ints, most: int) -> Ints:
    """Places of the first images of each class, at most so many of each, in order; (K,)."""
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:most] for label in np.unique(labels)]))


def probe_predictions(features: Singles, labels: Ints, *tested: Singles) -> list[Ints]:
    """Classes that a linear probe predicts: multinomial logistic regression on standardised features.

    The probe minimises the mean over the classes of their mean cross-entropy, plus λ/2 · ‖W‖² with λ = `PENALTY`. Each
    class counts alike, however many images of it there happen to be. The features get
    mean 0 and deviation 1 over the training images (a constant one becomes 0), so that λ means the same for every
    model. The function is convex with one minimum, so that nothing is left to chance. With a single class there is
    nothing to learn, and the probe always predicts it.

    Args:
        features: (N, D), of the training images.
        labels: (N,), their classes.
        *tested: (M, D), features of other images.

    Returns:
        The predicted class of each of the other images, (M,).

    Raises:
        DataError: There are no training images, or features are not finite.
    """
    if len(features) == 0 or not all(np.isfinite(each).all() for each in (features, *tested)):
        raise DataError("A linear probe needs at least one training image, and features that are finite.")
    if len(np.unique(labels)) == 1:
        return [np.full(len(each), labels[0]) for each in tested]
    probe = _regression(len(features)).fit(features.astype(np.float64), labels)
    return [np.asarray(probe.predict(each.astype(np.float64)), dtype=np.int64) for each in tested]


def _regression(num_images: int) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # scikit-learn has C on the sum of the losses, and its balanced weights have the mean 1.
    weight = 1 / (PENALTY * num_images)
    regression = LogisticRegression(C=weight, class_weight="balanced", tol=_TOLERANCE, max_iter=_MOST_ITERATIONS)
    return make_pipeline(StandardScaler(), regression)
