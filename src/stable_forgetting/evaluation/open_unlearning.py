"""Evaluation logs of the package open-unlearning (TOFU_EVAL.json): read as values of a model.

A log holds one entry per measurement with ``agg_value`` and, by example, ``value_by_index``. It has no token counts and
no values of single labels, so a log gives those metrics only that its columns suffice for.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stable_forgetting.errors import DataError
from stable_forgetting.evaluation.likelihood import Ints
from stable_forgetting.evaluation.scores import ModelScores
from stable_forgetting.evaluation.statistics import Floats
from stable_forgetting.evaluation.values import Definitions, Finished, ModelValues, SetValues, values_of
from stable_forgetting.records import ModelRole

Entries = dict[str, Any]

PREFIXES = {"forget": "forget", "retain": "retain", "real_authors": "ra", "world_facts": "wf", "holdout": "holdout"}
"""How the entries of each set begin."""

MEMORIZATION = ("exact_memorization", "extraction_strength")
"""Entries of the forget set that are named as our columns are."""

ATTACKS = {
    "min_k": "mia_min_k",
    "min_k_plus_plus": "mia_min_k_plus_plus",
    "zlib": "mia_zlib",
    "gradient_norm": "mia_gradnorm",
}
"""Entry of each attack, by our name of its column."""

_OTHER_DEFINITIONS = {
    **dict.fromkeys((*MEMORIZATION, "min_k", "min_k_plus_plus"), "leave the last label out"),
    "gradient_norm": "are means over the norms of single weights and leave the last label out",
}
"""What sets the log's values apart from the columns of the same name here."""


@dataclass(frozen=True, eq=False)
class LoggedLikelihood:
    """What a log says about the likelihood of answers.

    Args:
        nll: NLL per label in nats, (N,).
        probability: exp(−nll) as logged, (N,).
    """

    nll: Floats
    probability: Floats


def read_entries(path: Path) -> Entries:
    """The entries of a log, plain or gzipped.

    Raises:
        DataError: The file cannot be read, or is no such log.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        entries = json.loads(data)
    except (OSError, EOFError, zlib.error) as error:  # the last two are of a gzip file that is cut off or damaged
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"The log '{path}' cannot be read ({reason}). Give the path of a whole log.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"The log '{path}' is not JSON ({error}). Give a TOFU_EVAL.json of open-unlearning.") from error
    if not isinstance(entries, dict):
        raise DataError(f"The log '{path}' holds a {type(entries).__name__}. Give a TOFU_EVAL.json of open-unlearning.")
    return entries


def read_log(path: Path, role: ModelRole = "unlearned") -> ModelValues:
    """Read a log of open-unlearning, or a file of per-example values that a run of this package left.

    Args:
        path: TOFU_EVAL.json or such a file, plain or gzipped.
        role: What the model is taken for; ``"retain"`` for one that others are compared with.

    Returns:
        The sets that the log has entries of. Values that follow another definition than this package's are there with
        ``compat="open-unlearning"`` only.

    Raises:
        DataError: The file is neither, or an entry is damaged.
    """
    entries = read_entries(path)
    if {"format", "sets"} <= entries.keys():
        return replace(values_of(ModelScores.from_json(entries)), role=role)
    return values_of_entries(entries, role=role, source=f"log {path.name}")


def values_of_entries(entries: Mapping[str, Any], *, role: ModelRole, source: str) -> ModelValues:
    """The values in the entries of a log; `source` names the log in messages.

    Raises:
        DataError: There is no entry of any set, or one is damaged.
    """
    if entries and all(isinstance(entry, int | float) for entry in entries.values()):
        raise DataError(f"The {source} is a summary without values per example. Give the TOFU_EVAL.json beside it.")
    flat = {f"{entry}.{side}": values for entry, found in entries.items() for side, values in _sides(found).items()}
    sets = {name: found for name in PREFIXES if (found := _read_set(_Reader({**entries, **flat}, source), name))}
    if not sets:
        known = ", ".join(f"{prefix}_Q_A_Prob" for prefix in PREFIXES.values())
        raise DataError(f"The {source} has none of the entries {known}. Give a TOFU_EVAL.json of open-unlearning.")
    return ModelValues(task="language", role=role, source=source, sets=sets)


def _sides(entry: Any) -> dict[str, Any]:
    """The two sides of a membership attack; nothing for other entries."""
    return {side: entry[side] for side in ("forget", "holdout") if side in entry} if isinstance(entry, dict) else {}


def _read_set(reader: _Reader, name: str) -> SetValues | None:
    """One set, or None if the log has nothing of it."""
    prefix = PREFIXES[name]
    likelihood = reader.likelihood(f"{prefix}_Q_A_Prob")
    losses = reader.numbers(f"mia_loss.{name}", "score")
    if likelihood is None and losses is not None:
        likelihood = LoggedLikelihood(losses, np.exp(-losses))
    perturbed, num_perturbed = reader.lists(f"{prefix}_Q_A_PERT_Prob")
    found = SetValues(
        size=0,
        likelihood=likelihood,
        paraphrased=reader.likelihood(f"{prefix}_Q_A_PARA_Prob"),
        perturbed=perturbed,
        num_perturbed=num_perturbed,
        answers=reader.texts(f"{prefix}_Q_A_ROUGE", "generation"),
        references=reader.texts(f"{prefix}_Q_A_ROUGE", "ground_truth"),
        prompts=reader.texts(f"{prefix}_Q_A_ROUGE", "input"),
        finished=_read_finished(reader, name),
    )
    return replace(found, size=reader.size) if reader.size else None


def _read_finished(reader: _Reader, name: str) -> dict[str, Finished]:
    entries = {column: f"{entry}.{name}" for column, entry in ATTACKS.items()}
    if name == "forget":
        entries |= {entry: entry for entry in MEMORIZATION}
    found = {column: reader.numbers(entry, "score") for column, entry in entries.items()}
    return {column: _finished(column, values) for column, values in found.items() if values is not None}


def _finished(column: str, values: Floats) -> Finished:
    def find(chosen: Definitions) -> Floats:
        if column in _OTHER_DEFINITIONS and chosen.compat != "open-unlearning":
            raise DataError(
                "needs compat 'open-unlearning' (`forget score tofu --compat open-unlearning`): the log's values "
                f"{_OTHER_DEFINITIONS[column]}"
            )
        return values

    return find


class _Reader:
    """Columns of the entries of one set; all entries must be of the same examples.

    Args:
        entries: The entries.
        source: Names the log in messages.
    """

    def __init__(self, entries: Mapping[str, Any], source: str) -> None:
        self.entries = entries
        self.source = source
        self._first: str | None = None
        self._indices: list[str] = []

    @property
    def size(self) -> int | None:
        """N, once an entry was read."""
        return None if self._first is None else len(self._indices)

    def likelihood(self, entry: str) -> LoggedLikelihood | None:
        """One answer of each example."""
        nll, probability = self.numbers(entry, "avg_loss"), self.numbers(entry, "prob")
        return None if nll is None or probability is None else LoggedLikelihood(nll, probability)

    def lists(self, entry: str) -> tuple[LoggedLikelihood | None, Ints | None]:
        """Several answers of each example, one after the other, and their numbers."""
        nll, probability = (self._lists(entry, field) for field in ("avg_loss", "prob"))
        if nll is None or probability is None:
            return None, None
        counts = np.array([len(values) for values in nll], dtype=np.int64)
        if [len(values) for values in probability] != counts.tolist() or not counts.all():
            raise DataError(f"The {self.source} has examples in '{entry}' without values. Evaluate the model again.")
        return LoggedLikelihood(np.concatenate(nll), np.concatenate(probability)), counts

    def numbers(self, entry: str, field: str) -> Floats | None:
        """One number of each example, (N,)."""
        found = self._fields(entry, field)
        return None if found is None else self._floats(found, entry, field)

    def texts(self, entry: str, field: str) -> tuple[str, ...] | None:
        """One text of each example."""
        found = self._fields(entry, field)
        if found is None or not all(isinstance(text, str) for text in found):
            return None
        return tuple(found)

    def _lists(self, entry: str, field: str) -> list[Floats] | None:
        found = self._fields(entry, field)
        if found is None:
            return None
        return [self._floats(values if isinstance(values, list) else [values], entry, field) for values in found]

    def _floats(self, values: Sequence[Any], entry: str, field: str) -> Floats:
        if not all(isinstance(value, int | float) for value in values):
            raise DataError(
                f"The {self.source} has no number '{field}' for an example of '{entry}'. Evaluate it again."
            )
        return np.array(values, dtype=np.float64)

    def _fields(self, entry: str, field: str) -> list[Any] | None:
        """A field of each example of an entry, in the order of the first entry; None if the log has it not."""
        found = self.entries.get(entry)
        if found is None:
            return None
        rows = found.get("value_by_index") if isinstance(found, dict) else None
        if not isinstance(rows, dict) or not rows or not all(isinstance(row, dict) for row in rows.values()):
            raise DataError(f"The {self.source} has no values per example in '{entry}'. Give a TOFU_EVAL.json.")
        if self._first is None:
            self._first, self._indices = entry, sorted(rows, key=_by_number)
        if rows.keys() != set(self._indices):
            raise DataError(
                f"The {self.source} has {len(rows)} examples in '{entry}' and {self.size} others in '{self._first}'. "
                "Evaluate both on the same examples."
            )
        return [rows[index].get(field) for index in self._indices]


def _by_number(index: str) -> tuple[int, str]:
    return (int(index), index) if index.isdecimal() else (-1, index)
