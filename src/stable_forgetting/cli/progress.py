"""Progress bars in a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from stable_forgetting.progress import Advance


class RichProgress:
    """Shows each piece of work as a bar with the time it took and the time left.

    Args:
        console: Where the bars are drawn; one that is no terminal gets a line when a bar is done.
    """

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextmanager
    def track(self, description: str, total: int) -> Iterator[Advance]:
        """Open a bar."""
        columns = (
            TextColumn("{task.description:<36}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Bars(*columns, console=self.console) as bars:
            task = bars.add_task(description, total=total)
            yield lambda done: bars.advance(task, done)
