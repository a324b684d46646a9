"""Metrics of image classification."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp

from stable_forgetting.errors import DataError
from stable_forgetting.evaluation.likelihood import Ints
from stable_forgetting.evaluation.statistics import LEVEL, Floats, Interval, middle, resampled


def correct(predicted: Ints, label: Ints) -> Floats:
    """1 where the predicted class is the right one, else 0; (N,). Its mean is the accuracy.

    Raises:
        DataError: The columns are empty or differ in length.
    """
    if len(predicted) != len(label) or len(label) == 0:
        raise DataError(
            f"Accuracy needs one predicted class per label and at least one; got {len(predicted)} predicted classes "
            f"and {len(label)} labels."
        )
    return np.equal(predicted, label).astype(np.float64)


def accuracy(predicted: Ints, label: Ints) -> float:
    """Share of examples whose most likely class is the right one. Range 0 to 1.

    Raises:
        DataError: The columns are empty or differ in length.
    """
    return float(correct(predicted, label).mean())


def per_class_accuracy(predicted: Ints, label: Ints) -> dict[int, float]:
    """Accuracy of each class that occurs among the labels; a class without examples has no accuracy.

    Raises:
        DataError: The columns are empty or differ in length.

    Example:
        >>> per_class_accuracy(np.array([0, 1, 1]), np.array([0, 0, 1]))
        {0: 0.5, 1: 1.0}
    """
    right, label = correct(predicted, label), np.asarray(label)
    return {int(kind): float(right[label == kind].mean()) for kind in np.unique(label)}


def tug_of_war(*sets: Floats) -> Floats:
    """ToW: product of 1 − |g| over the sets, g the accuracy's gap to the retain model's.

    Range 0 to 1; 1 means that the accuracies agree on all sets. Its authors take three: the training images of the
    forget set, those of the retain set, and test images of what is kept (Zhao et al., "What makes unlearning hard and
    what to do about it", 2024).

    Args:
        *sets: (..., n, 2), 1 or 0 for a right or wrong prediction of the unlearned and of the retain model.

    Returns:
        (...).
    """
    product = np.ones(sets[0].shape[:-2])
    for pairs in sets:
        product = product * (1 - np.abs(_gap(pairs)))
    return np.asarray(product)


def tug_of_war_interval(*sets: Floats, num_resamples: int, seed: int) -> Interval | None:
    """95 % interval of `tug_of_war`, which always contains its value.

    A bootstrap of the product would lie too low: resamples of two models that agree have gaps, and none is below 0. So
    the signed gap of each set is resampled, and the ends of its interval give those of its factor. They are put
    together as independent errors are: by the squares of what the product changes with one factor at its end. A factor
    may be 1 where 0 is in the middle 95 %^(1/sets) of its gaps, and all such factors are 1 at the upper end: where the
    models agree on all sets, that is all of them in 95 % of the cases.

    In simulations of three sets of 30 to 1000 images it covered a true value of 1 in 93 to 95 %, and one of 0.8, with
    gaps on one set or on all, in 94 to 99 % of the cases.

    Args:
        *sets: As for `tug_of_war`, (n, 2).
        num_resamples: At least 1.
        seed: Of the resampling.

    Returns:
        The interval, or None if a set has one image only.

    Raises:
        DataError: A set is empty or has values that are not finite.
    """
    found = []
    for pairs in sets:
        gaps = resampled(pairs, statistic=_gap, num_resamples=num_resamples, seed=seed)
        if gaps is None:
            return None
        found.append(_factor(float(_gap(pairs)), middle(gaps), middle(gaps, LEVEL ** (1 / len(sets)))))
    factors = [factor.value for factor in found]
    highest = [1.0 if factor.high == 1 else factor.value for factor in found]
    low = math.prod(factors) - _spread(factors, [factor.low for factor in found])
    high = math.prod(highest) + _spread(highest, [factor.high for factor in found])
    return Interval(max(low, 0.0), min(high, 1.0))


class _Factor(NamedTuple):
    """1 − |g| of a set, with its limits."""

    value: float
    low: float
    high: float


def _factor(gap: float, limits: Interval, widest: Interval) -> _Factor:
    low, high = min(limits.low, gap), max(limits.high, gap)
    nearest = 0.0 if widest.low <= 0 <= widest.high else min(abs(low), abs(high))
    return _Factor(1 - abs(gap), 1 - max(abs(low), abs(high)), 1 - nearest)


def _spread(factors: Sequence[float], ends: Sequence[float]) -> float:
    """Root of the squares of what the product changes where one factor is at its end."""
    product = math.prod(factors)
    return math.hypot(
        *(math.prod([*factors[:place], end, *factors[place + 1 :]]) - product for place, end in enumerate(ends))
    )


def _gap(pairs: Floats) -> Floats:
    """Accuracy of the first model minus that of the second, (..., n, 2) to (...)."""
    accuracies = pairs.mean(axis=-2)
    return np.asarray(accuracies[..., 0] - accuracies[..., 1])


def h_score(forget_test: Floats, retain_test: Floats) -> Floats:
    """H = 2·D·R / (D + R): harmonic mean of the forgotten and the kept accuracy on test images.

    Range 0 to 1, higher is better. D is the base model's accuracy on test images of what is forgotten minus this
    model's, R this model's accuracy on those of what is kept (Zhao et al., "Continual forgetting for pre-trained vision
    models", 2024, GS-LoRA). The paper does not say what a D below 0 means; it counts as 0 here, so that H is 0 where
    nothing was forgotten.

    Args:
        forget_test: (..., n, 2), 1 or 0 for a right or wrong prediction of this and of the base model.
        retain_test: (..., m), the same of this model.

    Returns:
        (...).
    """
    accuracies = forget_test.mean(axis=-2)
    drop = np.maximum(accuracies[..., 1] - accuracies[..., 0], 0.0)
    kept = retain_test.mean(axis=-1)
    total = drop + kept
    return np.asarray(np.divide(2 * drop * kept, total, out=np.zeros_like(total), where=total > 0))


def js_divergence(first: Floats, second: Floats) -> Floats:
    """Jensen-Shannon divergence of two distributions over the classes, in nats: one for each row.

    JS = ½ Σ p ln(p/m) + ½ Σ q ln(q/m), m = (p + q) / 2. Range 0 (equal) to ln 2 (no class in common). A class of
    probability 0 adds nothing; its logarithm has to be a finite number, however small.

    Args:
        first: (N, C), ln p; rows are normalised, since single precision leaves their sums a little off 1.
        second: (N, C), ln q.

    Returns:
        (N,).

    Raises:
        DataError: The shapes differ.

    Example:
        >>> js_divergence(np.log([[0.5, 0.5]]), np.log([[0.5, 0.5]])).tolist()
        [0.0]
    """
    if first.shape != second.shape:
        raise DataError(
            f"The two distributions have the shapes {first.shape} and {second.shape}: (examples, classes). "
            "Compare models with the same classes on the same examples."
        )
    logs = [each - logsumexp(each, axis=-1, keepdims=True) for each in (first, second)]
    middle = np.logaddexp(*logs) - math.log(2)
    parts = [(np.exp(each) * (each - middle)).sum(axis=-1) for each in logs]
    return np.asarray(np.clip((parts[0] + parts[1]) / 2, 0.0, math.log(2)))
