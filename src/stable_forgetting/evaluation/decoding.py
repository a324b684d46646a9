"""Rows of answers that are decoded together, a token of each in a step; they leave as they end, and others may join.

E = rows still going, T = tokens that the model has not seen yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, LinearAttentionCacheLayerMixin

from stable_forgetting.errors import ModelError
from stable_forgetting.evaluation.prompts import ReadPrompts, model_inputs, side_by_side


@dataclass(eq=False)
class Rows:
    """The rows that are still going.

    Args:
        number: (E,), number of each row's example.
        end: (E,), end token of each row.
        room: (E,), how many tokens of each row may still come.
        input_ids: (E, T), tokens that the model has not seen yet; behind a step T = 1.
        attention_mask: (E, T), 1 for those and 0 for padding.
        read: What the model keeps of the tokens before; None: there are none.
    """

    number: Tensor
    end: Tensor
    room: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    read: ReadPrompts | None = None

    def __len__(self) -> int:
        return len(self.number)

    def step(self, model: nn.Module) -> list[tuple[int, int]]:
        """Find the most likely next token of each row, and drop the rows that end with it.

        Returns:
            Number and token of each row, end tokens included.

        Raises:
            ModelError: The model keeps no cache.
        """
        mask, cache = self.attention_mask, None
        if self.read is not None:
            mask, cache = torch.cat([self.read.attention_mask, mask], dim=1), self.read.cache
        outputs = model(
            **model_inputs(model, self.input_ids, mask, logits_to_keep=1), past_key_values=cache, use_cache=True
        )
        token = outputs.logits[:, -1].argmax(dim=-1)
        found = list(zip(self.number.tolist(), token.tolist(), strict=True))
        self._advance(token, ReadPrompts(mask, _cache_of(outputs, model)))
        return found

    def _advance(self, token: Tensor, read: ReadPrompts) -> None:
        going = (token != self.end) & (self.room > 1)
        if not going.all():
            _select_rows(read.cache, going.nonzero()[:, 0])
            read = ReadPrompts(read.attention_mask[going], read.cache)
            if read.keeps_all:
                read = read.without_padding()  # the longest may have left: no column is to be read in vain
        self.number, self.end, self.room = self.number[going], self.end[going], self.room[going] - 1
        self.input_ids, self.read = token[going, None], read
        self.attention_mask = torch.ones_like(self.input_ids)


def joined(parts: Sequence[Rows]) -> Rows:
    """All rows as one batch; each has one token that the model has not seen, and it keeps all those before."""
    read = side_by_side([cast(ReadPrompts, rows.read) for rows in parts])
    columns = [(rows.number, rows.end, rows.room, rows.input_ids, rows.attention_mask) for rows in parts]
    number, end, room, input_ids, mask = (torch.cat(column) for column in zip(*columns, strict=True))
    return Rows(number, end, room, input_ids, mask, read)


def _select_rows(cache: Any, chosen: Tensor) -> None:
    """Keep these rows of a cache. Layers with a recurrent state select all that they have by reordering it alone."""
    if type(cache) is not DynamicCache:
        cache.batch_select_indices(chosen)
        return
    for layer in cache.layers:
        is_recurrent = isinstance(layer, LinearAttentionCacheLayerMixin)
        (layer.reorder_cache if is_recurrent else layer.batch_select_indices)(chosen)


def _cache_of(outputs: Any, model: nn.Module) -> Any:
    cache = getattr(outputs, "past_key_values", None)
    if cache is None or not hasattr(cache, "batch_select_indices"):
        raise ModelError(
            f"{type(model).__name__} returns no key-value cache, which greedy answers need. "
            "Set evaluation.generate to false to measure without answers."
        )
    return cache
