"""Metrics of image classification."""

from __future__ import annotations

import numpy as np

from stable_forgetting.errors import DataError
from stable_forgetting.evaluation.likelihood import Ints
from stable_forgetting.evaluation.statistics import Floats


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


def tug_of_war(forget: Floats, retain: Floats, retain_test: Floats) -> Floats:
    """ToW = (1 − |g_forget|)(1 − |g_retain|)(1 − |g_retain_test|), g the accuracy's gap to the retain model's.

    Range 0 to 1; 1 means that the accuracies agree on all three sets (Zhao et al., "What makes unlearning hard and what
    to do about it", 2024).

    Args:
        forget: (..., n, 2), 1 or 0 for a right or wrong prediction of the unlearned and of the retain model on the
            training images of the forget set.
        retain: The same on the training images of the retain set.
        retain_test: The same on test images of what is kept.

    Returns:
        (...).
    """
    product = np.ones(forget.shape[:-2])
    for pairs in (forget, retain, retain_test):
        accuracies = pairs.mean(axis=-2)
        product = product * (1 - np.abs(accuracies[..., 0] - accuracies[..., 1]))
    return np.asarray(product)
