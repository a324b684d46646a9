"""When a difference may be called one: estimates with intervals, and the rule that judges them.

Marks in tables and a run's sentences about itself are made by the same rule, which therefore needs neither.

Intervals of two estimates are combined by recovering variances (Zou and Donner, *Statistics in Medicine* 2008,
"MOVER"): for a difference `a - b` the lower limit is `a - b - sqrt((a - a.low)^2 + (b.high - b)^2)`. It treats the
estimates as independent. Models measured on the same examples usually err together, so the interval is too wide
rather than too narrow: a difference is missed more often than invented.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stable_forgetting.records import Direction, MetricValue
from stable_forgetting.wilson import wilson_interval

Judgement = Literal["better", "worse", "unclear", "not judged"]

_T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % quantile of Student's t for 1 to 9 degrees of freedom."""


@dataclass(frozen=True)
class Estimate:
    """A measured value with a 95 % interval, over one run or over several seeds."""

    value: float
    low: float | None = None
    high: float | None = None
    count: int | None = None
    """Number of examples."""
    spread: float | None = None
    """Standard deviation over the seeds; None for one run."""
    num_runs: int = 1

    @property
    def has_interval(self) -> bool:
        """Whether value and interval are there and finite."""
        return all(number is not None and math.isfinite(number) for number in (self.value, self.low, self.high))


def estimate_of(metric: MetricValue | None) -> Estimate | None:
    """A metric's value with its interval; None where it has no value."""
    if metric is None or metric.value is None:
        return None
    return Estimate(metric.value, metric.low, metric.high, metric.count)


def average(estimates: Sequence[Estimate]) -> Estimate:
    """Mean over seeds, with their standard deviation.

    The interval adds, as squares, the mean half-width over examples and Student's t interval of the mean over seeds.

    Raises:
        ValueError: There is nothing to average.
    """
    if not estimates:
        raise ValueError("No estimates to average. Report the metric as not available.")
    if len(estimates) == 1:
        return estimates[0]
    values = [estimate.value for estimate in estimates]
    counts = {estimate.count for estimate in estimates}
    count = counts.pop() if len(counts) == 1 else None
    if not all(math.isfinite(value) for value in values):
        return Estimate(statistics.fmean(values), count=count, num_runs=len(values))
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    low, high = _combined_limits(estimates, mean, _student_t(len(values) - 1) * spread / math.sqrt(len(values)))
    return Estimate(mean, low, high, count, spread, len(values))


def _combined_limits(
    estimates: Sequence[Estimate], mean: float, over_seeds: float
) -> tuple[float, float] | tuple[None, None]:
    below = [e.value - e.low for e in estimates if e.has_interval and e.low is not None]
    above = [e.high - e.value for e in estimates if e.has_interval and e.high is not None]
    if len(below) < len(estimates):
        return None, None
    return (
        mean - math.hypot(statistics.fmean(below), over_seeds),
        mean + math.hypot(statistics.fmean(above), over_seeds),
    )


def _student_t(degrees: int) -> float:
    """Quantile for that many degrees of freedom; beyond the table its last value, which is a little too wide."""
    return _T_QUANTILES[min(degrees, len(_T_QUANTILES)) - 1]


def wilson(share: float, count: int) -> Estimate:
    """A share of some examples with its score interval; see `wilson_interval`.

    With `difference` it makes Newcombe's hybrid score interval (*Statistics in Medicine* 1998, method 10).
    """
    return Estimate(share, *wilson_interval(share, count), count)


def difference(first: Estimate, second: Estimate) -> Estimate:
    """`first - second` with its 95 % interval, or without one if either has none."""
    value = first.value - second.value
    if not (first.has_interval and second.has_interval):
        return Estimate(value)
    low = value - math.hypot(first.value - _low(first), _high(second) - second.value)
    high = value + math.hypot(_high(first) - first.value, second.value - _low(second))
    return Estimate(value, low, high)


def excludes_zero(estimate: Estimate) -> bool:
    """Whether the interval is there and lies on one side of zero."""
    return estimate.has_interval and (_low(estimate) > 0 or _high(estimate) < 0)


def judge(after: Estimate, before: Estimate, direction: Direction, retain: Estimate | None) -> Judgement:
    """Whether `after` is better than `before`, said only where the difference is larger than its interval.

    Args:
        after: The value to judge.
        before: The value it is compared with.
        direction: Which way is better. With ``"retain"``, the distance to the retain model is what counts: it is
            better if the largest distance `after` may have is below the smallest that `before` may have.
        retain: The retain model's value; only used with direction ``"retain"``.

    Returns:
        ``"not judged"`` where an interval or the retain model's value is missing.
    """
    if not (after.has_interval and before.has_interval):
        return "not judged"
    if direction == "retain":
        return _judge_distances(after, before, retain)
    change = difference(after, before)
    if not excludes_zero(change):
        return "unclear"
    return "better" if (change.value > 0) == (direction == "higher") else "worse"


def judge_change(
    after: Estimate | None, before: Estimate | None, direction: Direction, retain: Estimate | None
) -> Judgement:
    """What `judge` says; ``"not judged"`` also where a value is missing."""
    if after is None or before is None:
        return "not judged"
    return judge(after, before, direction, retain)


def _judge_distances(after: Estimate, before: Estimate, retain: Estimate | None) -> Judgement:
    if retain is None or not retain.has_interval:
        return "not judged"
    nearest_after, farthest_after = _distance_range(difference(after, retain))
    nearest_before, farthest_before = _distance_range(difference(before, retain))
    if farthest_after < nearest_before:
        return "better"
    return "worse" if nearest_after > farthest_before else "unclear"


def _distance_range(gap: Estimate) -> tuple[float, float]:
    """Smallest and largest absolute value within the interval of a gap."""
    low, high = _low(gap), _high(gap)
    nearest = 0.0 if low <= 0 <= high else min(abs(low), abs(high))
    return nearest, max(abs(low), abs(high))


def _low(estimate: Estimate) -> float:
    assert estimate.low is not None
    return estimate.low


def _high(estimate: Estimate) -> float:
    assert estimate.high is not None
    return estimate.high
