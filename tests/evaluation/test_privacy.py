import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from reference.metric_twins import auc_by_pairs
from stable_forgetting.errors import DataError
from stable_forgetting.evaluation.privacy import auc_of_lower, membership_auc

LOSSES = st.lists(st.integers(0, 4).map(float), min_size=1, max_size=10)


@settings(deadline=None)
@given(LOSSES, LOSSES)
def test_equals_slow_twin_and_scikit_learn(members, nonmembers):
    auc = membership_auc(members, nonmembers)
    assert auc == pytest.approx(auc_by_pairs(members, nonmembers))
    is_member = [1] * len(members) + [0] * len(nonmembers)
    assert auc == pytest.approx(roc_auc_score(is_member, -np.array(members + nonmembers)))


def test_forget_set_is_the_positive_side():
    assert membership_auc([0.1, 0.2], [5.0, 6.0]) == 1.0
    assert membership_auc([5.0, 6.0], [0.1, 0.2]) == 0.0
    assert membership_auc([1.0, 2.0], [1.0, 2.0]) == 0.5


def test_many_resamples_at_once():
    generator = np.random.default_rng(0)
    members, nonmembers = generator.integers(5, size=(6, 7)) * 1.0, generator.integers(5, size=(6, 9)) * 1.0
    expected = [auc_by_pairs(first, second) for first, second in zip(members, nonmembers, strict=True)]
    np.testing.assert_allclose(auc_of_lower(members, nonmembers), expected)


def test_empty_side():
    with pytest.raises(DataError, match="no losses of non-members"):
        membership_auc([1.0], [])
