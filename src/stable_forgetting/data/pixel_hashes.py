"""Hashes of the pixels of image files, kept beside scaled images: a file that has not changed is decoded once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
from filelock import FileLock

from stable_forgetting.data.examples import pixels_sha256
from stable_forgetting.errors import DataError

_SETTLED_NS = 2_000_000_000
"""Age from which a file is remembered: one that was just written may change again without a new time or size."""

_State = tuple[int, int, int]
"""Times of the last change in nanoseconds, of the content and of the entry in its folder, and size in bytes. Two files
of one size and one time, as an archive leaves them, that were exchanged have new entries."""


class PixelHashes:
    """Hashes of images by content, and of files by path as long as their times and size stay.

    They are kept in a text file with one line for each image file: hash, times, size, path. Decoders may differ in the
    last bit, so each version of Pillow has a file of its own.

    Args:
        folder: Where they are kept; made when the first one is written. None: nothing is kept.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / f"pixels-by-file-pillow-{PIL.__version__}.txt"
        self._known = {} if self._path is None else _read(self._path)

    def of(self, images: Sequence[Any], read: Callable[[int], npt.NDArray[np.uint8]]) -> list[str]:
        """Hashes of some images.

        Args:
            images: Paths of files, or anything else, which is read in any case.
            read: Pixels of the image at a position; asked only for what is not known.

        Returns:
            One hash for each image.

        Raises:
            DataError: The folder cannot be written, or an image cannot be read.
        """
        found, new = [], {}
        for position, image in enumerate(images):
            path = str(Path(image).absolute()) if isinstance(image, str | Path) else None
            state = None if path is None or self._path is None else _state(path)
            hashed = None if path is None or state is None else self._known.get((path, state))
            if hashed is None:
                hashed = pixels_sha256(read(position))
                if path is not None and state is not None and _can_be_kept(path, state):
                    new[path, state] = hashed
            found.append(hashed)
        if new and self._path is not None:
            _append(self._path, new)
            self._known |= new
        return found


def _state(path: str) -> _State | None:
    try:
        found = Path(path).stat()
    except OSError:  # who reads it says what is wrong
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size


def _can_be_kept(path: str, state: _State) -> bool:
    return path.isprintable() and time.time_ns() - state[0] > _SETTLED_NS


def _read(path: Path) -> dict[tuple[str, _State], str]:
    """What is kept; a last line that was not written to its end counts for nothing."""
    if not path.is_file():
        return {}
    known = {}
    written = path.read_bytes()
    for line in written[: written.rfind(b"\n") + 1].decode().splitlines():
        hashed, *state, name = line.split(" ", 4)
        changed, entered, size = map(int, state)
        known[name, (changed, entered, size)] = hashed
    return known


def _append(path: Path, new: dict[tuple[str, _State], str]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")), path.open("a+b") as file:
            text = path.read_bytes()
            file.truncate(text.rfind(b"\n") + 1)
            lines = (" ".join((hashed, *map(str, state), name)) + "\n" for (name, state), hashed in new.items())
            file.write("".join(lines).encode())
    except (OSError, NotImplementedError) as error:  # the latter where the file system has no locks
        raise DataError(
            f"The cache folder '{path.parent}' cannot be used ({error}). Set STABLE_FORGETTING_CACHE to a local folder "
            "with room, or model.disk_cache_gib to 0 so that nothing is kept."
        ) from error
