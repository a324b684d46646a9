"""Values of examples of different lengths, held without the padding that a batch of them needs.

N = examples, P = places of all of them together.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True, eq=False)
class RaggedRows:
    """Rows of different lengths, one behind the other. One long example does not make all others as long.

    Args:
        values: (P, ...), row after row.
        lengths: (N,), places of each row.
    """

    values: Tensor
    lengths: Tensor

    @property
    def device(self) -> torch.device:
        """Where the values are."""
        return self.values.device

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Some rows, (rows, longest of them, ...), with zeros behind the end of each; possibly none."""
        if not len(rows):  # a process's share of a small batch
            return self.values.new_zeros((0, 0, *self.values.shape[1:]))
        chosen = [self.values[self._starts[row] : self._starts[row + 1]] for row in rows.tolist()]
        return pad_sequence(chosen, batch_first=True)

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *self.lengths.cumsum(0).tolist()]


RowValues = Tensor | RaggedRows
"""A row for each example: of one length, or of a length of its own."""
