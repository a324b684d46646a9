"""Forget, retain and unseen examples side by side: the order in which training sees them.

The batches of an epoch are a function of the seed and the epoch's number alone. A run that is resumed at epoch k sees
exactly the batches that it would have seen without the break. E = examples in a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from stable_forgetting.data.examples import E, ExampleSet
from stable_forgetting.errors import ConfigError

FORGET = 0
"""Role of an example to be forgotten."""
RETAIN = 1
"""Role of an example to be kept."""
UNSEEN = 2
"""Role of an example that the model has never seen, and that it is to find as it does."""
IDLE = 3
"""Role of an example that counts for nothing: it goes with a process that has no share of a small batch."""


class Draw(NamedTuple):
    """One example of a batch: its role, and its index in the set of that role."""

    role: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs of a draw


class DrawnExample(NamedTuple):
    """An example with the draw that chose it."""

    draw: Draw
    example: object


class ForgetRetainBatches(Sampler[list[Draw]]):
    """Batch sampler: every forget example once per epoch, and retain examples in cycles beside them.

    Retain examples are drawn without replacement until all were seen, then anew, also across epochs: at any time no
    retain example was seen more than once more often than another. Unseen examples, if there are any, are drawn in the
    same way. With a retain set only, as in finetuning, an epoch visits every retain example once. With
    `draws_forget=False` the epochs and the retain examples are those beside a forget set, which takes no part: the same
    number of steps on the same retain examples.

    Args:
        num_forget: Size of the forget set; None if there is none.
        num_retain: Size of the retain set; None if there is none.
        forget_batch_size: Forget examples per batch; the last batch of an epoch may have fewer.
        retain_batch_size: Retain examples per batch; always that many beside forget examples.
        seed: Seed of both orders.
        draws_forget: Whether batches have forget examples; False for objectives without a forget term.
        num_unseen: Size of the unseen set; None if it takes no part, as in finetuning.
        unseen_batch_size: Unseen examples per batch.

    Raises:
        ConfigError: There is neither set to draw from, or a size is below 1.

    Example:
        >>> batches = ForgetRetainBatches(3, 5, forget_batch_size=2, retain_batch_size=1, seed=0)
        >>> [[draw.role for draw in batch] for batch in batches]
        [[0, 0, 1], [0, 1]]
    """

    def __init__(
        self,
        num_forget: int | None,
        num_retain: int | None,
        *,
        forget_batch_size: int,
        retain_batch_size: int,
        seed: int,
        draws_forget: bool = True,
        num_unseen: int | None = None,
        unseen_batch_size: int = 1,
    ) -> None:
        sizes = {
            "num_forget": num_forget,
            "num_retain": num_retain,
            "num_unseen": num_unseen,
            "forget_batch_size": forget_batch_size,
            "retain_batch_size": retain_batch_size,
            "unseen_batch_size": unseen_batch_size,
        }
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise ConfigError(f"{name} is {size}. It must be at least 1.")
        if (num_forget is None or not draws_forget) and num_retain is None:
            raise ConfigError("There is neither a forget nor a retain set to draw batches from. Give at least one.")
        self.num_forget = num_forget
        self.num_retain = num_retain
        self.num_unseen = num_unseen
        self.unseen_batch_size = unseen_batch_size
        self.forget_batch_size = forget_batch_size
        self.retain_batch_size = retain_batch_size
        self.seed = seed
        self.draws_forget = draws_forget
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose batches come next."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.num_forget is not None:
            return math.ceil(self.num_forget / self.forget_batch_size)
        assert self.num_retain is not None
        return math.ceil(self.num_retain / self.retain_batch_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        forget = [Draw(FORGET, index) for index in self._forget_order()]
        retain = [Draw(RETAIN, index) for index in self._retain_order()]
        unseen = [Draw(UNSEEN, index) for index in self._cycles(UNSEEN, self.num_unseen, self.unseen_batch_size)]
        for batch in range(len(self)):
            of_forget = slice(batch * self.forget_batch_size, (batch + 1) * self.forget_batch_size)
            of_retain = slice(batch * self.retain_batch_size, (batch + 1) * self.retain_batch_size)
            of_unseen = slice(batch * self.unseen_batch_size, (batch + 1) * self.unseen_batch_size)
            yield forget[of_forget] + retain[of_retain] + unseen[of_unseen]

    def _forget_order(self) -> list[int]:
        if self.num_forget is None or not self.draws_forget:
            return []
        return self._permutation(FORGET, self.epoch, self.num_forget)

    def _retain_order(self) -> list[int]:
        if self.num_retain is not None and self.num_forget is None:
            return self._permutation(RETAIN, self.epoch, self.num_retain)
        return self._cycles(RETAIN, self.num_retain, self.retain_batch_size)

    def _cycles(self, role: int, size: int | None, batch_size: int) -> list[int]:
        """This epoch's piece of the endless sequence of permutations of a set."""
        if size is None:
            return []
        per_epoch = len(self) * batch_size
        first_cycle, offset = divmod(self.epoch * per_epoch, size)
        last_cycle = ((self.epoch + 1) * per_epoch - 1) // size
        order: list[int] = []
        for cycle in range(first_cycle, last_cycle + 1):
            order += self._permutation(role, cycle, size)
        return order[offset : offset + per_epoch]

    def _permutation(self, role: int, number: int, size: int) -> list[int]:
        order: list[int] = np.random.default_rng([self.seed, role, number]).permutation(size).tolist()
        return order


class ShareOfBatches(Sampler[list[Draw]]):
    """Batch sampler of one of several processes: its share of every batch; all shares together are the batch.

    Forget examples are dealt to the processes from the first one on, all others from the last one on, so that
    what is left over does not go to the same process twice. A process that gets nothing keeps pace with one idle
    example.

    Args:
        batches: Batches of all processes together.
        process_index: Number of the process, from 0.
        num_processes: How many there are.

    Example:
        >>> batches = ForgetRetainBatches(3, 5, forget_batch_size=2, retain_batch_size=1, seed=0)
        >>> [[[draw.role for draw in batch] for batch in ShareOfBatches(batches, rank, 2)] for rank in range(2)]
        [[[0], [0]], [[0, 1], [1]]]
    """

    def __init__(self, batches: ForgetRetainBatches, process_index: int, num_processes: int) -> None:
        self.batches = batches
        self.process_index = process_index
        self.num_processes = num_processes

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose batches come next."""
        self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Draw]]:
        for batch in self.batches:
            forget = [draw for draw in batch if draw.role == FORGET]
            others = [draw for draw in batch if draw.role != FORGET]
            share = forget[self.process_index :: self.num_processes]
            share += others[self.num_processes - 1 - self.process_index :: self.num_processes]
            yield share or [Draw(IDLE, 0)]


class PairedExamples(Dataset[DrawnExample], Generic[E]):
    """All sets as one data set whose index is a draw.

    Args:
        forget: Examples to be forgotten, or None.
        retain: Examples to be kept, or None.
        unseen: Examples that the model has never seen, or None.
    """

    def __init__(
        self, forget: ExampleSet[E] | None, retain: ExampleSet[E] | None, unseen: ExampleSet[E] | None = None
    ) -> None:
        self.forget = forget
        self.retain = retain
        self.unseen = unseen

    def __len__(self) -> int:
        return sum(len(examples) for examples in (self.forget, self.retain, self.unseen) if examples is not None)

    def __getitem__(self, draw: Draw) -> DrawnExample:
        idle = self.retain if self.forget is None else self.forget
        examples = {FORGET: self.forget, RETAIN: self.retain, UNSEEN: self.unseen, IDLE: idle}[draw.role]
        if examples is None:
            raise IndexError(f"{draw} is of a role that has no examples")
        return DrawnExample(draw, examples[draw.index])


class PairCollator(Generic[E]):
    """Makes tensors of drawn examples: the task's own, and who they are.

    Args:
        collate: The task's function from examples to tensors.
    """

    def __init__(self, collate: Callable[[Sequence[E]], dict[str, Tensor]]) -> None:
        self.collate = collate

    def __call__(self, drawn: Sequence[DrawnExample]) -> dict[str, Tensor]:
        """Collate a batch.

        Args:
            drawn: The examples of the batch in order.

        Returns:
            The task's tensors, and ``role`` (E,) and ``index`` (E,), int64.
        """
        examples: list[E] = [item.example for item in drawn]  # type: ignore[misc]
        return {
            **self.collate(examples),
            "role": torch.tensor([item.draw.role for item in drawn], dtype=torch.int64),
            "index": torch.tensor([item.draw.index for item in drawn], dtype=torch.int64),
        }
