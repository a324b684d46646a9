"""How sentences and tables are shown in a terminal of any width."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text


def say(sentence: str) -> None:
    """Show what is wrong, on the standard error."""
    Console(stderr=True).print(Text(f"forget: {sentence}", style="red"), soft_wrap=True)


def tell(console: Console, sentence: str) -> None:
    """Show a sentence as it is: brackets and colons in paths and names are no markup."""
    console.print(Text(sentence))


def show_tables(console: Console, tables: Iterable[Table]) -> None:
    """Print tables so that no number and no name is cut."""
    for table in tables:
        console.print(WholeWords(table))


class WholeWords:
    """A table of which no word is cut, however narrow the terminal.

    Columns break between words. Where even their longest words do not fit beside each other, each row becomes a block
    of lines, one for each column. (A table of rich's own shortens words and puts an ellipsis.)

    Args:
        table: Cells are text.
    """

    def __init__(self, table: Table) -> None:
        self.table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table, or the blocks."""
        unlimited = options.update_width(_UNLIMITED)
        columns = [_widths(console, unlimited, column) for column in self.table.columns]
        around = Measurement.get(console, unlimited, self.table).maximum - sum(found.maximum for found in columns)
        room = options.max_width - around - sum(found.minimum for found in columns)
        if room < 0:
            yield from self._blocks()
            return
        for column, width in zip(self.table.columns, _shared(room, columns), strict=True):
            column.width, column.no_wrap = width, False
        yield self.table

    def _blocks(self) -> Iterator[RenderableType]:
        first, *others = self.table.columns
        if self.table.title:
            yield self.table.title
        for number, name in enumerate(first.cells):
            assert isinstance(name, str | Text)
            yield Text.assemble(_on_one_line(first.header), ": ", name) if first.header else name
            lines = Table.grid(padding=(0, 2, 0, 0))
            lines.add_column(overflow="fold")
            lines.add_column(overflow="fold")
            for column in others:
                lines.add_row(_on_one_line(column.header), list(column.cells)[number])
            yield Padding(lines, (0, 0, 0, 2))
        if self.table.caption:
            yield self.table.caption


_UNLIMITED = 10_000


def _widths(console: Console, options: ConsoleOptions, column: Column) -> Measurement:
    """Width of a column's longest word, and of its longest line."""
    cells = [Measurement.get(console, options, cell) for cell in (column.header, *column.cells)]
    return Measurement(max(cell.minimum for cell in cells), max(cell.maximum for cell in cells))


def _shared(room: int, columns: list[Measurement]) -> list[int]:
    """Widths of columns: that of the longest word, and of what room there is as much as each has a use for, evenly."""
    widths = [column.minimum for column in columns]
    while room > 0:
        wanting = [place for place, column in enumerate(columns) if widths[place] < column.maximum]
        if not wanting:
            break
        for place in wanting[:room]:
            widths[place] += 1
        room -= len(wanting[:room])
    return widths


def _on_one_line(header: RenderableType) -> str:
    return " ".join(str(header).split())
