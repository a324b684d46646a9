"""Membership inference: can the forget set be told from unseen data?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from stable_forgetting.evaluation.statistics import Floats, as_sample


def membership_auc(member_losses: Sequence[float] | Floats, nonmember_losses: Sequence[float] | Floats) -> float:
    """Loss attack: probability that a member has a lower loss than a non-member, a tie counting half.

    Members (the positive side) are the forget set, non-members unseen data of the same kind. Range 0 to 1: 1 means
    that the forget set is still known perfectly, 0.5 that the loss tells nothing, below 0.5 that the forget set stands
    out by being known *worse* than unseen data, which gives it away just as well.

    Args:
        member_losses: NLL per label of each forget example.
        nonmember_losses: NLL per label of each holdout example.

    Raises:
        DataError: A side is empty or has values that are not finite.

    Example:
        >>> membership_auc([0.1, 0.2], [1.0, 2.0]), membership_auc([1.0], [1.0])
        (1.0, 0.5)
    """
    members = as_sample(member_losses, what="losses of members")
    nonmembers = as_sample(nonmember_losses, what="losses of non-members")
    return float(auc_of_lower(members, nonmembers))


def auc_of_lower(members: Floats, nonmembers: Floats) -> Floats:
    """The same over many resamples at once, from ranks: (R, n) and (R, m) to (R,).

    The rank sum of the members counts the pairs in which the member is higher (Mann and Whitney).
    """
    num_members, num_nonmembers = members.shape[-1], nonmembers.shape[-1]
    ranks = stats.rankdata(np.concatenate([members, nonmembers], axis=-1), axis=-1)
    pairs_higher = ranks[..., :num_members].sum(axis=-1) - num_members * (num_members + 1) / 2
    return np.asarray(1 - pairs_higher / (num_members * num_nonmembers))
