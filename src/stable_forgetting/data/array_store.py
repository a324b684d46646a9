"""Float arrays kept by key in a file that is read as memory: what is costly is computed once.

The arrays of a store may differ in their first dimension, as texts differ in length; the others are the same for all.
A store is a folder with `values.bin` (float32, one array after the other), `keys.txt` (key and length, one array a
line, in the same order) and `shape.json` (the other dimensions). The values are written before their keys: a process
that is killed while it writes leaves at worst values without keys, which the next one writes over. The folder may be
deleted at any time, also while a process uses it: what that one has read stays valid, and the next array that is not
there begins a new store.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from stable_forgetting.errors import DataError

CAN_GROW = sys.platform != "win32"
"""Whether a file can grow while it is read as memory."""

_FLOAT_BYTES = 4

Compute = Callable[[list[int]], Sequence[Tensor] | Tensor]
"""From positions to their arrays: a tensor of them if they have one shape, or a list."""


class ArrayStore:
    """Arrays by key.

    Args:
        folder: Where they are kept; made when the first one is written. Several processes may use it at once.
        batch_size: Arrays that are computed at a time.
    """

    def __init__(self, folder: Path, batch_size: int = 64) -> None:
        self.folder = folder
        self.batch_size = batch_size
        self._places: dict[str, slice] = {}
        self._values = torch.empty(0)

    def arrays(self, keys: Sequence[str], compute: Compute) -> list[Tensor]:
        """The arrays of some keys.

        Args:
            keys: One for each array, without spaces; equal keys mean equal arrays.
            compute: Gives the arrays at some positions of `keys`; asked only for what was never computed before.

        Returns:
            Float32 arrays in the order of the keys; views of the file, which are read when they are looked at.

        Raises:
            ValueError: The arrays differ from those that are kept in more than the first dimension.
            DataError: The folder cannot be written or locked.
        """
        if any(key not in self._places for key in keys):
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                with FileLock(self.folder / "lock"):
                    self._places, self._values = self._completed(keys, compute)
            except (OSError, NotImplementedError) as error:  # the latter where the file system has no locks
                raise DataError(
                    f"The cache folder '{self.folder}' cannot be used ({error}). Set STABLE_FORGETTING_CACHE to a "
                    "local folder with room, or model.disk_cache_gib to 0 so that nothing is kept."
                ) from error
        return [self._values[self._places[key]] for key in keys]

    def _completed(self, keys: Sequence[str], compute: Compute) -> tuple[dict[str, slice], Tensor]:
        """Keys with their rows, and all rows, after the missing arrays were added; the lock is held."""
        places = self._kept_places()
        first = {key: place for place, key in reversed(list(enumerate(keys))) if key not in places}
        missing = sorted(first.values())
        for start in range(0, len(missing), self.batch_size):
            batch = missing[start : start + self.batch_size]
            self._append([keys[place] for place in batch], compute(batch), places)
        shape = json.loads((self.folder / "shape.json").read_text())
        # Copy on write: torch takes no array that it must not write to, and nothing here writes.
        values = np.memmap(self.folder / "values.bin", dtype=np.float32, mode="c", shape=(_num_rows(places), *shape))
        return places, torch.from_numpy(values)

    def _kept_places(self) -> dict[str, slice]:
        """Rows of the keys whose values are there; a last line that was not written to its end is cut off."""
        path = self.folder / "keys.txt"
        if not path.is_file():
            return {}
        text = path.read_text()
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            with path.open("r+") as file:
                file.truncate(len(whole))
        places: dict[str, slice] = {}
        end = 0
        for line in whole.splitlines():
            key, length = line.split()
            places[key] = slice(end, end := end + int(length))
        return places

    def _append(self, keys: list[str], arrays: Sequence[Tensor] | Tensor, places: dict[str, slice]) -> None:
        """Write arrays behind those that are there, and enter their rows."""
        rows = torch.cat([array.detach().float().cpu() for array in arrays]).contiguous().numpy()
        shape = list(rows.shape[1:])
        shape_file = self.folder / "shape.json"
        if not places:
            shape_file.write_text(json.dumps(shape))
        expected = json.loads(shape_file.read_text())
        if shape != expected:
            raise ValueError(f"arrays of rows of {shape} in a store of {expected}: {self.folder}")
        end = _num_rows(places)
        with (self.folder / "values.bin").open("ab") as file:
            file.truncate(end * math.prod(shape) * _FLOAT_BYTES)
            file.write(rows.tobytes())
        with (self.folder / "keys.txt").open("a") as file:
            file.writelines(f"{key} {len(array)}\n" for key, array in zip(keys, arrays, strict=True))
        for key, array in zip(keys, arrays, strict=True):
            places[key] = slice(end, end := end + len(array))


def _num_rows(places: dict[str, slice]) -> int:
    return max((rows.stop for rows in places.values()), default=0)
