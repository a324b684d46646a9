import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.metric_twins import h_by_hand, js_by_hand, tug_of_war_by_hand
from stable_forgetting.errors import DataError
from stable_forgetting.evaluation.classification import (
    accuracy,
    h_score,
    js_divergence,
    per_class_accuracy,
    tug_of_war,
    tug_of_war_interval,
)

PREDICTED, LABEL = np.array([0, 1, 1, 2, 0]), np.array([0, 0, 1, 2, 2])


def test_accuracy():
    assert accuracy(PREDICTED, LABEL) == 0.6
    assert per_class_accuracy(PREDICTED, LABEL) == {0: 0.5, 1: 1.0, 2: 0.5}


@pytest.mark.parametrize(("predicted", "label"), [([], []), ([1, 1], [1])])
def test_accuracy_refuses_empty_and_unequal_columns(predicted, label):
    with pytest.raises(DataError, match="at least one"):
        accuracy(np.array(predicted), np.array(label))


def test_tug_of_war_equals_slow_twin():
    generator = np.random.default_rng(0)
    names = ("forget", "retain", "retain_test")
    own = {name: generator.integers(2, size=9).tolist() for name in names}
    reference = {name: generator.integers(2, size=9).tolist() for name in names}
    pairs = [np.stack([own[name], reference[name]], axis=1).astype(float) for name in names]
    assert tug_of_war(*pairs) == pytest.approx(tug_of_war_by_hand(own, reference))


def test_tug_of_war_is_one_for_equal_accuracies_and_zero_for_opposite_ones():
    right, wrong = np.ones((4, 1)), np.zeros((4, 1))
    equal, opposite = np.hstack([right, right]), np.hstack([right, wrong])
    assert tug_of_war(equal, equal, equal) == 1
    assert tug_of_war(opposite, equal, equal) == 0


def predictions(generator, count, gap):
    """Images on which both models are right or wrong, but for a share that one of them has right."""
    kinds = generator.choice(3, size=count, p=[gap + 0.1, 0.1, 0.8 - gap])
    return np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])[kinds]


@pytest.mark.parametrize(("gaps", "truth"), [((0, 0, 0), 1.0), ((0.2, 0, 0), 0.8), ((0.072, 0.072, 0.072), 0.8)])
def test_the_interval_of_tug_of_war_covers_the_truth_in_about_95_percent(gaps, truth):
    generator, covered = np.random.default_rng(0), 0
    for _ in range(150):
        pairs = [predictions(generator, count, gap) for count, gap in zip((60, 100, 100), gaps, strict=True)]
        low, high = tug_of_war_interval(*pairs, num_resamples=300, seed=0)
        assert 0 <= low <= tug_of_war(*pairs) <= high <= 1
        covered += low <= truth <= high
    assert 0.9 <= covered / 150 <= 1


def test_the_interval_of_tug_of_war_at_its_limits():
    equal, opposite = np.ones((9, 2)), np.tile([1.0, 0.0], (9, 1))
    options = {"num_resamples": 100, "seed": 0}
    assert tug_of_war_interval(equal, equal, equal, **options) == (1, 1)
    assert tug_of_war_interval(opposite, equal, equal, **options) == (0, 0)
    assert tug_of_war_interval(equal, equal, equal[:1], **options) is None


@pytest.mark.parametrize(
    ("own", "base", "kept", "expected"),
    [
        ([0, 0], [1, 1], [1, 1], 1.0),
        ([0, 0], [1, 1], [1, 0], 2 / 3),  # D = 1, R = 1/2
        ([1, 0], [1, 1], [1, 0], 1 / 2),
        ([1, 1], [1, 1], [1, 1], 0.0),
        ([1, 1], [0, 1], [1, 1], 0.0),  # the accuracy rose
        ([1, 1], [1, 1], [0, 0], 0.0),
    ],
)
def test_h_score_by_hand(own, base, kept, expected):
    assert h_by_hand(own, base, kept) == pytest.approx(expected)
    assert h_score(np.stack([own, base], axis=1), np.array(kept)) == pytest.approx(expected)


def test_h_score_of_many_resamples_at_once():
    generator = np.random.default_rng(0)
    forget, kept = generator.integers(2, size=(20, 5, 2)), generator.integers(2, size=(20, 7))
    expected = [h_by_hand(*pairs.T.tolist(), row.tolist()) for pairs, row in zip(forget, kept, strict=True)]
    assert min(expected) == 0 < max(expected) < 1
    np.testing.assert_allclose(h_score(forget, kept), expected)


SHARES = st.lists(st.integers(0, 5), min_size=3, max_size=3).filter(any)


@settings(deadline=None)
@given(SHARES, SHARES)
def test_js_divergence_equals_its_slow_twin_also_for_probabilities_of_zero(first, second):
    p, q = (np.array([shares]) / sum(shares) for shares in (first, second))
    logs = [np.log(np.maximum(each, 1e-300)).clip(min=-1e4) for each in (p, q)]
    value = js_divergence(*logs)[0]
    assert value == pytest.approx(js_by_hand(p[0], q[0]), abs=1e-12)
    assert 0 <= value <= math.log(2)
    assert value == js_divergence(*logs[::-1])[0]


def test_js_divergence_of_equal_and_of_separate_distributions():
    certain = np.array([[0.0, -1e4], [-1e4, 0.0]])
    assert js_divergence(certain, certain).tolist() == [0.0, 0.0]
    assert js_divergence(certain, certain[::-1]).tolist() == [math.log(2)] * 2
    half = np.log([[0.5, 0.5]])
    expected = 0.5 * math.log(1 / 0.75) + 0.25 * math.log(0.5 / 0.75) + 0.25 * math.log(0.5 / 0.25)
    assert js_divergence(certain[:1], half)[0] == pytest.approx(expected)


def test_js_divergence_needs_the_same_classes():
    with pytest.raises(DataError, match=r"\(2, 3\) and \(2, 4\)"):
        js_divergence(np.zeros((2, 3)), np.zeros((2, 4)))
