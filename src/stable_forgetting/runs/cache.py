"""What is kept between runs: its names, hashes of everything that decides on it, and that it is made once."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from stable_forgetting import processes
from stable_forgetting.locks import locked
from stable_forgetting.models.load import cache_dir

CACHE_FORMAT = 2
"""Grows whenever the same settings would give another model than before."""

logger = logging.getLogger(__name__)


def content_hash(key: Mapping[str, Any]) -> str:
    """Name under which something is kept that is determined by the key."""
    versions = {name: version(name) for name in ("torch", "transformers")}
    text = json.dumps({"format": CACHE_FORMAT, "versions": versions, **key}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


@contextmanager
def made_once(name: str, what: str) -> Iterator[None]:
    """Within, no other run makes the same: one that wants to waits, and then finds it in the cache.

    Of several processes at one run the main process holds the lock for all of them.

    Args:
        name: Under which it is kept.
        what: What is made, in words.
    """
    if not processes.is_main_process():
        yield
        return
    folder = cache_dir() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(
        folder / name,
        on_wait=lambda: logger.warning("Another run is making %s. This one waits for it and then goes on.", what),
    ):
        yield
