from itertools import combinations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from reference.metric_twins import ks_statistic
from stable_forgetting.errors import DataError
from stable_forgetting.evaluation.privacy import auc_of_lower
from stable_forgetting.evaluation.statistics import (
    bootstrap_interval,
    ks_test,
    mean,
    ratio_of_sums,
)
from stable_forgetting.wilson import wilson_interval

NUMBERS = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12)


def test_mean_interval_is_near_the_normal_one():
    values = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap_interval(values, num_resamples=4000, seed=1)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.01)
    assert high == pytest.approx(values.mean() + half, abs=0.01)


def test_no_interval_of_a_ratio_whose_resamples_reach_zero():
    def ratio(above, below):
        with np.errstate(divide="ignore", invalid="ignore"):
            return above.mean(axis=1) / below.mean(axis=1)

    assert bootstrap_interval([1.0, 2.0], [0.0, 1.0], statistic=ratio, num_resamples=200, seed=0) is None
    assert bootstrap_interval([1.0, 2.0], [0.5, 1.0], statistic=ratio, num_resamples=200, seed=0) is not None


def test_covers_the_true_mean_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        low, high = bootstrap_interval(generator.normal(size=50), num_resamples=300, seed=trial)
        hits += low <= 0 <= high
    assert 0.90 <= hits / 300 <= 0.98


def test_ratio_of_sums_weighs_examples_by_their_tokens():
    pairs = np.array([[10.0, 1.0], [10.0, 9.0]])
    assert ratio_of_sums(pairs) == 2.0
    low, high = bootstrap_interval(pairs, statistic=ratio_of_sums, num_resamples=200, seed=0)
    assert (low, high) == (pytest.approx(10 / 9), 10.0)


def test_both_groups_are_resampled():
    """A group of equal values contributes no spread, so each of the two has to show in the interval."""
    spread, fixed = np.arange(20.0), np.full(20, 9.5)
    for groups in ((spread, fixed), (fixed, spread)):
        low, high = bootstrap_interval(*groups, statistic=auc_of_lower, num_resamples=500, seed=0)
        assert low < 0.4
        assert high > 0.6


def test_rows_stay_together():
    values = np.random.default_rng(0).normal(size=30)
    pairs = np.stack([values, -values], axis=1)
    interval = bootstrap_interval(pairs, statistic=lambda rows: mean(rows.sum(axis=-1)), num_resamples=50, seed=0)
    assert interval == (0, 0)


def test_order_changes_nothing_and_the_seed_does():
    values = np.random.default_rng(0).normal(size=40)
    one = bootstrap_interval(values, num_resamples=200, seed=0)
    assert bootstrap_interval(values[::-1], num_resamples=200, seed=0) == one
    assert bootstrap_interval(values, num_resamples=200, seed=1) != one


def test_blocks_have_the_same_distribution_as_one_draw(monkeypatch):
    values = np.random.default_rng(0).normal(size=40)
    whole = bootstrap_interval(values, num_resamples=2000, seed=0)
    monkeypatch.setattr("stable_forgetting.evaluation.statistics._BLOCK", 400)
    np.testing.assert_allclose(bootstrap_interval(values, num_resamples=2000, seed=0), whole)


@pytest.mark.parametrize(("right", "count"), [(0, 1), (0, 50), (3, 10), (49, 50), (50, 50), (871, 1000)])
def test_interval_of_a_share_is_the_score_interval(right, count):
    known = binomtest(right, count).proportion_ci(method="wilson")
    assert wilson_interval(right / count, count) == pytest.approx((known.low, known.high), abs=1e-7)


def test_degenerate_samples():
    assert bootstrap_interval([1.0], num_resamples=100, seed=0) is None
    assert bootstrap_interval([1.0], [1.0, 2.0], statistic=auc_of_lower, num_resamples=100, seed=0) is None
    assert bootstrap_interval([0.5] * 8, num_resamples=100, seed=0) == (0.5, 0.5)
    with pytest.raises(DataError, match="no values"):
        bootstrap_interval([], num_resamples=100, seed=0)
    with pytest.raises(DataError, match=r"1 of 3 values are not finite .first: number 2"):
        bootstrap_interval([0.0, 1.0, np.nan], num_resamples=100, seed=0)


@settings(deadline=None)
@given(NUMBERS, NUMBERS)
@example([0.0] * 5, [0.0] * 4 + [1.0])
def test_ks_statistic_equals_slow_twin(first, second):
    assert ks_test(first, second).statistic == pytest.approx(ks_statistic(first, second))


@pytest.mark.parametrize(("first_size", "second_size"), [(4, 4), (3, 5), (2, 6)])
def test_ks_p_equals_the_share_of_all_orders(first_size, second_size):
    """The exact p by trying every way in which the values could have been dealt to the two samples."""
    total = first_size + second_size
    distances = []
    for chosen in combinations(range(total), first_size):
        rest = [value for value in range(total) if value not in chosen]
        distances.append((ks_statistic(chosen, rest), chosen, rest))
    for statistic, chosen, rest in distances[::5]:
        share = np.mean([distance >= statistic - 1e-9 for distance, _, _ in distances])
        assert ks_test(chosen, rest).p == pytest.approx(share)


@pytest.mark.parametrize(("count", "p"), [(40, 1.86e-23), (200, 1.94e-119), (400, 1.06e-239)])
def test_full_separation_gives_a_p_that_the_size_alone_fixes(count, p):
    result = ks_test(np.arange(count), np.arange(count) + 1000)
    assert result.p == pytest.approx(p, rel=5e-3)
    assert result.log10_p == pytest.approx(np.log10(p), abs=2e-3)
    assert (result.statistic, result.counts) == (1.0, (count, count))


def test_ks_is_invariant_under_monotone_maps():
    generator = np.random.default_rng(0)
    first, second = generator.uniform(0.5, 2, size=30), generator.uniform(0.6, 2.2, size=25)
    assert ks_test(1 / first, 1 / second).p == pytest.approx(ks_test(first, second).p)


def test_ks_of_equal_single_and_tiny_p():
    assert ks_test([1.0, 2.0], [2.0, 1.0]).p == 1.0
    assert ks_test([1.0], [2.0]).p == 1.0
    assert ks_test(np.arange(800), np.arange(800) + 1000).log10_p == pytest.approx(-479.647, abs=0.001)
    assert ks_test(np.arange(800), np.arange(801) + 1000).log10_p == pytest.approx(-307.65, abs=0.01)
