"""Targets of calibrated forgetting: the likelihood at which each forget example, or each label, would look unseen."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stable_forgetting.errors import ConfigError

Floats = npt.NDArray[np.float64]


def holdout_targets(places: npt.ArrayLike, holdout_nll: npt.ArrayLike) -> Floats:
    """Targets from how likely the base model finds unseen data of the same kind: the quantiles at some places.

    So the whole distribution is matched, which is what a membership attack sees, and not only its mean.

    Args:
        places: A number from 0 to 1 for each forget example, or for each of their labels: 0 for the likeliest.
        holdout_nll: NLL under the base model of each holdout example, per label, or of each of their labels, in nats.

    Returns:
        A target for each place, in nats per label.

    Raises:
        ConfigError: A target is not a positive number.

    Example:
        >>> holdout_targets([0.5, 0.0, 0.75], [1.0, 2.0, 3.0, 4.0, 5.0]).tolist()
        [3.0, 1.0, 4.0]
    """
    return positive_targets(np.quantile(np.asarray(holdout_nll, dtype=np.float64), np.asarray(places)))


def ranks(values: npt.ArrayLike) -> Floats:
    """Places of values among themselves: they keep their order, and are spread evenly from 0 to 1.

    Equal values, as those that single precision rounds to 0, are put in a random order, the same every time: by their
    position, the first examples would be forgotten less than the last ones.

    Example:
        >>> ranks([0.3, 0.1, 0.2, 9.0]).tolist()
        [0.625, 0.125, 0.375, 0.875]
    """
    numbers = np.asarray(values, dtype=np.float64)
    mixed = np.random.default_rng(0).permutation(len(numbers))
    places = np.empty(len(numbers))
    places[mixed[np.argsort(numbers[mixed], kind="stable")]] = (np.arange(len(numbers)) + 0.5) / len(numbers)
    return places


def places_among(values: npt.ArrayLike, others: npt.ArrayLike) -> Floats:
    """Places of values in the distribution of others: the share of these that is lower, half of those that are equal.

    Values that are higher than most of the others keep that: unlike `ranks`, their mean need not be 0.5.

    Raises:
        ConfigError: A value is not finite.

    Example:
        >>> places_among([0.5, 2.0, 9.0], [1.0, 2.0, 3.0, 4.0]).tolist()
        [0.0, 0.375, 1.0]
    """
    numbers, known = np.asarray(values, dtype=np.float64), np.sort(np.asarray(others, dtype=np.float64))
    for found in (numbers, known):
        if not np.isfinite(found).all():
            worst = found[~np.isfinite(found)][0]
            raise ConfigError(
                f"An example has the NLL {worst:g} under the pretrained model, so it has no place among the others. "
                "Give another pretrained_model, or read it in float32."
            )
    lower, not_higher = (np.searchsorted(known, numbers, side=side) for side in ("left", "right"))
    return np.asarray((lower + not_higher) / 2 / len(known))


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
