"""What is kept of a model's likelihoods: columns with one row for each example, and one for each label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from stable_forgetting.errors import DataError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Singles = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class TokenScores:
    """What one model says about each label, example after example; P = sum of all examples' n, all columns (P,).

    Kept in single precision, in which models compute them.

    Args:
        log_probability: Log-probability of the label, given the right tokens before it, in nats.
        mean: Mean log-probability of a token drawn from the model's own distribution at that place, −entropy.
        variance: Variance of the same, at least 0.
    """

    log_probability: Singles
    mean: Singles
    variance: Singles

    def to_json(self) -> dict[str, list[float]]:
        """Columns as plain lists with as many digits as single precision needs; `from_json` gives back every bit."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_json(cls, columns: Mapping[str, Any]) -> TokenScores:
        """Read what `to_json` wrote.

        Raises:
            DataError: A column is missing, unknown, or not as long as the others.
        """
        _check_columns(cls, columns)
        found = {name: as_numbers(name, values, np.float32) for name, values in columns.items()}
        lengths = {name: len(values) for name, values in found.items()}
        if len(set(lengths.values())) != 1:
            raise DataError(f"The columns of the labels differ in length: {lengths}. Score the model again.")
        return cls(**found)


@dataclass(frozen=True, eq=False)
class LikelihoodScores:
    """What one model says about each label of each example; N examples, all columns (N,) unless said otherwise.

    The columns ``…_without_last`` leave the last label out. They exist for published protocols that do so.

    Args:
        nll_sum: S, in nats.
        num_labels: n, at least 1.
        num_correct: Labels that are the most likely token or class, given the right tokens before them.
        first_extractable: k, the smallest index from which every label is the most likely one; n if the last is not.
        num_correct_without_last: As `num_correct`.
        first_extractable_without_last: As `first_extractable`, at most n − 1.
        predicted: Most likely class; None for language.
        label: Right class; None for language.
        entropy: −Σ p ln p over the classes, in nats; None for language.
        class_log_probabilities: ln p of each class, (N, C), in single precision, that of a probability of 0 as −1e4;
            None where nothing asked for them.
        tokens: Values of each label, (sum of n,); None where nothing asked for them. Example i has the places
            ``label_starts[i]`` to ``label_starts[i] + num_labels[i]``.
    """

    nll_sum: Floats
    num_labels: Ints
    num_correct: Ints
    first_extractable: Ints
    num_correct_without_last: Ints
    first_extractable_without_last: Ints
    predicted: Ints | None = None
    label: Ints | None = None
    entropy: Floats | None = None
    class_log_probabilities: Singles | None = None
    tokens: TokenScores | None = None

    def __len__(self) -> int:
        return len(self.nll_sum)

    @property
    def label_starts(self) -> Ints:
        """First place of each example in the columns of `tokens`, (N,)."""
        return np.cumsum(self.num_labels) - self.num_labels

    @property
    def nll(self) -> Floats:
        """Negative log-likelihood per label, l = S / n, (N,), in nats."""
        return self.nll_sum / self.num_labels

    @property
    def label_nll(self) -> Floats:
        """Negative log-likelihood of each label, example after example, (sum of n,), in nats.

        Raises:
            ValueError: Examples have several labels, and their `tokens` were not kept.
        """
        if self.tokens is not None:
            return -self.tokens.log_probability.astype(np.float64)
        if (self.num_labels != 1).any():
            raise ValueError("the values of each label were not kept; score with_tokens")
        return self.nll_sum

    @property
    def label_entropy(self) -> Floats:
        """Entropy of the model's distribution at each label, example after example, (sum of n,), in nats.

        Raises:
            ValueError: The `tokens` of texts were not kept.
        """
        if self.tokens is not None:
            return -self.tokens.mean.astype(np.float64)
        if self.entropy is None:
            raise ValueError("the values of each label were not kept; score with_tokens")
        return self.entropy

    @property
    def probability(self) -> Floats:
        """P = exp(−S / n), (N,): for an image the probability of its class."""
        return np.exp(-self.nll)

    @property
    def not_finite(self) -> list[int]:
        """Examples whose likelihood is infinite or not a number."""
        return np.flatnonzero(~np.isfinite(self.nll_sum)).tolist()

    def to_json(self) -> dict[str, Any]:
        """Columns as plain lists; `from_json` gives back every bit."""
        columns = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "tokens"}
        plain = {name: None if values is None else _plain(values) for name, values in columns.items()}
        return {**plain, "tokens": None if self.tokens is None else self.tokens.to_json()}

    @classmethod
    def from_json(cls, columns: Mapping[str, Any]) -> LikelihoodScores:
        """Read what `to_json` wrote.

        Raises:
            DataError: A column is missing, unknown, or not as long as the others.
        """
        _check_columns(cls, columns)
        plain = {
            name: _column(name, values)
            for name, values in columns.items()
            if name != "tokens" and not (values is None and name in _OPTIONAL)
        }
        lengths = {name: len(values) for name, values in plain.items()}
        if len(set(lengths.values())) != 1:
            raise DataError(f"The likelihood columns differ in length: {lengths}. Score the model again.")
        tokens = None if columns["tokens"] is None else TokenScores.from_json(columns["tokens"])
        found = cls(**plain, tokens=tokens)
        if tokens is not None and len(tokens.log_probability) != found.num_labels.sum():
            raise DataError(
                f"There are values of {len(tokens.log_probability)} labels, but {found.num_labels.sum()} labels. "
                "Score the model again."
            )
        return found


def as_numbers(name: str, values: Any, dtype: type[np.generic], *, dimensions: int = 1) -> npt.NDArray[Any]:
    """A column as it was stored.

    Args:
        name: Its name.
        values: A list of numbers.
        dtype: Their type; of whole numbers it takes no others.
        dimensions: 2 for a list of lists.

    Raises:
        DataError: There is something else in it.
    """
    kinds = "iu" if np.issubdtype(dtype, np.integer) else "iuf"
    try:
        found = np.asarray(values)
    except ValueError:  # lists and numbers beside each other
        found = np.asarray(None)
    if found.ndim != dimensions or (found.size and found.dtype.kind not in kinds):
        what = "whole numbers" if kinds == "iu" else "numbers"
        raise DataError(f"The column '{name}' of the per-example values is no list of {what}. Score the model again.")
    return found.astype(dtype)


def _check_columns(kind: type[LikelihoodScores] | type[TokenScores], columns: Any) -> None:
    expected = {field.name for field in fields(kind)}
    found = sorted(columns) if isinstance(columns, Mapping) else columns
    if not isinstance(columns, Mapping) or set(columns) != expected:
        raise DataError(f"The likelihood has the columns {found} and not {sorted(expected)}. Score the model again.")


_TYPES: dict[str, Any] = {"nll_sum": np.float64, "entropy": np.float64, "class_log_probabilities": np.float32}
"""Types of the columns that are no whole numbers."""

_OPTIONAL = {field.name for field in fields(LikelihoodScores) if field.default is None}
"""Columns that may be without values."""


def _column(name: str, values: Any) -> npt.NDArray[Any]:
    if name != "class_log_probabilities":
        return as_numbers(name, values, _TYPES.get(name, np.int64))
    if isinstance(values, list) and len({len(row) for row in values if isinstance(row, list)}) > 1:
        raise DataError("The images have different numbers of classes. Score the model again.")
    return as_numbers(name, values, np.float32, dimensions=2)


def _plain(values: npt.NDArray[Any]) -> list[Any]:
    """Lists with as many digits as the precision needs: 0.1 in single precision is no long number in double."""
    if values.dtype != np.float32:
        return list(values.tolist())
    return [_plain(row) for row in values] if values.ndim > 1 else [float(str(value)) for value in values]
