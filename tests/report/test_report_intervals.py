"""The rule by which a difference may be called one."""

import math

import pytest

from stable_forgetting.intervals import Estimate, average, difference, excludes_zero, judge, wilson


def around(value: float, half: float) -> Estimate:
    return Estimate(value, value - half, value + half)


def test_symmetric_intervals_combine_like_standard_errors():
    gap = difference(around(0.9, 0.03), around(0.5, 0.04))
    assert gap.value == pytest.approx(0.4)
    assert (gap.low, gap.high) == (pytest.approx(0.35), pytest.approx(0.45))


def test_uneven_intervals_use_the_side_that_faces_the_other_value():
    gap = difference(Estimate(0.9, 0.87, 0.99), Estimate(0.5, 0.3, 0.54))
    assert gap.low == pytest.approx(0.4 - math.hypot(0.03, 0.04))
    assert gap.high == pytest.approx(0.4 + math.hypot(0.09, 0.2))


@pytest.mark.parametrize(
    ("after", "direction", "expected"),
    [
        (0.9, "higher", "better"),
        (0.9, "lower", "worse"),
        (0.1, "higher", "worse"),
        (0.1, "lower", "better"),
        (0.53, "higher", "unclear"),
        (0.47, "lower", "unclear"),
    ],
)
def test_direction_decides_only_beyond_the_interval(after, direction, expected):
    assert judge(around(after, 0.05), around(0.5, 0.05), direction, None) == expected


@pytest.mark.parametrize(
    ("after", "expected"), [(0.12, "better"), (0.0, "better"), (0.49, "unclear"), (0.95, "worse"), (-0.6, "worse")]
)
def test_distance_to_the_retain_model_counts_on_both_sides(after, expected):
    assert judge(around(after, 0.02), around(0.5, 0.02), "retain", around(0.1, 0.02)) == expected


def test_nothing_is_judged_without_intervals_or_retain_model():
    assert judge(Estimate(0.9), around(0.1, 0.01), "higher", None) == "not judged"
    assert judge(around(0.9, 0.01), around(0.1, 0.01), "retain", None) == "not judged"
    assert judge(around(0.9, 0.01), around(0.1, 0.01), "retain", Estimate(0.9)) == "not judged"
    assert judge(Estimate(math.inf, 1.0, math.inf), around(0.1, 0.01), "lower", None) == "not judged"


def test_an_interval_that_ends_at_zero_is_no_difference():
    assert not excludes_zero(Estimate(0.1, 0.0, 0.2))
    assert excludes_zero(Estimate(0.1, 0.01, 0.2))
    assert not excludes_zero(Estimate(0.1))


def test_mean_over_seeds_has_their_deviation_and_both_kinds_of_uncertainty():
    merged = average([Estimate(value, value - 0.03, value + 0.06, 40) for value in (0.4, 0.5, 0.6)])
    over_seeds = 4.303 * 0.1 / math.sqrt(3)
    assert merged.value == pytest.approx(0.5)
    assert merged.spread == pytest.approx(0.1)
    assert (merged.num_runs, merged.count) == (3, 40)
    assert merged.low == pytest.approx(0.5 - math.hypot(0.03, over_seeds))
    assert merged.high == pytest.approx(0.5 + math.hypot(0.06, over_seeds))


def test_mean_has_no_interval_if_one_run_has_none():
    merged = average([Estimate(0.4, 0.3, 0.5, 40), Estimate(0.5, count=39)])
    assert (merged.low, merged.high, merged.count) == (None, None, None)
    assert merged.spread is not None


def test_mean_of_nothing_raises():
    with pytest.raises(ValueError, match="not available"):
        average([])


def test_difference_of_two_shares_is_newcombe_s_interval():
    """His first example, 56 of 70 against 48 of 80: 0.2000, 0.0524 to 0.3339."""
    gap = difference(wilson(56 / 70, 70), wilson(48 / 80, 80))
    assert (gap.value, gap.low, gap.high) == (
        pytest.approx(0.2),
        pytest.approx(0.0524, abs=5e-5),
        pytest.approx(0.3339, abs=5e-5),
    )
