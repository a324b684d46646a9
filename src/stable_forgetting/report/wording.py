"""Numbers and judgements in words: the only place of the report where a number becomes text."""

from __future__ import annotations

import math
from collections.abc import Mapping

from stable_forgetting.intervals import Estimate, Judgement, excludes_zero
from stable_forgetting.records import Direction, ModelRole
from stable_forgetting.report.glossary import DIRECTION_WORDS

ROLE_WORDS: dict[ModelRole, str] = {"base": "Base model", "unlearned": "Unlearned model", "retain": "Retain model"}

NOT_AVAILABLE = "not available"

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def number(value: float) -> str:
    """A number with about three significant digits.

    Example:
        >>> [number(value) for value in (0.5, 17.25, 123456.0, -0.000012, math.inf)]
        ['0.500', '17.25', '123,456', '−1.2 × 10⁻⁵', '∞']
    """
    if math.isnan(value):
        return "not a number"
    sign, size = ("−" if value < 0 else ""), abs(value)
    if math.isinf(size):
        return f"{sign}∞"
    if size == 0:
        return "0"
    if size < 1e-3 or size >= 1e7:
        mantissa, exponent = f"{size:.1e}".split("e")
        return f"{sign}{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
    decimals = next((places for limit, places in ((10, 3), (100, 2), (1000, 1)) if size < limit), 0)
    return f"{sign}{size:,.{decimals}f}"


def precise(value: float) -> str:
    """A number with four significant digits, for values that are compared with a limit close to them.

    Example:
        >>> precise(0.036087), precise(21.5)
        ('0.03609', '21.50')
    """
    return f"{value:#.4g}".replace("-", "−")


def signed(value: float) -> str:
    """A number with its sign, as for a gap."""
    return f"+{number(value)}" if value > 0 else number(value)


def uncertainty(estimate: Estimate) -> str:
    """The spread over seeds, else the interval over examples, else nothing.

    Example:
        >>> uncertainty(Estimate(0.5, 0.45, 0.55)), uncertainty(Estimate(0.5, spread=0.01, num_runs=3))
        ('0.450 to 0.550', '± 0.010, 3 seeds')
    """
    if estimate.num_runs > 1:
        spread = "" if estimate.spread is None else f"± {number(estimate.spread)}, "
        return f"{spread}{estimate.num_runs} seeds"
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{number(estimate.low)} to {number(estimate.high)}"


def points(value: float) -> str:
    """A difference of two shares in percentage points.

    Example:
        >>> points(0.0123), points(-1.0), points(0.0)
        ('+1.2', '−100.0', '0.0')
    """
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def uncertainty_in_points(gap: Estimate) -> str:
    """The spread over seeds, else the interval, in percentage points.

    Example:
        >>> uncertainty_in_points(Estimate(-0.02, -0.05, 0.01)), uncertainty_in_points(Estimate(0.1, spread=0.007))
        ('−5.0 to +1.0', '± 0.7')
    """
    if gap.spread is not None:
        return f"± {100 * gap.spread:.1f}"
    if gap.low is None or gap.high is None:
        return ""
    return f"{points(gap.low)} to {points(gap.high)}"


def class_name(names: Mapping[int, str], label: int) -> str:
    """A class by its name, with its number where two classes have the same name.

    Example:
        >>> names = {0: "cat", 1: "crane", 2: "crane"}
        >>> [class_name(names, label) for label in (0, 1, 3)]
        ['cat', 'crane (1)', 'class 3']
    """
    name = names.get(label)
    if name is None:
        return f"class {label}"
    return name if list(names.values()).count(name) == 1 else f"{name} ({label})"


def judgement(change: Judgement, direction: Direction) -> str:
    """A judgement in one or two words."""
    if direction == "retain":
        words = {"better": "closer", "worse": "further away"}
    else:
        words = {"better": "better", "worse": "worse"}
    return {**words, "unclear": "no clear difference", "not judged": "not judged"}[change]


def direction(name: Direction) -> str:
    """Which way is better, in words."""
    return DIRECTION_WORDS[name]


def gap_words(gap: Estimate) -> str:
    """Whether a gap to the retain model is larger than its interval."""
    if not gap.has_interval:
        return "no interval"
    return "clear gap" if excludes_zero(gap) else "no clear gap"


def seconds(value: float) -> str:
    """A duration.

    Example:
        >>> seconds(0.25), seconds(42.0), seconds(3725.0)
        ('0.25 s', '42 s', '1 h 2 min')
    """
    if value < 10:
        return f"{value:.2f} s"
    if value < 120:
        return f"{value:.0f} s"
    minutes = round(value / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def memory(num_bytes: int) -> str:
    """An amount of memory.

    Example:
        >>> memory(3 * 1024**3)
        '3.0 GiB'
    """
    power = min(int(math.log(num_bytes, 1024)), len(_UNITS) - 1) if num_bytes > 0 else 0
    return f"{num_bytes / 1024**power:.1f} {_UNITS[power]}" if power else f"{num_bytes} B"


def plural(count: int, noun: str) -> str:
    """A count with its noun.

    Example:
        >>> plural(1, "run"), plural(3, "run")
        ('1 run', '3 runs')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
