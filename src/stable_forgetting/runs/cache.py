"""Names of what is kept between runs: hashes of everything that decides on it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

CACHE_FORMAT = 2
"""Grows whenever the same settings would give another model than before."""


def content_hash(key: Mapping[str, Any]) -> str:
    """Name under which something is kept that is determined by the key."""
    versions = {name: version(name) for name in ("torch", "transformers")}
    text = json.dumps({"format": CACHE_FORMAT, "versions": versions, **key}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
