"""What is kept between runs: its names, hashes of everything that decides on it, and that it is made once."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from stable_forgetting import processes
from stable_forgetting.errors import DataError, RunDirectoryError
from stable_forgetting.models.load import cache_dir

CACHE_FORMAT = 2
"""Grows whenever the same settings would give another model than before."""

SECONDS_BETWEEN_TRIES = 2.0
"""Far less than what a finetuning takes, and than what processes wait for each other."""

logger = logging.getLogger(__name__)


def content_hash(key: Mapping[str, Any]) -> str:
    """Name under which something is kept that is determined by the key."""
    versions = {name: version(name) for name in ("torch", "transformers")}
    text = json.dumps({"format": CACHE_FORMAT, "versions": versions, **key}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


@contextmanager
def made_once(name: str, what: str) -> Iterator[None]:
    """Within, no other run makes the same: one that wants to waits, and then finds it in the cache.

    Of several processes at one run the main process holds the lock for all of them. They come together at every try,
    so that none takes the wait for the end of the others.

    Args:
        name: Under which it is kept.
        what: What is made, in words.

    Raises:
        DataError: The cache cannot be written or locked.
    """
    tries = 0
    with ExitStack() as held:
        while not processes.agree(not processes.is_main_process() or _take_lock(name, held)):
            if tries == 0 and processes.is_main_process():
                logger.warning("Another run is making %s. This one waits for it and then goes on.", what)
            tries += 1
            time.sleep(SECONDS_BETWEEN_TRIES)
        yield


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Within, no other process on this machine writes to a folder: two would mix their checkpoints and records.

    Of several processes at one run the main process holds the lock for all of them.

    Args:
        folder: It may not be there yet.

    Raises:
        RunDirectoryError: Another process is at work in it.
        DataError: The cache cannot be written or locked.
    """
    name = f"folder-{hashlib.sha256(str(folder.expanduser().resolve()).encode()).hexdigest()[:24]}"
    with ExitStack() as held:
        if not processes.agree(not processes.is_main_process() or _take_lock(name, held)):
            raise RunDirectoryError(
                f"Another process is at work in '{folder}'. Wait for its end and go on from there, or choose another "
                "folder."
            )
        yield


def _take_lock(name: str, held: ExitStack) -> bool:
    """Whether the lock was free; it is then held until the stack ends."""
    folder = cache_dir() / "locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held.enter_context(FileLock(folder / name, blocking=False))
    except Timeout:
        return False
    except (OSError, NotImplementedError) as error:  # the latter where the file system has no locks
        raise DataError(
            f"The cache folder '{folder}' cannot be used ({error}). Set STABLE_FORGETTING_CACHE to a local folder that "
            "can be written."
        ) from error
    return True
