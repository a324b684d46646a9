"""The interval of a share of examples: apart from all others, because the report needs it without torch."""

from __future__ import annotations

import math

_NORMAL_QUANTILE = 1.959964
"""97.5 % quantile of the normal distribution."""


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Score interval of a share of some examples, which is sound for few examples and for shares of 0 and 1.

    E. B. Wilson, *Journal of the American Statistical Association* 1927.

    Args:
        share: From 0 to 1.
        count: Number of examples, at least 1.

    Returns:
        Its lower and upper limit at 95 %.

    Example:
        >>> low, high = wilson_interval(1.0, 10)
        >>> round(low, 3), round(high, 3)
        (0.722, 1.0)
    """
    square = _NORMAL_QUANTILE**2
    middle = (share + square / (2 * count)) / (1 + square / count)
    half = math.sqrt(share * (1 - share) / count + square / (4 * count**2)) * _NORMAL_QUANTILE / (1 + square / count)
    return max(0.0, middle - half), min(1.0, middle + half)
