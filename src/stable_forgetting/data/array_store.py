"""Float arrays of one shape, kept by key in a file that is read as memory: what is costly is computed once.

A store is a folder with `values.bin` (float32, one array after the other), `keys.txt` (one key a line, in the same
order) and `shape.json`. Both files only grow, the values before their keys: a process that is killed while it writes
leaves at worst values without keys, which the next one writes over.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

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
        self._values: Tensor | None = None

    def arrays(self, keys: Sequence[str], compute: Callable[[list[int]], Tensor]) -> list[Tensor]:
        """The arrays of some keys.

        Args:
            keys: One for each array; equal keys mean equal arrays.
            compute: Gives the arrays at some positions of `keys`, (n, ...), all of one shape; asked only for what was
                never computed before.

        Raises:
            ValueError: The arrays have another shape than those that are kept.

        Returns:
            Float32 arrays in the order of the keys; views of the file, which are read when they are looked at.
        """
        if any(key not in self._places for key in keys):
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                self._read()
                self._add_missing(keys, compute)
                self._read()
        assert self._values is not None
        return [self._values[self._places[key]] for key in keys]

    def _add_missing(self, keys: Sequence[str], compute: Callable[[list[int]], Tensor]) -> None:
        first_places = {key: place for place, key in reversed(list(enumerate(keys))) if key not in self._places}
        missing = sorted(first_places.values())
        for start in range(0, len(missing), self.batch_size):
            batch = missing[start : start + self.batch_size]
            self._append([keys[place] for place in batch], compute(batch))

    def _append(self, keys: list[str], arrays: Tensor) -> None:
        values = np.ascontiguousarray(arrays.detach().float().cpu().numpy())
        shape_file = self.folder / "shape.json"
        if not shape_file.is_file():
            shape_file.write_text(json.dumps(values.shape[1:]))
        expected = json.loads(shape_file.read_text())
        if list(values.shape[1:]) != expected:
            raise ValueError(f"arrays of shape {list(values.shape[1:])} in a store of {expected}: {self.folder}")
        with (self.folder / "values.bin").open("ab") as file:
            file.truncate(len(self._places) * values[0].size * _FLOAT_BYTES)
            file.write(values.tobytes())
        with (self.folder / "keys.txt").open("a") as file:
            file.writelines(f"{key}\n" for key in keys)
        self._places |= {key: len(self._places) + number for number, key in enumerate(keys)}

    def _read(self) -> None:
        """Find out what there is; a last key that was not written to its end does not count."""
        keys_file, values_file = self.folder / "keys.txt", self.folder / "values.bin"
        if not keys_file.is_file():
            return
        text = keys_file.read_text()
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            keys_file.write_text(whole)
        keys = whole.split()
        shape = tuple(json.loads((self.folder / "shape.json").read_text()))
        if keys:
            # Copy on write: torch takes no array that it must not write to, and nothing here writes.
            values = np.memmap(values_file, dtype=np.float32, mode="c", shape=(len(keys), *shape))
            self._values = torch.from_numpy(values)
        self._places = {key: number for number, key in enumerate(keys)}

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
