"""TOFU's quantities, from negative log-likelihoods and probabilities per label.

TOFU: Maini et al. 2024, "TOFU: a task of fictitious unlearning for LLMs", section 2. The defaults are those of the
package open-unlearning, whose numbers are the ones that are published now; where the paper's text differs, an option
names it. l = NLL per label of an answer in nats, P = exp(−l), R = truth ratio; N = examples, J = wrong answers of one.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from stable_forgetting.evaluation.likelihood import Ints
from stable_forgetting.evaluation.statistics import Floats
from stable_forgetting.evaluation.text import Compat

Aggregation = Literal["geometric", "arithmetic"]
"""How the probabilities of the wrong answers are put together in the truth ratio."""

TINY = 1e-10
"""Added to denominators, as open-unlearning does: R stays finite where the right answer has no probability at all."""


def truth_ratio(right_nll: Floats, wrong_nll: Floats, num_wrong: Ints, *, aggregation: Aggregation) -> Floats:
    """R = probability of the wrong answers / (probability of the right answer + 1e-10), for each example.

    From 0 on; below 1 the model prefers the right answer. Which way is better depends on the set: see
    `forget_truth_ratio_score` and `utility_truth_ratio_score`.

    Args:
        right_nll: l of the right answer, (N,): of the paraphrased answer on forget and retain set, of the answer itself
            on real authors and world facts.
        wrong_nll: l of the wrong answers, example after example, (sum of J,).
        num_wrong: J of each example, (N,), at least 1.
        aggregation: ``"geometric"``: exp(−mean of l), as open-unlearning does; ``"arithmetic"``: mean of P, as
            the paper's text says.

    Returns:
        (N,).

    Example:
        >>> truth_ratio(np.array([1.0]), np.array([1.0, 3.0]), np.array([2]), aggregation="geometric").round(6).tolist()
        [0.367879]
    """
    if aggregation == "geometric":
        wrong = np.exp(-_sum_by_example(wrong_nll, num_wrong) / num_wrong)
    else:
        wrong = _sum_by_example(np.exp(-wrong_nll), num_wrong) / num_wrong
    return np.asarray(wrong / (np.exp(-right_nll) + TINY))


def forget_truth_ratio_score(ratios: Floats, *, compat: Compat | None = None) -> Floats:
    """min(R, 1/R) of each example, (N,): 1 where right and wrong answers are equally likely.

    Range 0 to 1; the retain model's mean is the target. It does not say on which side of 1 the model is.

    Args:
        ratios: R, (N,).
        compat: ``"open-unlearning"`` adds 1e-10 to R before it is inverted.

    Example:
        >>> forget_truth_ratio_score(np.array([0.5, 4.0])).tolist()
        [0.5, 0.25]
    """
    shift = TINY if compat == "open-unlearning" else np.finfo(np.float64).tiny
    return np.minimum(ratios, 1 / (ratios + shift))


def utility_truth_ratio_score(ratios: Floats) -> Floats:
    """max(0, 1 − R) of each example, (N,): how much more likely right answers are than wrong ones.

    Range 0 to 1, higher is better; 0 where the wrong answers are at least as likely. Where the right answer is far less
    likely than 1e-10, which R adds to it, R is near 0 and this is near 1 whatever the wrong answers are: a collapsed
    model looks perfect by it (the definition's fault, which is kept for comparable numbers).

    Example:
        >>> utility_truth_ratio_score(np.array([0.25, 4.0])).tolist()
        [0.75, 0.0]
    """
    return np.maximum(0.0, 1 - ratios)


def normalized_probability(right: Floats, wrong: Floats, num_wrong: Ints) -> Floats:
    """P(answer) / (P(answer) + sum of P over the wrong answers + 1e-10) of each example, (N,).

    Range 0 to 1, higher is better; used on real authors and world facts, whose answers are a choice out of some.

    Args:
        right: P of the right answer, (N,).
        wrong: P of the wrong answers, example after example, (sum of J,).
        num_wrong: J of each example, (N,), at least 1.

    Example:
        >>> normalized_probability(np.array([0.5]), np.array([0.2, 0.3]), np.array([2])).round(6).tolist()
        [0.5]
    """
    return np.asarray(right / (right + _sum_by_example(wrong, num_wrong) + TINY))


def model_utility(*sets: Floats) -> Floats:
    """Harmonic mean of the means of all columns of all sets; 0 if any of them is 0.

    In TOFU the sets are retain, real authors and world facts, and the columns probability, ROUGE-L recall and truth
    ratio score. Range 0 to 1, higher is better; the smallest of the nine parts weighs most.

    Args:
        *sets: Columns of each set, each (R, n, c) or (n, c) with values from 0 to 1; R resamples, n examples.

    Returns:
        (R,) or a single number.

    Example:
        >>> float(model_utility(np.array([[1.0, 0.5]]), np.array([[0.25]])))
        0.42857142857142855
    """
    parts = np.concatenate([columns.mean(axis=-2) for columns in sets], axis=-1)
    is_dead = (parts <= 0).any(axis=-1)
    inverse = (1 / np.where(parts > 0, parts, 1.0)).sum(axis=-1)
    return np.where(is_dead, 0.0, parts.shape[-1] / inverse)


def utility_kept(*sets: Floats) -> Floats:
    """Model utility as a share of the base model's; infinite or NaN where that is 0.

    Args:
        *sets: Columns of each set, as `model_utility` takes them, and behind them the same columns of the base model.

    Returns:
        (R,) or a single number.
    """
    own, base = zip(*(np.split(columns, 2, axis=-1) for columns in sets), strict=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return model_utility(*own) / model_utility(*base)


def _sum_by_example(values: Floats, counts: Ints) -> Floats:
    """Sums of successive stretches of the values, one of each length; every length is at least 1."""
    return np.asarray(np.add.reduceat(values, np.cumsum(counts) - counts))
