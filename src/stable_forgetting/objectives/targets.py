"""Targets of calibrated forgetting: the likelihood at which each forget example, or each label, would look unseen."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from stable_forgetting.errors import ConfigError

Floats = npt.NDArray[np.float64]


def holdout_targets(order: npt.ArrayLike, holdout_nll: npt.ArrayLike, matching: Literal["mean", "quantiles"]) -> Floats:
    """Targets from how likely the base model finds unseen data of the same kind.

    With ``mean`` all examples get the same target: the right average, but a distribution so narrow that it can be told
    from unseen data. With ``quantiles`` the forget examples keep their order and together get the whole distribution of
    the holdout set, which is what a membership attack sees.

    Args:
        order: A number for each forget example, or for each of their labels: the higher, the higher its target. The
            NLL under the base model, or better under the model that it was finetuned from.
        holdout_nll: NLL under the base model of each holdout example, per label, or of each of their labels, in nats.
        matching: How the holdout set is matched.

    Returns:
        A target for each forget example or label, in nats per label.

    Raises:
        ConfigError: A number is not finite, or a target is not a positive number.

    Example:
        >>> holdout_targets([0.3, 0.1, 0.2], [1.0, 2.0, 3.0, 4.0, 5.0], "quantiles").round(2).tolist()
        [4.33, 1.67, 3.0]
        >>> holdout_targets([0.3, 0.1], [1.0, 2.0], "mean").tolist()
        [1.5, 1.5]
    """
    numbers, holdout = (np.asarray(values, dtype=np.float64) for values in (order, holdout_nll))
    if matching == "mean":
        return positive_targets(np.full(len(numbers), holdout.mean()))
    if not np.isfinite(numbers).all():
        worst = numbers[~np.isfinite(numbers)][0]
        raise ConfigError(
            f"A forget example has the likelihood {worst:g} under the model that orders the targets, so it has no "
            "place in that order. Give another pretrained_model, or read it in float32."
        )
    ranks = np.argsort(np.argsort(numbers, kind="stable"), kind="stable")
    return positive_targets(np.quantile(holdout, (ranks + 0.5) / len(ranks)))


def positive_targets(targets: npt.ArrayLike) -> Floats:
    """The targets, checked.

    Raises:
        ConfigError: A target is not a positive number.
    """
    values = np.asarray(targets, dtype=np.float64)
    if not (np.isfinite(values) & (values > 0)).all():
        worst = values[~(np.isfinite(values) & (values > 0))][0]
        raise ConfigError(
            f"A calibrated target is {worst:g} nats per label; targets must be finite and above 0. "
            "Give a holdout set that the base model has not seen, or objective.target.nll."
        )
    return values
