"""What membership attacks look at: one score per example, low where it looks like a member (seen in training).

Members are the forget set and the positive side of every AUC; non-members are the holdout set. All scores have the
sense of the loss: P(a member's score is lower) = AUC, see `membership_auc`. N = examples, n = labels of one.
"""

from __future__ import annotations

import numpy as np

from stable_forgetting.errors import DataError
from stable_forgetting.evaluation.likelihood import Ints, LikelihoodScores, TokenScores
from stable_forgetting.evaluation.privacy import auc_of_lower
from stable_forgetting.evaluation.statistics import Floats
from stable_forgetting.evaluation.text import Compat, num_labels_without_last
from stable_forgetting.evaluation.tofu import TINY

MIN_K_SHARE = 0.4
"""Share of the labels that Min-K looks at: 40 %, as in MUSE and open-unlearning."""

_LEAST_VARIANCE = 1e-6
"""Floor of the variance in Min-K++, in squared nats: a model that is certain has none, and would divide by 0."""


def min_k(scores: LikelihoodScores, *, share: float = MIN_K_SHARE, compat: Compat | None = None) -> Floats:
    """Min-K: minus the mean log-probability of the labels that are least likely, (N,), in nats.

    Shi et al. 2024, "Detecting pretraining data from large language models". A member has few labels that surprise the
    model. At 0 or above, low for members.

    Args:
        scores: Likelihood with values of each label.
        share: Share of the labels, from 0 to 1; floor(share · n) of them are taken, at least one.
        compat: ``"open-unlearning"`` leaves the last label out.

    Raises:
        DataError: There are no values of each label, or an example has none that is left.
    """
    return -_mean_of_lowest(_tokens(scores).log_probability.astype(np.float64), scores, share, compat)


def min_k_plus_plus(scores: LikelihoodScores, *, share: float = MIN_K_SHARE, compat: Compat | None = None) -> Floats:
    """Min-K++: as `min_k`, each log-probability standardised by mean and deviation under the model's own distribution.

    Zhang et al. 2024, "Min-K%++: improved baseline for detecting pre-training data from large language models": a label
    counts as surprising in comparison with what else the model would say there. In standard deviations, of either sign;
    low for members. A variance below 1e-6 is taken as 1e-6, as open-unlearning does.

    Args:
        scores: Likelihood with values of each label.
        share: Share of the labels, from 0 to 1.
        compat: ``"open-unlearning"`` leaves the last label out.

    Raises:
        DataError: There are no values of each label, or an example has none that is left.
    """
    tokens = _tokens(scores)
    deviation = np.sqrt(tokens.variance.astype(np.float64).clip(min=_LEAST_VARIANCE))
    standardized = (tokens.log_probability.astype(np.float64) - tokens.mean) / deviation
    return -_mean_of_lowest(standardized, scores, share, compat)


def zlib_score(nll: Floats, compressed_bytes: Ints) -> Floats:
    """NLL per label over the length of the answer's text after zlib, (N,), in nats per byte.

    Carlini et al. 2021, "Extracting training data from large language models". At 0 or above, low for members.

    Args:
        nll: l, NLL per label, (N,).
        compressed_bytes: (N,), at least 8 by the format of zlib.
    """
    return nll / compressed_bytes


def privacy_leakage(members: Floats, nonmembers: Floats, *, compat: Compat | None = None) -> Floats:
    """100 (A − A_retain) / A_retain with A = 1 − AUC, in percent.

    Shi et al. 2024, "MUSE: machine unlearning six-way evaluation for language models". MUSE counts the AUC from the
    other side than this package: there a forget set that is still known has the AUC 0. So −100 means fully a member
    still, 0 as the retain model, above 0 that the forget set stands out by being unlikely (over-unlearned).

    Args:
        members: Min-40 % of the forget examples under the model and the retain model, (n, 2) or (R, n, 2).
        nonmembers: The same of the holdout examples.
        compat: ``"open-unlearning"`` adds 1e-10 to the denominator.

    Returns:
        A single number or (R,); not finite where the retain model separates the two sets fully (A_retain = 0).
    """
    own, retain = (1 - auc_of_lower(members[..., column], nonmembers[..., column]) for column in (0, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(100 * (own - retain) / (retain + (TINY if compat == "open-unlearning" else 0.0)))


def _tokens(scores: LikelihoodScores) -> TokenScores:
    if scores.tokens is None:
        raise DataError("Min-K needs the log-probability of each label, which was not kept. Score the model again.")
    return scores.tokens


def _mean_of_lowest(values: Floats, scores: LikelihoodScores, share: float, compat: Compat | None) -> Floats:
    """Mean of each example's lowest values, (N,); values are of each label, (sum of n,)."""
    counts = scores.num_labels
    example = np.repeat(np.arange(len(counts)), counts)
    if compat == "open-unlearning":
        is_kept = np.ones(len(values), dtype=bool)
        is_kept[np.cumsum(counts) - 1] = False
        values, example, counts = values[is_kept], example[is_kept], num_labels_without_last(scores)
    num_lowest = np.maximum(1, (counts * share).astype(np.int64))
    order = np.lexsort((values, example))
    place = np.arange(len(values)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = order[place < np.repeat(num_lowest, counts)]
    return np.bincount(example[chosen], weights=values[chosen], minlength=len(counts)) / num_lowest
