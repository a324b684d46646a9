"""Metrics of answers: overlap of the text, and how much of it the model has by heart."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

from stable_forgetting.errors import DataError
from stable_forgetting.evaluation.likelihood import Floats, Ints, LikelihoodScores

Compat = Literal["open-unlearning"]
"""A published protocol whose numbers are to be reproduced, where it differs from the definition."""


@cache
def _scorer(*kinds: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(kinds), use_stemmer=True)


def has_rouge_words(text: str) -> bool:
    """Whether ROUGE finds a word in the text: it reads the letters a to z and digits, nothing else.

    Example:
        >>> has_rouge_words("Yes!"), has_rouge_words("…")
        (True, False)
    """
    return any(character.isascii() and character.isalnum() for character in text)


def rouge_l_recall(reference: str, answer: str) -> float:
    """ROUGE-L recall: words in the longest common subsequence, as a share of the reference's words.

    Words are stemmed (package `rouge-score`). Range 0 to 1; 1 means that the answer holds every word of the reference
    in order, whatever else it holds.

    Args:
        reference: The right answer.
        answer: What the model answers; an empty one gives 0.

    Raises:
        DataError: The reference has no word that ROUGE can count, so that the share is not defined.

    Example:
        >>> rouge_l_recall("Ada was born in Paris", "She was born in Rome")
        0.6
    """
    if not has_rouge_words(reference):
        raise DataError(
            f"ROUGE-L needs a reference with words; {reference!r} has none in the letters a to z and digits. "
            "Remove the example or leave ROUGE out."
        )
    return float(_scorer("rougeL").score(reference, answer)["rougeL"].recall)


def rouge_scores(reference: str, answer: str) -> dict[str, float]:
    """The three ROUGE values that open-unlearning logs, each from 0 to 1; 0 where the reference has no words.

    Returns:
        ``rouge1_recall``, ``rougeL_f1`` and ``rougeL_recall``.
    """
    found = _scorer("rouge1", "rougeL").score(reference, answer)
    return {
        "rouge1_recall": float(found["rouge1"].recall),
        "rougeL_f1": float(found["rougeL"].fmeasure),
        "rougeL_recall": float(found["rougeL"].recall),
    }


def exact_memorization(scores: LikelihoodScores, *, compat: Compat | None = None) -> Floats:
    """EM: share of an example's labels that are the most likely token, given the right tokens before them.

    Range 0 to 1; 1 means that greedy decoding reproduces the answer.

    Args:
        scores: The model's likelihood of the examples.
        compat: ``"open-unlearning"`` leaves the last label out.

    Returns:
        (N,).

    Raises:
        DataError: With `compat`, an example has one label only.
    """
    if compat is None:
        return scores.num_correct / scores.num_labels
    return scores.num_correct_without_last / num_labels_without_last(scores)


def extraction_strength(scores: LikelihoodScores, *, compat: Compat | None = None) -> Floats:
    """ES = 1 − k / n, with k the smallest index from which every label is the most likely token.

    Range 0 to 1; 1 means that the prompt alone brings out the answer, 0 that not even its last label follows from all
    the others.

    Args:
        scores: The model's likelihood of the examples.
        compat: ``"open-unlearning"`` leaves the last label out and has a floor of 1 / n in place of 0.

    Returns:
        (N,).

    Raises:
        DataError: With `compat`, an example has one label only.
    """
    if compat is None:
        return 1 - scores.first_extractable / scores.num_labels
    counts = num_labels_without_last(scores)
    return 1 - scores.first_extractable_without_last.clip(max=counts - 1) / counts


def num_labels_without_last(scores: LikelihoodScores) -> Ints:
    """Labels but the last of each example, (N,), n − 1, for protocols that leave it out.

    Raises:
        DataError: An example has one label only, so that none is left.
    """
    short = (scores.num_labels < 2).nonzero()[0]
    if len(short):
        raise DataError(
            f"compat 'open-unlearning' leaves the last label out, but example {short[0]} has only one. "
            "Remove the example or measure without compat."
        )
    return scores.num_labels - 1
