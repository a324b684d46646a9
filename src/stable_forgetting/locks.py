"""Locks between processes of one machine: files that one process at a time holds, and that a killed one lets go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

try:
    import fcntl
except ImportError:  # Windows has no such locks
    HAS_LOCKS = False
else:
    HAS_LOCKS = True


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Within, no other process is within the same; one that wants to waits.

    Where there are no locks (`HAS_LOCKS`), nothing is locked.

    Args:
        path: The lock file; its folder must be there. It stays, and says nothing.

    Raises:
        OSError: The file cannot be written or locked.
    """
    with path.open("w") as file:
        if HAS_LOCKS:
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            _let_go(file)


@contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """The same without waiting: gives whether the lock was had."""
    with path.open("w") as file:
        is_held = True
        if HAS_LOCKS:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                is_held = False
        try:
            yield is_held
        finally:
            if is_held:
                _let_go(file)


def _let_go(file: TextIO) -> None:
    """At once, also where a child process has the file open too."""
    if HAS_LOCKS:
        fcntl.flock(file, fcntl.LOCK_UN)
