"""How long work reports on itself, without knowing whether a terminal, a notebook or nobody is watching."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]
"""Says that so many more units are done."""


class Progress(Protocol):
    """Something that can show how far a piece of work has come."""

    def track(self, description: str, total: int, unit: str) -> AbstractContextManager[Advance]:
        """Open a bar for `total` units, such as steps; the value of the context is called with the number just done."""
        ...


class SilentProgress:
    """Shows nothing: the default of the library."""

    @contextmanager
    def track(self, description: str, total: int, unit: str) -> Iterator[Advance]:
        """A bar that nobody sees."""
        yield lambda _: None
