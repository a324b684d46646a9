import numpy as np
import pytest

from reference.metric_twins import tug_of_war_by_hand
from stable_forgetting.errors import DataError
from stable_forgetting.evaluation.classification import accuracy, per_class_accuracy, tug_of_war

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
