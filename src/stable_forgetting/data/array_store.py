"""Float arrays of one shape, kept by key in a file that is read as memory: what is costly is computed once.

A store is a folder with `values.bin` (float32, one array after the other), `keys.txt` (one key a line, in the same
order) and `shape.json`. The values are written before their keys: a process that is killed while it writes leaves at
worst values without keys, which the next one writes over. The folder may be deleted at any time, also while a process
uses it: what that one has read stays valid, and the next array that is not there begins a new store.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stable_forgetting.errors import DataError
from stable_forgetting.locks import locked

_FLOAT_BYTES = 4


class ArrayStore:
    """Arrays by key.

    Args:
        folder: Where they are kept; made when the first one is written. Several processes may use it at once.
        batch_size: Arrays that are computed at a time.
    """

    def __init__(self, folder: Path, batch_size: int = 64) -> None:
        self.folder = folder
        self.batch_size = batch_size
        self._places: dict[str, int] = {}
        self._values = torch.empty(0)

    def arrays(self, keys: Sequence[str], compute: Callable[[list[int]], Tensor]) -> list[Tensor]:
        """The arrays of some keys.

        Args:
            keys: One for each array; equal keys mean equal arrays.
            compute: Gives the arrays at some positions of `keys`, (n, ...), all of one shape; asked only for what was
                never computed before.

        Returns:
            Float32 arrays in the order of the keys; views of the file, which are read when they are looked at.

        Raises:
            ValueError: The arrays have another shape than those that are kept.
            DataError: The folder cannot be written or locked.
        """
        if any(key not in self._places for key in keys):
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                with locked(self.folder / "lock"):
                    self._places, self._values = self._completed(keys, compute)
            except OSError as error:
                raise DataError(
                    f"The cache folder '{self.folder}' cannot be used ({error}). Set STABLE_FORGETTING_CACHE to a "
                    "local folder with room, or model.disk_cache_gib to 0 so that nothing of images is kept."
                ) from error
        return [self._values[self._places[key]] for key in keys]

    def _completed(self, keys: Sequence[str], compute: Callable[[list[int]], Tensor]) -> tuple[dict[str, int], Tensor]:
        """Keys with their places, and all arrays, after the missing ones were added; the lock is held."""
        kept = self._kept_keys()
        known = set(kept)
        first_places = {key: place for place, key in reversed(list(enumerate(keys))) if key not in known}
        missing = sorted(first_places.values())
        for start in range(0, len(missing), self.batch_size):
            batch = missing[start : start + self.batch_size]
            added = [keys[place] for place in batch]
            self._append(added, compute(batch), len(kept))
            kept += added
        shape = json.loads((self.folder / "shape.json").read_text())
        # Copy on write: torch takes no array that it must not write to, and nothing here writes.
        values = np.memmap(self.folder / "values.bin", dtype=np.float32, mode="c", shape=(len(kept), *shape))
        return {key: place for place, key in enumerate(kept)}, torch.from_numpy(values)

    def _kept_keys(self) -> list[str]:
        """Keys whose values are there; a last key that was not written to its end is cut off."""
        path = self.folder / "keys.txt"
        if not path.is_file():
            return []
        text = path.read_text()
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            with path.open("r+") as file:
                file.truncate(len(whole))
        return whole.split()

    def _append(self, keys: list[str], arrays: Tensor, num_kept: int) -> None:
        values = np.ascontiguousarray(arrays.detach().float().cpu().numpy())
        shape = list(values.shape[1:])
        shape_file = self.folder / "shape.json"
        if num_kept == 0:
            shape_file.write_text(json.dumps(shape))
        expected = json.loads(shape_file.read_text())
        if shape != expected:
            raise ValueError(f"arrays of shape {shape} in a store of {expected}: {self.folder}")
        with (self.folder / "values.bin").open("ab") as file:
            file.truncate(num_kept * values[0].size * _FLOAT_BYTES)
            file.write(values.tobytes())
        with (self.folder / "keys.txt").open("a") as file:
            file.writelines(f"{key}\n" for key in keys)
