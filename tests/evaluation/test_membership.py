import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from reference.metric_twins import mean_of_lowest
from stable_forgetting.errors import DataError
from stable_forgetting.evaluation.likelihood import LikelihoodScores, TokenScores
from stable_forgetting.evaluation.membership import min_k, min_k_plus_plus, privacy_leakage, zlib_score
from stable_forgetting.evaluation.privacy import membership_auc


def make_likelihood(counts, *, seed=0, loss=1.0):
    generator = np.random.default_rng(seed)
    counts = np.array(counts)
    total = int(counts.sum())
    log_probability = (-loss * generator.exponential(size=total)).astype(np.float32)
    zeros = np.zeros(len(counts), dtype=np.int64)
    tokens = TokenScores(
        log_probability,
        mean=-generator.uniform(0.5, 2, size=total).astype(np.float32),
        variance=generator.uniform(0, 2, size=total).astype(np.float32) * (generator.random(total) < 0.8),
    )
    starts = np.cumsum(counts) - counts
    return LikelihoodScores(
        -np.add.reduceat(log_probability, starts), counts, zeros, zeros, zeros, zeros, tokens=tokens
    )


def stretches(scores, values):
    return [row.tolist() for row in np.split(values.astype(float), np.cumsum(scores.num_labels)[:-1])]


def standardized(scores):
    tokens = scores.tokens
    return (tokens.log_probability.astype(float) - tokens.mean) / np.sqrt(
        np.maximum(tokens.variance.astype(float), 1e-6)
    )


@pytest.mark.parametrize("share", [0.2, 0.4, 1.0])
@pytest.mark.parametrize("compat", [None, "open-unlearning"])
def test_min_k_and_min_k_plus_plus_equal_slow_twins(share, compat):
    scores = make_likelihood([2, 9, 3, 5, 30])
    for attack, values in ((min_k, scores.tokens.log_probability), (min_k_plus_plus, standardized(scores))):
        rows = stretches(scores, values)
        if compat:
            rows = [row[:-1] for row in rows]
        expected = [-mean_of_lowest(row, share) for row in rows]
        np.testing.assert_allclose(attack(scores, share=share, compat=compat), expected, rtol=1e-12)


def test_min_k_of_all_labels_is_the_loss():
    scores = make_likelihood([2, 9, 3])
    np.testing.assert_allclose(min_k(scores, share=1.0), scores.nll, rtol=1e-6)


def test_compat_needs_a_label_beside_the_last():
    with pytest.raises(DataError, match="example 1 has only one"):
        min_k(make_likelihood([2, 1, 3]), compat="open-unlearning")


def test_min_k_needs_values_of_labels():
    scores = make_likelihood([2, 3])
    bare = LikelihoodScores(*[getattr(scores, name) for name in ("nll_sum", "num_labels")], *[scores.num_correct] * 4)
    with pytest.raises(DataError, match="was not kept"):
        min_k(bare)


def test_long_text_lowers_the_zlib_score():
    assert zlib_score(np.array([1.0, 1.0]), np.array([10, 20])).tolist() == [0.1, 0.05]


@pytest.mark.parametrize("attack", [min_k, min_k_plus_plus])
def test_known_examples_are_members(attack):
    members, others = make_likelihood([5] * 8, loss=0.01), make_likelihood([5] * 9, seed=1, loss=9.0)
    auc = membership_auc(attack(members), attack(others))
    is_member = [1] * 8 + [0] * 9
    assert auc == pytest.approx(roc_auc_score(is_member, -np.concatenate([attack(members), attack(others)])))
    assert auc > 0.9


def test_privacy_leakage_has_the_sign_of_muse():
    retain_members, others = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.5, 2.5, 3.5, 4.5])
    nonmembers = np.stack([others, others], axis=1)

    def leakage(members, compat=None):
        return float(privacy_leakage(np.stack([members, retain_members], axis=1), nonmembers, compat=compat))

    assert leakage(np.zeros(4)) == -100.0
    assert leakage(retain_members) == 0.0
    assert leakage(np.full(4, 9.0)) > 0
    other_side = 1 - membership_auc(retain_members, others)
    assert leakage(np.full(4, 9.0)) == pytest.approx(100 * (1 - other_side) / other_side)
    assert -100 < leakage(np.zeros(4), compat="open-unlearning") < -99.99999


def test_privacy_leakage_without_a_base_to_divide_by():
    members, nonmembers = np.zeros((3, 2)), np.ones((3, 2))
    assert not np.isfinite(privacy_leakage(members, nonmembers))
