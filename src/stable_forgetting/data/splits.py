"""Which examples are to be forgotten, kept, held out or tested on, and the proof that no two sets share one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stable_forgetting.data.examples import E, ExampleSet
from stable_forgetting.data.rows import Rows, select_split
from stable_forgetting.data.rules import select_rows
from stable_forgetting.errors import DataError

_NUM_SHOWN = 3

_RETAIN = ("retain", "retain_evaluation")


@dataclass(frozen=True)
class SetRule:
    """Which rows of the common source make one set.

    Args:
        where: Rule over the columns, or None.
        split: Value of the column ``split``, or None.
        limit: At most this many rows, the first ones; None for all.
    """

    where: str | None = None
    split: str | None = None
    limit: int | None = None


def assign_rows(source: Rows, rules: Mapping[str, SetRule]) -> dict[str, Rows]:
    """Divide the rows of one source among the sets.

    The retain set without a ``where`` rule gets every row of its split that no other set's rule takes; that a row is
    measured as a retain example takes it from nobody. Rows that
    another set's limit leaves out are not retained either: they are of the kind to be forgotten or held out. Other
    rules may overlap here; ``check_no_overlap`` finds that by content.

    Args:
        source: The common source.
        rules: Rule by the name of the set: forget, retain, retain_evaluation, holdout, test ...

    Returns:
        The rows of each set, in the order of the source. A set may be empty; making its example set raises then.

    Raises:
        DataError: A set other than retain has neither a rule nor a split, or a rule is wrong.

    Example:
        >>> source = Rows([{"label": label} for label in (0, 1, 1, 2)], "given in memory")
        >>> sets = assign_rows(source, {"forget": SetRule("label == 1"), "retain": SetRule()})
        >>> [row["label"] for row in sets["retain"]]
        [0, 2]
    """
    chosen = {name: _choose(source, name, rule) for name, rule in rules.items()}
    if "retain" in rules and rules["retain"].where is None:
        taken = {id(row) for name, rows in chosen.items() if name not in _RETAIN for row in rows}
        chosen["retain"] = chosen["retain"].filter(lambda row: id(row) not in taken, "rows that no other set takes")
    return {name: rows.first(rules[name].limit) for name, rows in chosen.items()}


def _choose(source: Rows, name: str, rule: SetRule) -> Rows:
    if name != "retain" and rule.where is None and rule.split is None:
        raise DataError(
            f"The {name} set has neither a 'where' rule nor a 'split', so it would be the whole of {source.source}. "
            "Say which rows it takes, or give it a path of its own."
        )
    rows = select_split(source, rule.split)
    return rows if rule.where is None else select_rows(rows, rule.where)


def check_no_overlap(first: ExampleSet[E], second: ExampleSet[E]) -> None:
    """Prove that two sets have no example in common, by content.

    Args:
        first: One set.
        second: The other set.

    Raises:
        DataError: They share examples; the message gives the first indexes in both sets.
    """
    places: dict[str, int] = {}
    for index, example in enumerate(second):
        places.setdefault(example.key, index)
    shared = [(index, places[example.key]) for index, example in enumerate(first) if example.key in places]
    if not shared:
        return
    in_first, in_second = (
        ", ".join(str(pair[side]) for pair in shared[:_NUM_SHOWN]) + (" ..." if len(shared) > _NUM_SHOWN else "")
        for side in (0, 1)
    )
    examples = "example" if len(shared) == 1 else "examples"
    raise DataError(
        f"{first.name} and {second.name} share {len(shared)} {examples} "
        f"(first in {first.name}: {in_first}; in {second.name}: {in_second}). Remove them from one of the sets."
    )


def subset(example_set: ExampleSet[E], limit: int | None, seed: int) -> ExampleSet[E]:
    """At most ``limit`` examples, drawn without replacement and kept in their order.

    Args:
        example_set: The set.
        limit: Largest number of examples, at least 1; None for all.
        seed: The same seed, limit and size give the same positions.

    Returns:
        The set itself if it is small enough, else a smaller one of the same name.

    Raises:
        DataError: The limit is below 1.
    """
    positions = subset_positions(len(example_set), limit, seed)
    if len(positions) == len(example_set):
        return example_set
    return ExampleSet(
        name=example_set.name,
        examples=[example_set[position] for position in positions],
        source=f"{example_set.source}, {limit} of {len(example_set)} drawn with seed {seed}",
    )


def subset_positions(size: int, limit: int | None, seed: int) -> list[int]:
    """Positions of the examples that `subset` takes, rising.

    Args:
        size: Number of examples.
        limit: Largest number of positions, at least 1; None for all.
        seed: The same seed, limit and size give the same positions.

    Raises:
        DataError: The limit is below 1.

    Example:
        >>> subset_positions(3, 5, seed=0)
        [0, 1, 2]
    """
    if limit is not None and limit < 1:
        raise DataError(f"A subset of {limit} examples is empty. Give a limit of at least 1.")
    if limit is None or limit >= size:
        return list(range(size))
    return sorted(np.random.default_rng(seed).permutation(size)[:limit].tolist())
