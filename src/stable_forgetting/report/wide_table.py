"""A table of numbers for a terminal of any width: columns that do not fit go on below, and nothing is cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

_GAP = 1
"""Spaces behind each column."""


@dataclass(frozen=True)
class WideTable:
    """Labels, and columns of numbers beside them.

    Args:
        title: Above the table; where it goes on below, each part has it.
        first: Head of the column of labels.
        labels: One for each row.
        columns: Head and cells of each column.
        caption: Below the table; None for none.
    """

    title: str
    first: str
    labels: Sequence[Text]
    columns: Sequence[tuple[str, Sequence[Text]]]
    caption: Text | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        """As many tables as the width asks for."""
        parts = list(self._parts(options.max_width))
        for number, columns in enumerate(parts, start=1):
            is_last = number == len(parts)
            yield self._table(columns, self.title if number == 1 else f"{self.title}, further columns", is_last)

    def _parts(self, width: int) -> Iterator[list[int]]:
        """Numbers of the columns that stand beside each other; at least one."""
        room = width - _width(self.first, self.labels)
        part: list[int] = []
        taken = 0
        for number, (head, cells) in enumerate(self.columns):
            needed = _width(head, cells)
            if part and taken + needed > room:
                yield part
                part, taken = [], 0
            part.append(number)
            taken += needed
        yield part

    def _table(self, columns: Sequence[int], title: str, is_last: bool) -> Table:
        table = Table(
            title=Text(title),
            caption=self.caption if is_last else None,
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, _GAP, 0, 0),
        )
        table.add_column(self.first, overflow="fold")
        chosen = [self.columns[number] for number in columns]
        for head, _ in chosen:
            table.add_column(Text(head), justify="right", no_wrap=True)
        for row, label in enumerate(self.labels):
            table.add_row(label, *(cells[row] for _, cells in chosen))
        return table


def _width(head: str, cells: Sequence[Text]) -> int:
    lines = [Text(line) for line in head.split("\n")]
    return max(text.cell_len for text in [*lines, *cells]) + _GAP
