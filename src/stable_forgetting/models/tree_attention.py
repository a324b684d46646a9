"""Attention over the prefix trees of `prefix_trees`, as one of transformers' own: text by text.

Over all pairs of nodes attention would look at most of them in vain.

E = texts of a group, K = most tokens of one of them, those before the tree included, Q = most nodes of one of them that
no text before it has, C = nodes of the tree, S = tokens before it, F = heads that are folded into one.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from stable_forgetting.models.reading import causal_model
from stable_forgetting.models.trunk import LANGUAGE_FAMILIES, is_of_transformers

ATTENTION = "sdpa_and_prefix_trees"
"""Name among transformers' attentions of one that is `sdpa`, but for trees."""

FEW_QUERIES = 256
"""Up to so many, heads that share their keys are folded into one with the queries of all: more at once, and no copies
of the keys. With more queries, the copies are smaller than the mask of all heads would be."""


class TreeTexts(NamedTuple):
    """Some texts of a tree that have nodes of their own.

    Args:
        keys: (E, K), place of each text's tokens among all that the model has read with the tree, from the first.
        queries: (E, Q), the nodes of each text that no text before it has; what is left over holds the first node.
        depth: (E, Q), tokens before each of them, those before the tree included.
    """

    keys: Tensor
    queries: Tensor
    depth: Tensor


class TreeMasks:
    """What is added to the scores of attention over a tree: made in the first block, and for all others, too.

    No dictionary, of which accelerate's hooks would give each block a copy of its own.
    """

    def __init__(self) -> None:
        self.made: dict[Hashable, Tensor] = {}

    def of(self, number: int, group: TreeTexts, dtype: torch.dtype, window: int | None, num_folded: int) -> Tensor:
        """The mask of a group, (E, 1, F · Q, K)."""
        if window is not None and window >= group.keys.shape[1]:
            window = None
        key = (number, group.keys.device, dtype, window, num_folded)
        if key not in self.made:
            self.made[key] = _mask(group, dtype, window).repeat(1, num_folded, 1)[:, None]
        return self.made[key]


class AttendedTree(NamedTuple):
    """A tree as attention looks at it. Like tensors, named tuples of them follow a model to its device.

    Args:
        groups: Texts of which each has about as many nodes of its own as the others, those with most first.
        answer: (C,), where each node is among the queries of all groups, their rows one behind the other.
        masks: Of the groups.
    """

    groups: tuple[TreeTexts, ...]
    answer: Tensor
    masks: TreeMasks


@contextmanager
def reading_trees(model: nn.Module) -> Iterator[None]:
    """Within, a model that can read trees is able to; it reads everything else as it did.

    Blocks whose activations are computed again in the backward pass read once more then, so that has to lie within.
    """
    if not can_read_trees(model):
        yield
        return
    config = causal_model(model).config
    own = config._attn_implementation
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = own


def can_read_trees(model: nn.Module) -> bool:
    """Whether it goes by positions and by what its tokens see alone, through an attention that ours may replace."""
    inner, adapter = causal_model(model), getattr(extract_model_from_parallel(model), "active_peft_config", None)
    config = getattr(inner, "config", None)
    if config is None or config.model_type not in LANGUAGE_FAMILIES or not is_of_transformers(inner):
        return False
    has_tokens_before = adapter is not None and adapter.is_prompt_learning
    return config._attn_implementation in ("sdpa", ATTENTION) and not has_tokens_before


def reads_again(model: nn.Module) -> bool:
    """Whether blocks would read a tree again where they could not: see `reading_trees`."""
    inner = causal_model(model)
    is_prepared = inner.config._attn_implementation == ATTENTION
    return torch.is_grad_enabled() and inner.is_activation_checkpointing and not is_prepared


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    tree: AttendedTree | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: of a tree, or else as by `sdpa`."""
    if tree is None:
        found, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return found, None
    settings = {"scale": options["scaling"], "dropout": options.get("dropout", 0.0)}
    texts = []
    for number, group in enumerate(tree.groups):
        num_folded = query.shape[1] // key.shape[1] if group.queries.shape[1] <= FEW_QUERIES else 1
        mask = tree.masks.of(number, group, _dtype(query), options.get("sliding_window"), num_folded)
        texts.append(_attend_by_text(query, key, value, group, mask, num_folded, **settings))
    return torch.cat(texts).index_select(0, tree.answer)[None], None


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def _attend_by_text(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    group: TreeTexts,
    mask: Tensor,
    num_folded: int,
    *,
    scale: float,
    dropout: float,
) -> Tensor:
    """Attention of a row, (1, heads, C or S + C, D) each, as that of some texts: (E · Q, heads, D)."""
    num_heads, queries = query.shape[1], _by_text(query, group.queries)
    keys, values = (_by_text(each, group.keys) for each in (key, value))
    num_copies = num_heads // num_folded // key.shape[1]
    if num_copies > 1:
        keys, values = (each.repeat_interleave(num_copies, dim=1) for each in (keys, values))
    folded = queries.reshape(len(queries), num_heads // num_folded, -1, query.shape[3])
    found = F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=scale, dropout_p=dropout)
    return found.reshape(len(found), num_heads, -1, found.shape[-1]).transpose(1, 2).flatten(0, 1)


def _by_text(values: Tensor, places: Tensor) -> Tensor:
    """Values of the only row, (1, heads, tokens, D), at the places of each text, (E, N): (E, heads, N, D)."""
    chosen = values[0].index_select(1, places.flatten())
    return chosen.view(len(chosen), *places.shape, -1).transpose(0, 1)


def _dtype(query: Tensor) -> torch.dtype:
    """In which attention computes: a mask of another type would be copied in every block."""
    kind = query.device.type
    is_cast = torch.is_autocast_enabled(kind) and query.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if is_cast else query.dtype


def _mask(group: TreeTexts, dtype: torch.dtype, window: int | None) -> Tensor:
    """What is added to the scores of one head, (E, Q, K)."""
    depth, keys = group.depth[..., None], torch.arange(group.keys.shape[1], device=group.depth.device)
    is_hidden = keys > depth
    if window is not None:
        is_hidden |= keys <= depth - window
    return torch.zeros(is_hidden.shape, device=depth.device, dtype=dtype).masked_fill_(is_hidden, -torch.inf)
