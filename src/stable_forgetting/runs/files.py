"""The local files that a run reads, by size and times of change: whether a look at their content is needed again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from stable_forgetting.config import RunConfig
from stable_forgetting.runs.sets import SET_NAMES

_TABLES = (".jsonl", ".json", ".csv", ".parquet")
"""Files whose rows may name images, which are files as well."""


def local_files(config: RunConfig) -> dict[str, list[int]] | None:
    """Size and times of change of every local file that a config names, by path; not of what comes from a hub.

    The times are in nanoseconds, of the content and of the entry in its folder.

    Args:
        config: The config: its sources of data, its models and the log of a retain model.

    Returns:
        None where files are read that the config does not name: images in the rows of a table.
    """
    sources = [config.data.source, *(getattr(config.data, name) for name in SET_NAMES)]
    paths_of_data = [source.path for source in sources if source is not None and source.path is not None]
    if config.task == "image" and any(path.lower().endswith(_TABLES) for path in paths_of_data):
        return None
    named = [*paths_of_data, *_models(config), config.retain_log]
    paths = dict.fromkeys(Path(name).expanduser() for name in named if name is not None)
    return {str(file): _state(file) for path in paths for file in _files(path)}


def gone_models(config: RunConfig) -> list[Path]:
    """Models of a config that are no local folder (any more), such as merged models that were deleted for room."""
    places = [Path(name).expanduser() for name in _models(config) if name is not None]
    return [place for place in places if not place.exists()]


def _models(config: RunConfig) -> tuple[str | None, ...]:
    return config.model.name, config.base_model, config.retain_model, config.pretrained_model


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        for folder, _, names in os.walk(path, followlinks=True):
            yield from (Path(folder) / name for name in sorted(names) if (Path(folder) / name).is_file())
    elif path.is_file():
        yield path


def _state(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]
