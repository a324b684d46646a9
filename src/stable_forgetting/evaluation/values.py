"""Per-example values of a model, wherever they come from: measured by this package, or read from another's log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np

from stable_forgetting.evaluation.classification import correct
from stable_forgetting.evaluation.likelihood import Ints, LikelihoodScores
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
    finished: Mapping[str, Finished] = field(default_factory=dict)

    @property
    def not_finite(self) -> list[int]:
        """Examples whose likelihood is infinite or not a number."""
        return [] if self.likelihood is None else np.flatnonzero(~np.isfinite(self.likelihood.nll)).tolist()


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
    if likelihood.predicted is not None and likelihood.label is not None:
        found["correct"] = partial(_correct, likelihood)
    if likelihood.tokens is not None:
        found["min_k"] = lambda chosen: min_k(likelihood, compat=chosen.compat)
        found["min_k_plus_plus"] = lambda chosen: min_k_plus_plus(likelihood, compat=chosen.compat)
    compressed, norm = scores.compressed_bytes, scores.gradient_norm
    if compressed is not None:
        found["zlib"] = lambda _: zlib_score(likelihood.nll, compressed)
    if norm is not None:
        found["gradient_norm"] = lambda _: norm
    return found


def _correct(likelihood: LikelihoodScores, _: Definitions) -> Floats:
    assert likelihood.predicted is not None
    assert likelihood.label is not None
    return correct(likelihood.predicted, likelihood.label)
