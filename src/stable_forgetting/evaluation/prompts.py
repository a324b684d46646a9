"""Prompts that a model has read: the keys and values from which answers are generated or measured.

E = rows, S = tokens read so far, T = tokens that come next.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from stable_forgetting.data.examples import LanguageExample
from stable_forgetting.evaluation.likelihood import batches_of_like
from stable_forgetting.models.reading import accepted_inputs, reads_padded_prompts, stretching_length
from stable_forgetting.models.tasks import IGNORED

Family = Sequence[LanguageExample]
"""All answers to one question."""


def common_prompt(family: Family) -> int:
    """Number of tokens that all answers begin with, at most all prompt tokens but the last.

    The last one is read together with the answer, whose first token it predicts. Tokenizers that join the prompt's end
    with the answer's start can make the prompts differ, so they are compared and not taken for granted.
    """
    limit = min(answer.num_prompt_tokens for answer in family) - 1
    prompts = np.array([answer.input_ids[:limit] for answer in family])
    return limit if limit < 1 else int((prompts == prompts[0]).all(axis=0).cumprod().sum())


def labels_after(answers: Sequence[LanguageExample], num_read: Sequence[int]) -> list[Tensor]:
    """The token after each token of an answer but the last, (T,) each, from the first that is not read yet on.

    `IGNORED` where it is no label.
    """
    labels = []
    for answer, start in zip(answers, num_read, strict=True):
        following = torch.tensor(answer.input_ids[start + 1 :])
        following[: -answer.num_labels] = IGNORED
        labels.append(following)
    return labels


@dataclass(frozen=True, eq=False)
class ReadPrompts:
    """What a model keeps of prompts that it has read.

    Args:
        attention_mask: (E, S), 1 for tokens and 0 for padding, which is on the left: each prompt is followed by its
            answer without a gap, as models with sliding windows or relative positions need it.
        cache: Keys and values of the S tokens of each row, as the model gave them.
    """

    attention_mask: Tensor
    cache: Any

    @property
    def num_tokens(self) -> int:
        """S, padding included."""
        return self.attention_mask.shape[1]

    @property
    def can_be_copied(self) -> bool:
        """Whether the cache is one that `rows` knows how to copy: plain keys and values, all of them or a window."""
        return _has_only(self.cache, DynamicLayer, DynamicSlidingWindowLayer)

    @property
    def keeps_all(self) -> bool:
        """Whether there are keys and values of every token, and nothing else."""
        return keeps_all(self.cache)

    def rows(self, chosen: Tensor) -> ReadPrompts:
        """A copy with the chosen rows, each as often as it is named; what is appended to it does not show here.

        Args:
            chosen: (rows,), indices.
        """
        cache = _copied(self.cache)
        cache.batch_select_indices(chosen)
        return ReadPrompts(self.attention_mask[chosen], cache)

    def without_padding(self) -> ReadPrompts:
        """The same without columns that are padding in every row; the cache must keep every token."""
        start = int(self.attention_mask.any(dim=0).long().argmax())
        if start == 0:
            return self
        return ReadPrompts(self.attention_mask[:, start:], _changed(self.cache, lambda kept: kept[:, :, start:]))


def keeps_all(cache: Any) -> bool:
    """Whether a cache has keys and values of every token, and nothing else."""
    return _has_only(cache, DynamicLayer) and all(layer.is_initialized for layer in cache.layers)


def _has_only(cache: Any, *kinds: type) -> bool:
    layers = cache.layers if type(cache) is DynamicCache else []
    return bool(layers) and all(type(layer) in kinds for layer in layers)


def side_by_side(parts: Sequence[ReadPrompts]) -> ReadPrompts:
    """The rows of all parts, one part behind the other; their caches must keep every token."""
    missing = [max(part.num_tokens for part in parts) - part.num_tokens for part in parts]

    def beside(number: int, name: str) -> Tensor:
        kept = [getattr(part.cache.layers[number], name) for part in parts]
        return torch.cat([F.pad(rows, (0, 0, count, 0)) for rows, count in zip(kept, missing, strict=True)])

    cache = _copied(parts[0].cache)
    for number, layer in enumerate(cache.layers):
        layer.keys, layer.values = beside(number, "keys"), beside(number, "values")
    masks = [F.pad(part.attention_mask, (count, 0)) for part, count in zip(parts, missing, strict=True)]
    return ReadPrompts(torch.cat(masks), cache)


@dataclass(frozen=True, eq=False)
class ReadTexts:
    """What a model keeps of texts whose tokens lie anywhere in the only row of a pass, as those of prefix trees do.

    Args:
        cache: Keys and values of all that was read.
        column: (E, T), place of each token of each text in the row.
    """

    cache: Any
    column: Tensor

    def beginnings(self, texts: Sequence[int], num_tokens: Sequence[int]) -> ReadPrompts:
        """The first tokens of some texts, as if they had been read alone."""
        columns = [self.column[text, :count] for text, count in zip(texts, num_tokens, strict=True)]
        column, mask = left_padded(columns, [torch.ones_like(places) for places in columns], self.column.device)
        return ReadPrompts(mask, _changed(self.cache, lambda kept: kept[0].transpose(0, 1)[column].transpose(1, 2)))


def _copied(cache: Any) -> Any:
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    return copied


def _changed(cache: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A copy whose keys and values, (rows, heads, tokens, D) each, are changed."""
    changed = _copied(cache)
    for layer in changed.layers:
        layer.keys, layer.values = change(layer.keys), change(layer.values)
    return changed


def prompt_batches(
    model: nn.Module, num_tokens: Sequence[int], order: Sequence[int], batch_size: int, num_to_come: int = 0
) -> Iterator[list[int]]:
    """Which prompts are read together: as many as fit into a batch, and of one length if there may be no padding.

    What will stretch the rotary positions of its batch is read alone.

    Args:
        model: The model.
        num_tokens: Length of each prompt.
        order: Places of the prompts in the order in which they are read.
        batch_size: Prompts in a batch at most.
        num_to_come: How many tokens are to be generated at most.
    """
    limit = stretching_length(model)
    is_long = [limit is not None and count + num_to_come > limit for count in num_tokens]
    kinds = [-1 - place if long else 0 for place, long in enumerate(is_long)]
    if len(set(num_tokens)) > 1 and not reads_padded_prompts(model):
        order, kinds = sorted(order, key=lambda place: -num_tokens[place]), list(num_tokens)
    yield from batches_of_like(order, kinds, batch_size)


def read_prompts(model: nn.Module, prompts: Sequence[Tensor], device: torch.device) -> ReadPrompts:
    """Let a model read prompts of at least one token each, given as `LanguageTask.inputs` gives them.

    Returns:
        What it keeps of them; the cache is None if the model has none.
    """
    visible = [torch.ones(len(prompt), dtype=torch.long) for prompt in prompts]
    inputs, attention_mask = left_padded(prompts, visible, device)
    outputs = model(**model_inputs(model, inputs, attention_mask, logits_to_keep=1), use_cache=True)
    return ReadPrompts(attention_mask, getattr(outputs, "past_key_values", None))


def left_padded(prompts: Sequence[Tensor], visible: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Inputs, (E, S, ...), and attention mask, (E, S), of prompts, (tokens, ...) each, and what is visible of them.

    Padding holds token 0, which every vocabulary has: the mask hides it.
    """
    inputs = pad_sequence(list(prompts), batch_first=True, padding_side="left")
    return inputs.to(device), pad_sequence(list(visible), batch_first=True, padding_side="left").to(device)


def model_inputs(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, **optional: Any) -> dict[str, Any]:
    """Inputs of a forward pass over the next tokens.

    Args:
        model: The model; one that counts places itself is not given any, see `prompt_batches`.
        input_ids: (E, T), tokens that it has not seen yet, or what a trunk makes of them, (E, T, D).
        attention_mask: (E, S + T), of these and all before them.
        **optional: Further inputs that are given if the model takes them.
    """
    positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)  # counted without padding
    optional["position_ids"] = positions[:, -input_ids.shape[1] :]
    accepted = accepted_inputs(model)
    given = {name: value for name, value in optional.items() if name in accepted}
    return {"input_ids": input_ids, "attention_mask": attention_mask, **given}
