"""Bytes of the tensors that are there, counted from the birth of a storage to its end."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class StorageTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Counts the bytes of all storages that are made while it is active, until each of them is gone.

    Args:
        earlier: Tensors whose storages were there before and do not count.
    """

    def __init__(self, earlier: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self._born = 0
        self._size_by_birth: dict[int, int] = {}
        self._known: dict[int, weakref.ref[Any]] = {}
        for tensor in earlier:
            storage = tensor.untyped_storage()
            self._known[id(storage)] = weakref.ref(storage)

    def now(self) -> int:
        """A moment to ask `live_since` about."""
        return self._born

    def live_since(self, moment: int) -> int:
        """Bytes of the storages that were made after a moment and are there now."""
        return sum(size for birth, size in self._size_by_birth.items() if birth > moment)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Run an operation and count what it made."""
        result = func(*args, **(kwargs or {}))
        for made in tree_iter(result):
            if isinstance(made, Tensor):
                self._count(made.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return
        self._born += 1
        birth = self._born

        def gone(_: object) -> None:
            self.live -= size
            del self._known[key], self._size_by_birth[birth]

        self._known[key] = weakref.ref(storage, gone)
        self._size_by_birth[birth] = size
        self.live += size
        self.peak = max(self.peak, self.live)
