import math

import numpy as np
import pytest
from scipy.stats import hmean

from reference.metric_twins import ks_p_of_equal_sizes, truth_ratio_by_hand, utility_by_hand
from stable_forgetting.evaluation.statistics import bootstrap_interval, ks_test
from stable_forgetting.evaluation.tofu import (
    forget_truth_ratio_score,
    model_utility,
    normalized_probability,
    truth_ratio,
    utility_kept,
    utility_truth_ratio_score,
)

COUNTS = np.array([1, 3, 2, 5])


@pytest.fixture
def losses():
    generator = np.random.default_rng(0)
    return generator.uniform(0.1, 4, size=4), generator.uniform(0.1, 4, size=COUNTS.sum())


@pytest.mark.parametrize("aggregation", ["geometric", "arithmetic"])
def test_truth_ratio_equals_slow_twin(losses, aggregation):
    right, wrong = losses
    stretches = np.split(wrong, np.cumsum(COUNTS)[:-1])
    expected = [truth_ratio_by_hand(r, list(w), aggregation) for r, w in zip(right, stretches, strict=True)]
    np.testing.assert_allclose(truth_ratio(right, wrong, COUNTS, aggregation=aggregation), expected, rtol=1e-13)


def test_the_two_aggregations_differ_where_wrong_answers_do():
    right, wrong, counts = np.array([1.0]), np.array([1.0, 3.0]), np.array([2])
    geometric, arithmetic = (
        truth_ratio(right, wrong, counts, aggregation=name)[0] for name in ("geometric", "arithmetic")
    )
    assert geometric == pytest.approx(math.exp(-1), abs=1e-9)
    assert arithmetic == pytest.approx((1 + math.exp(-2)) / 2, abs=1e-9)


def test_a_right_answer_without_probability_keeps_the_ratio_finite():
    ratio = truth_ratio(np.array([1e4]), np.array([0.0]), np.array([1]), aggregation="geometric")
    assert ratio[0] == pytest.approx(1e10)


def test_scores_of_truth_ratios_point_the_right_way():
    ratios = np.array([0.0, 0.25, 1.0, 4.0])
    assert forget_truth_ratio_score(ratios).tolist() == [0.0, 0.25, 1.0, 0.25]
    assert utility_truth_ratio_score(ratios).tolist() == [1.0, 0.75, 0.0, 0.0]
    shifted = forget_truth_ratio_score(np.array([2.0]), compat="open-unlearning")
    assert shifted[0] == 1 / (2 + 1e-10)
    assert shifted[0] < 0.5


def test_normalized_probability_takes_the_share_of_all_answers():
    right, wrong = np.array([0.2, 0.3]), np.array([0.1, 0.1, 0.3])
    np.testing.assert_allclose(normalized_probability(right, wrong, np.array([2, 1])), [0.5, 0.5], atol=1e-9)


def test_model_utility_equals_slow_twin_and_scipy():
    generator = np.random.default_rng(1)
    sets = [generator.uniform(0.01, 1, size=(size, 3)) for size in (7, 4, 5)]
    parts = [float(column.mean()) for columns in sets for column in columns.T]
    assert float(model_utility(*sets)) == pytest.approx(utility_by_hand(parts), rel=1e-13)
    assert float(model_utility(*sets)) == pytest.approx(hmean(parts), rel=1e-13)
    sets[1][:, 2] = 0
    assert float(model_utility(*sets)) == 0.0


def test_model_utility_of_many_resamples():
    generator = np.random.default_rng(2)
    sets = [generator.uniform(0, 1, size=(6, size, 3)) for size in (7, 4)]
    expected = [float(model_utility(sets[0][row], sets[1][row])) for row in range(6)]
    np.testing.assert_allclose(model_utility(*sets), expected)


def test_utility_kept_compares_the_same_questions():
    generator = np.random.default_rng(4)
    base = [generator.uniform(0.1, 1, size=(size, 3)) for size in (7, 4, 5)]
    own = [columns * 0.9 for columns in base]
    both = [np.concatenate(pair, axis=1) for pair in zip(own, base, strict=True)]
    assert float(utility_kept(*both)) == pytest.approx(0.9)
    interval = bootstrap_interval(*both, statistic=utility_kept, num_resamples=50, seed=0)
    assert (interval.low, interval.high) == (pytest.approx(0.9), pytest.approx(0.9))
    swapped = [np.concatenate(pair, axis=1) for pair in zip(base, own, strict=True)]
    assert float(utility_kept(*swapped)) == pytest.approx(1 / 0.9)
    both[2][:, 3] = 0
    assert not np.isfinite(utility_kept(*both))


def test_inverted_ratios_give_the_same_p():
    generator = np.random.default_rng(3)
    own, retain = generator.lognormal(size=40), generator.lognormal(1, size=40)
    assert ks_test(own, retain).p == pytest.approx(ks_test(1 / own, 1 / retain).p, rel=1e-12)


@pytest.mark.parametrize(("size", "expected"), [(40, 1.86e-23), (200, 1.94e-119), (400, 1.06e-239)])
def test_p_of_full_separation_is_fixed_by_the_size(size, expected):
    found = ks_test(np.arange(size), np.arange(size) + size)
    assert found.statistic == 1
    assert found.p == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize("shift", [900, 700])
def test_log10_p_goes_on_where_p_is_too_small_for_a_number(shift):
    first, second = list(range(900)), list(range(shift, 900 + shift))
    exact = ks_p_of_equal_sizes(first, second)
    log10 = math.log10(exact.numerator) - math.log10(exact.denominator)
    assert log10 < -250
    assert ks_test(first, second).log10_p == pytest.approx(log10, rel=1e-12)
