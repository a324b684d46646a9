"""Locks between processes of one machine: files that one process at a time holds, and that a killed one lets go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks
    HAS_LOCKS = False
else:
    HAS_LOCKS = True


@contextmanager
def locked(path: Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Within, no other process is within the same; one that wants to waits.

    Where there are no locks (`HAS_LOCKS`), nothing is locked.

    Args:
        path: The lock file; its folder must be there. It stays, and says nothing.
        on_wait: Called once if another process holds the lock, before waiting for it.

    Raises:
        OSError: The file cannot be written or locked.
    """
    if not HAS_LOCKS:
        yield
        return
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if on_wait is not None:
                on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
