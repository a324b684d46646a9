"""Membership attacks that are trained: a classifier learns from one number per example who was in the training set.

Members are the positive side. A call is 1 for a member, 0 for a non-member, and 0.5 where the attack cannot decide.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stable_forgetting.errors import DataError
from stable_forgetting.evaluation.statistics import Floats, as_sample

ATTACK_LIMIT = 2000
"""Most examples of a side that an attack learns from: the time of a support vector machine grows with their square."""

NUM_FOLDS = 10

_UNDECIDED = 1e-9
"""Decisions closer to 0 are rounding: an attack that sees no difference between the sides decides nothing."""


def draw_balanced(
    members: Floats, nonmembers: Floats, *, seed: int, limit: int = ATTACK_LIMIT
) -> tuple[Floats, Floats]:
    """Equally many of both sides, at most `limit` of each, each sorted: their order before changes nothing.

    Raises:
        DataError: A side is empty or has values that are not finite.
    """
    sides = as_sample(members, what="values of members"), as_sample(nonmembers, what="values of non-members")
    count, generator = min(limit, *map(len, sides)), np.random.default_rng(seed)
    first, second = (np.sort(generator.choice(np.sort(side), size=count, replace=False)) for side in sides)
    return first, second


def regression_calls(members: Floats, nonmembers: Floats, judged: Floats) -> Floats:
    """Calls of a logistic regression: (n,) members and (m,) non-members to learn from, (k,) to judge, to (k,).

    scikit-learn's, with its usual penalty (C = 1). The values are standardised first, so that an attack does not depend
    on their unit; on values much smaller than 1 the penalty would otherwise leave it no slope.
    """
    from sklearn.linear_model import LogisticRegression

    values = np.concatenate([members, nonmembers])
    center, spread = values.mean(), values.std() or 1.0
    return _calls(
        LogisticRegression(max_iter=1000), *[(each - center) / spread for each in (members, nonmembers, judged)]
    )


def svc_calls(members: Floats, nonmembers: Floats, judged: Floats) -> Floats:
    """The same of a support vector machine with radial basis functions exp(−(x − y)²) and C = 3, for probabilities."""
    from sklearn.svm import SVC

    return _calls(SVC(C=3.0, kernel="rbf", gamma=1.0), members, nonmembers, judged)


def cross_validated_calls(members: Floats, nonmembers: Floats, *, seed: int) -> tuple[Floats, Floats]:
    """Calls of logistic regressions that have not seen the example that they judge, for as many of both sides.

    Both sides are divided at random into `NUM_FOLDS` folds, fewer if there are fewer examples; each fold is judged by a
    regression on the others.

    Args:
        members: (n,).
        nonmembers: (n,).
        seed: Of the division.

    Returns:
        Calls of members and of non-members, (n,) each.

    Raises:
        DataError: The sides differ in size, or have one example only.
    """
    count = len(members)
    if count != len(nonmembers) or count < 2:
        raise DataError(
            f"Cross-validation needs two sides of the same size of at least 2; got {count} and {len(nonmembers)}."
        )
    generator = np.random.default_rng(seed)
    folds = [generator.permutation(count) % min(NUM_FOLDS, count) for _ in range(2)]
    calls = np.empty((2, count))
    for fold in range(min(NUM_FOLDS, count)):
        first, second = members[folds[0] != fold], nonmembers[folds[1] != fold]
        for row, side in enumerate((members, nonmembers)):
            calls[row, folds[row] == fold] = regression_calls(first, second, side[folds[row] == fold])
    return calls[0], calls[1]


def _calls(classifier: Any, members: Floats, nonmembers: Floats, judged: Floats) -> Floats:
    is_member = np.repeat([1, 0], [len(members), len(nonmembers)])
    classifier.fit(np.concatenate([members, nonmembers])[:, None], is_member)
    decisions = classifier.decision_function(judged[:, None])
    return np.asarray(np.where(np.abs(decisions) < _UNDECIDED, 0.5, decisions > 0), dtype=np.float64)
