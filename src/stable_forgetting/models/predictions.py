"""What a model says at the label positions of a batch: the one thing that objectives and metrics are made from.

P = label positions in the batch, E = examples in the batch, V = vocabulary or classes.

The positions are stored flat, without padding, so that no objective or metric can count padding or a question by
mistake, and language and image models share every definition: an image has one label position.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Predictions:
    """Logits at the label positions of a batch.

    Args:
        logits: (P, V), any floating type; sums are taken in float32 or better.
        labels: (P,), the right token or class of each position.
        example: (P,), the example that each position belongs to, 0 to E−1, in increasing order.
        num_examples: E.
    """

    logits: Tensor
    labels: Tensor
    example: Tensor
    num_examples: int

    def logits_of(self, positions: Tensor) -> Tensor:
        """Logits of some positions, (chosen, V)."""
        return self.logits[positions]

    @cached_property
    def nll(self) -> Tensor:
        """Negative log-likelihood of each label, (P,), in nats."""
        logits = self.logits if self.logits.dtype == torch.float64 else self.logits.float()
        return F.cross_entropy(logits, self.labels, reduction="none")

    @cached_property
    def nll_sum(self) -> Tensor:
        """S: negative log-likelihood of each example, summed over its labels, (E,)."""
        return self.sum_by_example(self.nll)

    @cached_property
    def num_labels(self) -> Tensor:
        """n: number of labels of each example, (E,)."""
        return self.sum_by_example(torch.ones_like(self.example))

    @cached_property
    def position(self) -> Tensor:
        """Number of each label within its example, from 0, (P,)."""
        starts = self.num_labels.cumsum(0) - self.num_labels
        return torch.arange(len(self.example), device=self.example.device) - starts[self.example]

    @property
    def nll_mean(self) -> Tensor:
        """Mean l = S / n: negative log-likelihood per label of each example, (E,)."""
        return self.nll_sum / self.num_labels

    @cached_property
    def correct(self) -> Tensor:
        """Whether the most likely token or class is the label, (P,), bool."""
        return self.logits.argmax(dim=-1) == self.labels

    @cached_property
    def num_leading_correct(self) -> Tensor:
        """Labels of each example before the first that is not the most likely token or class, (E,)."""
        most = self.num_labels
        place = torch.where(self.correct, most[self.example], self.position)
        return most.scatter_reduce(0, self.example, place, reduce="amin")

    def sum_by_example(self, values: Tensor) -> Tensor:
        """Sum of a value per position over the positions of each example, (P,) to (E,)."""
        return values.new_zeros(self.num_examples).index_add(0, self.example, values)

    def select(self, chosen: Tensor) -> Predictions:
        """Predictions of some of the examples, in the same order.

        Args:
            chosen: (E,), bool.
        """
        keep = chosen[self.example]
        number = torch.cumsum(chosen, dim=0) - 1
        return Predictions(
            logits=self.logits[keep],
            labels=self.labels[keep],
            example=number[self.example[keep]],
            num_examples=int(chosen.sum()),
        )
