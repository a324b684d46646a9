"""Attacks that learn from examples: known answers, slow twins, order, ties, and sides that are too small."""

import numpy as np
import pytest

from reference.metric_twins import cross_validated_by_hand, regression_by_hand
from stable_forgetting.errors import DataError
from stable_forgetting.evaluation.trained_attacks import (
    NUM_FOLDS,
    cross_validated_calls,
    draw_balanced,
    regression_calls,
    svc_calls,
)

LOW, HIGH = np.array([0.0, 0.1, 0.2, 0.3]), np.array([0.8, 0.9, 1.0, 1.1])
CALLERS = [regression_calls, svc_calls]


def samples(seed=0, count=25, shift=0.7):
    generator = np.random.default_rng(seed)
    return (
        generator.normal(size=count),
        generator.normal(shift, size=count),
        generator.normal(shift / 2, size=2 * count),
    )


@pytest.mark.parametrize("calls", CALLERS)
def test_separate_sides_are_told_apart_whichever_is_higher(calls):
    judged = np.array([0.0, 0.25, 0.85, 1.1])
    assert calls(LOW, HIGH, judged).tolist() == [1, 1, 0, 0]
    assert calls(HIGH, LOW, judged).tolist() == [0, 0, 1, 1]


def test_a_support_vector_machine_sees_what_no_threshold_does():
    """Members in the middle, non-members on both sides."""
    members, nonmembers = np.full(20, 0.5), np.repeat([-2.0, 3.0], 10)
    assert svc_calls(members, nonmembers, np.array([-2.0, 0.5, 3.0])).tolist() == [0, 1, 0]


@pytest.mark.parametrize("calls", CALLERS)
@pytest.mark.parametrize("same", [[0.1] * 5, [1.0, 2.0, 4.0], [0.0], [-1e4]])
def test_equal_sides_leave_the_attack_undecided(calls, same):
    assert calls(np.array(same), np.array(same), np.array([same[0], 0.3])).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("seed", range(3))
def test_the_regression_equals_its_slow_twin(seed):
    members, nonmembers, judged = samples(seed)
    assert regression_calls(members, nonmembers, judged).tolist() == regression_by_hand(members, nonmembers, judged)


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_the_unit_of_the_value_does_not_matter(factor):
    members, nonmembers, judged = samples()
    one = regression_calls(members, nonmembers, judged)
    assert 0 < one.mean() < 1
    assert regression_calls(factor * members, factor * nonmembers, factor * judged).tolist() == one.tolist()


def test_one_enormous_loss_does_not_stop_the_regression():
    members, nonmembers, judged = samples()
    members[0] = 1e8
    assert set(regression_calls(members, nonmembers, judged)) <= {0.0, 0.5, 1.0}


def test_as_many_are_drawn_of_both_sides_in_any_order():
    members, nonmembers = np.arange(50.0), np.arange(100.0, 130.0)
    first, second = draw_balanced(members, nonmembers, seed=0, limit=40)
    assert len(first) == len(second) == len(set(first)) == 30
    assert set(first) <= set(members)
    assert second.tolist() == nonmembers.tolist()
    again = draw_balanced(members[::-1], nonmembers[::-1], seed=0, limit=40)
    assert [side.tolist() for side in again] == [first.tolist(), second.tolist()]
    assert len(draw_balanced(members, nonmembers, seed=0, limit=7)[0]) == 7
    assert draw_balanced(members, nonmembers, seed=1, limit=40)[0].tolist() != first.tolist()


def test_nothing_is_drawn_of_an_empty_side():
    with pytest.raises(DataError, match="no values of non-members"):
        draw_balanced(np.ones(3), np.array([]), seed=0)


def test_cross_validation_equals_its_slow_twin():
    members, nonmembers, _ = samples(count=12)
    found = cross_validated_calls(members, nonmembers, seed=4)
    generator = np.random.default_rng(4)
    folds = [(generator.permutation(12) % NUM_FOLDS).tolist() for _ in range(2)]
    expected = cross_validated_by_hand(members.tolist(), nonmembers.tolist(), folds)
    assert [side.tolist() for side in found] == expected


def test_cross_validation_judges_nobody_by_what_it_learned_of_him():
    """Members 0 and 1, non-members between them: a regression on one of each has its line in their middle.

    The one that learns from member 1 takes large values for members and calls 0 a non-member; the one that learns from
    member 0 takes small ones and calls 1 a non-member. An attack that has seen member 1 finds it.
    """
    members, nonmembers = np.array([0.0, 1.0]), np.array([0.3, 0.4])
    for seed in range(4):
        called, wrongly_called = cross_validated_calls(members, nonmembers, seed=seed)
        assert called.tolist() == wrongly_called.tolist() == [0, 0]
    assert regression_calls(members, nonmembers, members).tolist() == [0, 1]


@pytest.mark.parametrize("sides", [([1.0], [2.0]), ([1.0, 2.0], [1.0, 2.0, 3.0])])
def test_cross_validation_needs_two_of_each(sides):
    with pytest.raises(DataError, match="same size of at least 2"):
        cross_validated_calls(*map(np.array, sides), seed=0)
