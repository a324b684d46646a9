"""Columns: one number for each example of a set, under a name. Metrics are made from columns and from nothing else.

A column that cannot be had raises a `DataError` that says why, which becomes the reason of every metric that needs it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from stable_forgetting.errors import DataError
from stable_forgetting.evaluation.likelihood import Ints
from stable_forgetting.evaluation.statistics import Floats
from stable_forgetting.evaluation.text import has_rouge_words, rouge_l_recall
from stable_forgetting.evaluation.tofu import (
    forget_truth_ratio_score,
    normalized_probability,
    truth_ratio,
    utility_truth_ratio_score,
)
from stable_forgetting.evaluation.values import Definitions, Likelihood, SetValues

_WHAT = {
    "nll_sum": "the summed NLL of each example",
    "num_labels": "the number of labels of each example",
    "exact_memorization": "whether each label is the most likely token",
    "extraction_strength": "whether each label is the most likely token",
    "correct": "the predicted class of each image",
    "entropy": "the entropy over the classes of each image",
    "class_log_probabilities": "the log-probability of each class",
    "probe_correct": "a linear probe, and for it: evaluation.linear_probe, forget and retain set, a head that the "
    "model calls classifier or head, and finite features",
    "min_k": "the log-probability of each label",
    "min_k_plus_plus": "the model's distribution at each label",
    "zlib": "the compressed length of each answer",
    "gradient_norm": "the gradient norm of each example; set evaluation.gradient_norm",
}
"""What the columns are made from that a set may be without."""


def _find(name: str) -> Callable[[SetValues, Definitions], Floats]:
    def find(values: SetValues, definitions: Definitions) -> Floats:
        if name not in values.finished:
            raise DataError(f"needs {_WHAT[name]}")
        return values.finished[name](definitions)

    return find


def _likelihood(values: SetValues) -> Likelihood:
    if values.likelihood is None:
        raise DataError("needs the likelihood of each answer")
    return values.likelihood


def _wrong(values: SetValues) -> tuple[Likelihood, Ints]:
    if values.perturbed is None or values.num_perturbed is None:
        raise DataError("needs wrong (perturbed) answers beside every right one")
    return values.perturbed, values.num_perturbed


def _truth_ratio(right: Likelihood, values: SetValues, definitions: Definitions) -> Floats:
    wrong, counts = _wrong(values)
    return truth_ratio(right.nll, wrong.nll, counts, aggregation=definitions.truth_ratio)


def _paraphrased_truth_ratio(values: SetValues, definitions: Definitions) -> Floats:
    if values.paraphrased is None:
        raise DataError("needs a paraphrased answer beside every right one")
    return _truth_ratio(values.paraphrased, values, definitions)


def _answer_truth_ratio(values: SetValues, definitions: Definitions) -> Floats:
    return _truth_ratio(_likelihood(values), values, definitions)


def _normalized_probability(values: SetValues, _: Definitions) -> Floats:
    wrong, counts = _wrong(values)
    return normalized_probability(_likelihood(values).probability, wrong.probability, counts)


def _rouge(values: SetValues, _: Definitions) -> Floats:
    if values.answers is None or values.references is None:
        raise DataError("needs prompts with answers, and evaluation.generate to be true")
    bad = [index for index, reference in enumerate(values.references) if not has_rouge_words(reference)]
    if bad:
        raise DataError(
            f"{len(bad)} of {values.size} right answers have no word in the letters a to z and digits, which is all "
            f"that ROUGE reads (first: {bad[0]})"
        )
    pairs = zip(values.references, values.answers, strict=True)
    return np.array([rouge_l_recall(reference, answer) for reference, answer in pairs])


COLUMNS: dict[str, Callable[[SetValues, Definitions], Floats]] = {
    "nll": lambda values, _: _likelihood(values).nll,
    "probability": lambda values, _: _likelihood(values).probability,
    "normalized_probability": _normalized_probability,
    "rouge_l_recall": _rouge,
    "truth_ratio": _paraphrased_truth_ratio,
    "forget_truth_ratio_score": lambda values, chosen: forget_truth_ratio_score(
        _paraphrased_truth_ratio(values, chosen), compat=chosen.compat
    ),
    "truth_ratio_score": lambda values, chosen: utility_truth_ratio_score(_paraphrased_truth_ratio(values, chosen)),
    "answer_truth_ratio": _answer_truth_ratio,
    "answer_truth_ratio_score": lambda values, chosen: utility_truth_ratio_score(_answer_truth_ratio(values, chosen)),
    **{name: _find(name) for name in _WHAT},
}
"""Every column by name; the docstrings of the functions behind them hold definition, range and source."""


def column(values: SetValues, name: str, definitions: Definitions) -> Floats:
    """One number for each example of a set, (N,); of `class_log_probabilities` one row, (N, C).

    Args:
        values: The set.
        name: A key of `COLUMNS`.
        definitions: Choices between published definitions.

    Raises:
        DataError: The values that it is made from are not there; the message says what is needed.
    """
    return COLUMNS[name](values, definitions)
