"""Tables for a terminal that never cut a number, however narrow it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

_LEAST_NAME_WIDTH = 16
"""Characters of a name beside which all columns have to fit; else they are put into several tables."""


@dataclass(frozen=True)
class Column:
    """A column of values."""

    heading: str
    """May have several lines."""
    right: bool = True


@dataclass(frozen=True)
class BlockTable:
    """Names with values beside them; columns for which there is no place go into a further table below.

    Args:
        title: Above the first table.
        first: Heading of the names, which are broken where they are too long.
        columns: Of the values, which are not.
        rows: Each name with its values, one for each column.
        caption: Below the last table, as wide as the console.
    """

    title: str
    first: str
    columns: Sequence[Column]
    rows: Sequence[tuple[Text, Sequence[Text]]]
    caption: Text | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """The tables for a console's width."""
        widest = max(name.cell_len for name in (Text(self.first), *(name for name, _ in self.rows)))

        def width(places: Sequence[int], name_width: int) -> int:
            return Measurement.get(console, options.update(width=10_000), self._table(places, name_width)).maximum

        places, limit = range(len(self.columns)), options.max_width
        left = limit - width(places, 1) + 1
        if left >= min(widest, _LEAST_NAME_WIDTH):
            blocks, name_width = [list(places)], min(widest, left)
        else:
            blocks, name_width = [[]], min(widest, max(limit // 3, 1))
            for place in places:
                if blocks[-1] and width([*blocks[-1], place], name_width) > limit:
                    blocks.append([])
                blocks[-1].append(place)
        for number, block in enumerate(blocks, start=1):
            table = self._table(block, name_width)
            table.title = Text(self.title) if number == 1 else None
            yield table
        if self.caption is not None:
            yield self.caption

    def _table(self, places: Sequence[int], name_width: int) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column(self.first, width=name_width, overflow="fold")
        for place in places:
            column = self.columns[place]
            table.add_column(Text(column.heading), no_wrap=True, justify="right" if column.right else "left")
        for name, values in self.rows:
            table.add_row(name, *(values[place] for place in places))
        return table
