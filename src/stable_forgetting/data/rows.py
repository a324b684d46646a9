"""Rows: what every source is read into, before anything knows whether it is language or images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from stable_forgetting.errors import DataError, unknown_name

Row = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Rows:
    """A table: rows in order, and where they came from.

    Args:
        rows: One mapping from column to value per row. A row may lack columns that others have.
        source: Where the rows came from, in words, for messages and records.

    Example:
        >>> rows = Rows([{"prompt": "Who?", "answer": "Ada."}], "given in memory")
        >>> rows.columns
        ('prompt', 'answer')
    """

    rows: Sequence[Row]
    source: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Every column that any row has, in order of first appearance."""
        return tuple(dict.fromkeys(column for row in self.rows for column in row))

    def filter(self, keep: Callable[[Row], bool], how: str) -> Rows:
        """The rows for which ``keep`` is true, in order.

        Args:
            keep: The condition.
            how: The condition in words; it is added to the source.

        Returns:
            The rows that are kept; possibly none.
        """
        return Rows([row for row in self.rows if keep(row)], f"{self.source}, {how}")

    def first(self, limit: int | None) -> Rows:
        """The first ``limit`` rows, or all of them if there is no limit."""
        if limit is None or limit >= len(self):
            return self
        return replace(self, rows=self.rows[:limit], source=f"{self.source}, first {limit}")


def select_split(rows: Rows, split: str | None) -> Rows:
    """The rows whose column ``split`` has the given value.

    Args:
        rows: The table.
        split: The value, or None for all rows.

    Returns:
        The rows of that split.

    Raises:
        DataError: There is no column ``split``, or no row has that value.
    """
    if split is None:
        return rows
    if "split" not in rows.columns:
        raise DataError(
            f"{rows.source} has no column 'split', so there is no split '{split}'. "
            f"Columns: {', '.join(rows.columns)}. Leave 'split' out, or choose rows with a 'where' rule."
        )
    values = {str(row["split"]) for row in rows if row.get("split") is not None}
    if split not in values:
        raise DataError(f"{rows.source}: {unknown_name('split', split, values)}")
    return rows.filter(lambda row: str(row.get("split")) == split, f"split {split}")
