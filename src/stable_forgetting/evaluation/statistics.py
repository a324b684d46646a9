"""Intervals and the two-sample test.

R = resamples, n = examples of a group, c = columns per example.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from stable_forgetting.errors import DataError

Floats = npt.NDArray[np.float64]
Statistic = Callable[..., Floats]
"""Takes each group as (R, n) or (R, n, c) and gives (R,)."""

LEVEL = 0.95
"""Coverage of every interval."""

_BLOCK = 4_000_000
"""Numbers drawn at once: keeps a bootstrap over many examples within some 100 MB."""

_SMALLEST = float(np.finfo(np.float64).tiny)
"""Numbers below have fewer digits, down to 0."""

_EXACT_LIMIT = 10_000
"""Group size up to which the KS p-value is exact; scipy's own limit."""


class Interval(NamedTuple):
    """95 % interval: a percentile bootstrap, the score interval of a share, or what is made of several."""

    low: float
    high: float


@dataclass(frozen=True)
class KsResult:
    """Two-sample Kolmogorov-Smirnov test.

    Args:
        p: Probability of a D at least this large if both samples came from the same distribution.
        log10_p: Its decimal logarithm; exact for samples of one size even where p is too small for a number, for
            samples of two sizes never below −307.7.
        statistic: D, largest distance between the two empirical distribution functions, 0 to 1.
        counts: Size of each sample.
    """

    p: float
    log10_p: float
    statistic: float
    counts: tuple[int, int]


def mean(values: Floats) -> Floats:
    """Mean of each resample, (R, n) to (R,)."""
    return np.asarray(values.mean(axis=-1))


def ratio_of_sums(pairs: Floats) -> Floats:
    """Sum of the first column over the sum of the second, (R, n, 2) to (R,): NLL per token of a whole set."""
    sums = pairs.sum(axis=-2)
    return np.asarray(sums[..., 0] / sums[..., 1])


def as_sample(values: Sequence[float] | Floats, *, what: str) -> Floats:
    """The values as float64, checked.

    Args:
        values: One number, or one row of numbers, per example.
        what: What they are, for the message.

    Raises:
        DataError: There are none, or some are infinite or not a number.
    """
    array = np.asarray(values, dtype=np.float64)
    if len(array) == 0:
        raise DataError(f"There are no {what}. Give at least one.")
    bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
    if len(bad):
        raise DataError(f"{len(bad)} of {len(array)} {what} are not finite (first: number {bad[0]}). Leave them out.")
    return array


def bootstrap_interval(
    *groups: Sequence[float] | Floats, statistic: Statistic = mean, num_resamples: int, seed: int
) -> Interval | None:
    """Percentile bootstrap: the middle 95 % of a statistic over resamples of the examples.

    Each group is resampled by itself, rows of a group stay together. The order of the examples changes nothing. What
    the sample does not show, the bootstrap cannot see: constant values give an interval of no width.

    Args:
        *groups: Values per example, (n,) or (n, c); groups may differ in size.
        statistic: What is computed from the groups, over all resamples at once.
        num_resamples: R, at least 1.
        seed: Of the resampling.

    Returns:
        The interval, or None if a group has one example only, which says nothing about the spread, or if the statistic
        of some resample is infinite or not defined, as a ratio to 0 is.

    Raises:
        DataError: A group is empty or has values that are not finite.

    Example:
        >>> low, high = bootstrap_interval([0.0, 1.0, 1.0, 0.0], num_resamples=1000, seed=0)
        >>> 0.0 <= low < 0.5 < high <= 1.0
        True
    """
    found = resampled(*groups, statistic=statistic, num_resamples=num_resamples, seed=seed)
    return None if found is None else middle(found)


def middle(values: Floats, level: float = LEVEL) -> Interval:
    """The middle part of resampled values.

    Args:
        values: (R,).
        level: Share of them that lies within.
    """
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(float(low), float(high))


def resampled(*groups: Sequence[float] | Floats, statistic: Statistic, num_resamples: int, seed: int) -> Floats | None:
    """A statistic over resamples of the examples, (R,): what `bootstrap_interval` takes the middle of.

    Returns:
        The values, or None where `bootstrap_interval` gives none.

    Raises:
        DataError: A group is empty or has values that are not finite.
    """
    samples = [_sorted_rows(as_sample(group, what="values")) for group in groups]
    if min(map(len, samples)) == 1:
        return None
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // sum(sample.size for sample in samples))
    found = []
    for start in range(0, num_resamples, block):
        rows = min(block, num_resamples - start)
        drawn = [sample[generator.integers(len(sample), size=(rows, len(sample)))] for sample in samples]
        found.append(statistic(*drawn))
    values = np.concatenate(found)
    return values if np.isfinite(values).all() else None


def _sorted_rows(sample: Floats) -> Floats:
    columns = sample.reshape(len(sample), -1)
    return np.asarray(sample[np.lexsort(columns.T[::-1])])


def ks_test(first: Sequence[float] | Floats, second: Sequence[float] | Floats) -> KsResult:
    """Two-sided two-sample Kolmogorov-Smirnov test (`scipy.stats.ks_2samp`).

    p near 1 means that the test cannot tell the samples apart, not that they are equal: with few examples it never can.
    With full separation (D = 1) p is fixed by the sizes alone. The p-value is exact for up to 10,000 values a side, and
    asymptotic beyond.

    Args:
        first: One value per example.
        second: One value per example; the sizes may differ.

    Returns:
        p, D, and log10 p. A p below 2.2e-308 is 0, which its logarithm need not be.

    Raises:
        DataError: A sample is empty or has values that are not finite.

    Example:
        >>> ks_test([1, 2, 3], [1, 2, 3]).p
        1.0
    """
    samples = as_sample(first, what="values"), as_sample(second, what="values")
    sizes = len(samples[0]), len(samples[1])
    statistic = _largest_distance(*samples)
    if sizes[0] == sizes[1] and statistic * sizes[0] < 1.5:
        # Every order of the values has a D of at least 1 / n. scipy's exact method rounds this p to above 1, takes
        # that for a failure, and warns.
        p = 1.0
    else:
        method: Literal["exact", "asymp"] = "exact" if max(sizes) <= _EXACT_LIMIT else "asymp"
        p = float(stats.ks_2samp(samples[0].tolist(), samples[1].tolist(), method=method).pvalue)
    return KsResult(
        p=p,
        log10_p=_log10_p(p, statistic, sizes),
        statistic=statistic,
        counts=sizes,
    )


def _log10_p(p: float, statistic: float, sizes: tuple[int, int]) -> float:
    """Logarithm of a p-value, also of one that is 0 as a number.

    For two samples of n, p = 2 Σ (−1)ᵏ⁻¹ C(2n, n − k·h) / C(2n, n) over k = 1, 2, … with h = n·D (Gnedenko, Korolyuk).
    A p that small comes from an h so large that the first term is the sum to all digits of a number.
    """
    if p >= _SMALLEST:
        return math.log10(p)
    if sizes[0] != sizes[1]:
        return math.log10(_SMALLEST)
    n = sizes[0]
    h = round(n * statistic)
    log_ratio = 2 * math.lgamma(n + 1) - math.lgamma(n - h + 1) - math.lgamma(n + h + 1)
    return (math.log(2) + log_ratio) / math.log(10)


def _largest_distance(first: Floats, second: Floats) -> float:
    """D: largest distance between the shares of each sample that are at most x, over all values x."""
    values = np.concatenate([first, second])
    shares = [np.searchsorted(np.sort(sample), values, side="right") / len(sample) for sample in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max())
