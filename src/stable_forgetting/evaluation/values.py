"""Per-example values of a model, wherever they come from: measured by this package, or read from another's log."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np

from stable_forgetting.errors import DataError
from stable_forgetting.evaluation.classification import correct
from stable_forgetting.evaluation.likelihood import Ints
from stable_forgetting.evaluation.membership import min_k, min_k_plus_plus, zlib_score
from stable_forgetting.evaluation.scores import ModelScores, SetScores, TaskName
from stable_forgetting.evaluation.statistics import Floats
from stable_forgetting.evaluation.text import Compat, exact_memorization, extraction_strength
from stable_forgetting.evaluation.tofu import Aggregation
from stable_forgetting.records import ModelRole


@dataclass(frozen=True)
class Definitions:
    """Choices between published definitions.

    Args:
        truth_ratio: How the wrong answers are put together.
        compat: A published protocol whose numbers are to be reproduced; None for the definitions of this package.
    """

    truth_ratio: Aggregation = "geometric"
    compat: Compat | None = None


class Likelihood(Protocol):
    """NLL per label and probability of each answer."""

    @property
    def nll(self) -> Floats:
        """NLL per label l in nats, (N,)."""

    @property
    def probability(self) -> Floats:
        """exp(−l), (N,)."""


Finished = Callable[[Definitions], Floats]
"""Computes a column, (N,), when it is asked for."""


@dataclass(frozen=True, eq=False)
class SetValues:
    """One set under one model; what is None or not in `finished` is not known.

    Args:
        size: N, number of examples.
        sha256: Hash of the examples; None if only a log is known.
        likelihood: Of the answers.
        paraphrased: Of the paraphrased answers.
        perturbed: Of the wrong answers, example after example.
        num_perturbed: Wrong answers of each example, (N,).
        answers: Greedy answers.
        references: Right answers beside them.
        prompts: What the model read before its answers, without special tokens.
        finished: Further columns by name.
    """

    size: int
    sha256: str | None = None
    likelihood: Likelihood | None = None
    paraphrased: Likelihood | None = None
    perturbed: Likelihood | None = None
    num_perturbed: Ints | None = None
    answers: tuple[str, ...] | None = None
    references: tuple[str, ...] | None = None
    prompts: tuple[str, ...] | None = None
    finished: Mapping[str, Finished] = field(default_factory=dict)

    @property
    def not_finite(self) -> list[int]:
        """Examples whose likelihood is infinite or not a number."""
        return [] if self.likelihood is None else np.flatnonzero(~np.isfinite(self.likelihood.nll)).tolist()

    @property
    def not_a_number(self) -> list[int]:
        """Those of them whose likelihood is not a number, from models that compute nothing at all."""
        return [] if self.likelihood is None else np.flatnonzero(np.isnan(self.likelihood.nll)).tolist()

    def rows(self, positions: Sequence[int]) -> SetValues:
        """The values of some of the examples, in the order given; their hash and texts are left out.

        Args:
            positions: Which examples, each from 0 to N − 1.
        """
        chosen, wrong, counts = np.asarray(positions, dtype=np.int64), None, None
        if self.num_perturbed is not None:
            counts, ends = self.num_perturbed[chosen], np.cumsum(self.num_perturbed)[chosen]
            wrong = np.concatenate([np.arange(end - count, end) for end, count in zip(ends, counts, strict=True)])
        return SetValues(
            size=len(chosen),
            likelihood=_rows(self.likelihood, chosen),
            paraphrased=_rows(self.paraphrased, chosen),
            perturbed=_rows(self.perturbed, wrong),
            num_perturbed=counts,
            finished={name: _finished_rows(find, chosen) for name, find in self.finished.items()},
        )


@dataclass(frozen=True, eq=False)
class _Rows:
    """Some rows of a likelihood."""

    nll: Floats
    probability: Floats


def _rows(likelihood: Likelihood | None, chosen: Ints | None) -> _Rows | None:
    if likelihood is None or chosen is None:
        return None
    return _Rows(likelihood.nll[chosen], likelihood.probability[chosen])


def _finished_rows(find: Finished, chosen: Ints) -> Finished:
    return lambda definitions: find(definitions)[chosen]


@dataclass(frozen=True, eq=False)
class ModelValues:
    """All sets under one model.

    Args:
        task: Kind of the model.
        role: Base, unlearned or retain model.
        source: Where the model or the log came from, in words.
        sets: Values by set name.
    """

    task: TaskName
    role: ModelRole
    source: str
    sets: Mapping[str, SetValues]

    @property
    def parts(self) -> frozenset[str]:
        """Names of what was measured beyond the plain likelihood: sets, further columns, and ``"perturbed"``."""
        columns = {name for values in self.sets.values() for name in values.finished}
        has_perturbed = any(values.perturbed is not None for values in self.sets.values())
        return frozenset({*self.sets, *columns, *({"perturbed"} if has_perturbed else ())})


def values_of(scores: ModelScores) -> ModelValues:
    """The values that this package measured, as columns."""
    sets = {name: _set_values(found) for name, found in scores.sets.items()}
    return ModelValues(task=scores.task, role=scores.role, source=scores.source, sets=sets)


def _set_values(scores: SetScores) -> SetValues:
    return SetValues(
        size=len(scores),
        sha256=scores.sha256,
        likelihood=scores.likelihood,
        paraphrased=scores.paraphrased,
        perturbed=scores.perturbed,
        num_perturbed=scores.num_perturbed,
        answers=scores.answers,
        references=scores.references,
        finished=_finished(scores),
    )


def _finished(scores: SetScores) -> dict[str, Finished]:
    likelihood = scores.likelihood
    found: dict[str, Finished] = {
        "nll_sum": lambda _: likelihood.nll_sum,
        "num_labels": lambda _: likelihood.num_labels.astype(np.float64),
        "exact_memorization": lambda chosen: exact_memorization(likelihood, compat=chosen.compat),
        "extraction_strength": lambda chosen: extraction_strength(likelihood, compat=chosen.compat),
    }
    found |= _finished_of_images(scores)
    if likelihood.tokens is not None:
        found["min_k"] = lambda chosen: min_k(likelihood, compat=chosen.compat)
        found["min_k_plus_plus"] = lambda chosen: min_k_plus_plus(likelihood, compat=chosen.compat)
    compressed, norm = scores.compressed_bytes, scores.gradient_norm
    if compressed is not None:
        found["zlib"] = lambda _: zlib_score(likelihood.nll, compressed)
    if norm is not None:
        found["gradient_norm"] = partial(_own_gradient_norm, norm)
    return found


def _own_gradient_norm(norm: Floats, chosen: Definitions) -> Floats:
    if chosen.compat == "open-unlearning":
        raise DataError(
            "needs a log of open-unlearning: its gradient norms are means over single weights, ours are over all"
        )
    return norm


def _finished_of_images(scores: SetScores) -> dict[str, Finished]:
    likelihood = scores.likelihood
    label, entropy, classes = likelihood.label, likelihood.entropy, likelihood.class_log_probabilities
    found: dict[str, Finished] = {}
    if label is None:
        return found
    for name, predicted in (("correct", likelihood.predicted), ("probe_correct", scores.probe_predicted)):
        if predicted is not None:
            found[name] = partial(_correct, predicted, label)
    if entropy is not None:
        found["entropy"] = lambda _: entropy
    if classes is not None:
        found["class_log_probabilities"] = lambda _: classes.astype(np.float64)
    return found


def _correct(predicted: Ints, label: Ints, _: Definitions) -> Floats:
    return correct(predicted, label)
