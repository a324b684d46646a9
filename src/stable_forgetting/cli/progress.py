"""Progress bars and notes in a terminal."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from stable_forgetting.cli.shown import tell
from stable_forgetting.progress import Advance

WORTH_A_LINE = 2.0
"""Seconds from which finished work leaves a line behind; shorter work only shows while it runs."""


class RichProgress:
    """Shows each piece of work as a bar with the time it took and the time left, and then as a line.

    Args:
        console: Where it is drawn; one that is no terminal gets the lines only. None: the standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()

    @contextmanager
    def track(self, description: str, total: int, unit: str) -> Iterator[Advance]:
        """Open a bar."""
        columns = (
            TextColumn("{task.description:<36}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        start = time.monotonic()
        with Bars(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bars:
            task = bars.add_task(description, total=total, unit=unit)
            yield lambda done: bars.advance(task, done)
        seconds = time.monotonic() - start
        if seconds >= WORTH_A_LINE:
            tell(self.console, f"{description}: {total} {unit} in {seconds:.0f} s")


class Notes(logging.Handler):
    """Shows each warning of this package as a sentence, once: runs that read the same data give the same ones.

    Args:
        console: Where they are shown.
    """

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self.console = console
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Show one."""
        sentence = record.getMessage()
        if sentence not in self.said:
            self.said.add(sentence)
            tell(self.console, f"Note: {sentence}")
