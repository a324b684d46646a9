"""Attention over the prefix trees of `prefix_trees`, as one of transformers' own: text by text.

Over all pairs of nodes attention would look at most of them in vain.

E = texts of a group, K = most tokens of one of them, those before the tree included, Q = most nodes of one of them that
no text before it has, G = heads that share their keys, C = nodes of the tree, S = tokens before it.
"""

from __future__ import annotations

from collections.abc import Iterator
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


class AttendedTree(NamedTuple):
    """A tree as attention looks at it. Like tensors, named tuples of them follow a model to its device.

    Args:
        groups: Texts of which each has about as many nodes of its own as the others.
        answer: (C,), where each node is among the queries of all groups, their rows one behind the other.
        masks: What is added to the scores, by type and window: made in the first block, and for all others, too.
    """

    groups: tuple[TreeTexts, ...]
    answer: Tensor
    masks: dict[tuple[torch.dtype, int | None], list[Tensor]]


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
    masks = _masks(tree, _dtype(query), options.get("sliding_window"), query.shape[1] // key.shape[1])
    settings = {"scale": options["scaling"], "dropout": options.get("dropout", 0.0)}
    parts = zip(tree.groups, masks, strict=True)
    texts = [_attend_by_text(query, key, value, group, mask, **settings) for group, mask in parts]
    return torch.cat(texts).index_select(0, tree.answer)[None], None


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def _attend_by_text(
    query: Tensor, key: Tensor, value: Tensor, group: TreeTexts, mask: Tensor, *, scale: float, dropout: float
) -> Tensor:
    """Attention of a row, (1, heads, C or S + C, D) each, as that of some texts: (E · Q, heads, D).

    Heads that share their keys are queries of one head: more at once, and no copies of the keys.
    """
    num_heads, queries = query.shape[1], _by_text(query, group.queries)
    found = F.scaled_dot_product_attention(
        queries.reshape(len(queries), key.shape[1], -1, query.shape[3]),
        _by_text(key, group.keys),
        _by_text(value, group.keys),
        attn_mask=mask,
        scale=scale,
        dropout_p=dropout,
    )
    return found.reshape(len(found), num_heads, -1, found.shape[-1]).transpose(1, 2).flatten(0, 1)


def _by_text(values: Tensor, places: Tensor) -> Tensor:
    """Values of the only row, (1, heads, tokens, D), at the places of each text, (E, N): (E, heads, N, D)."""
    chosen = values[0].index_select(1, places.flatten())
    return chosen.view(len(chosen), *places.shape, -1).transpose(0, 1)


def _dtype(query: Tensor) -> torch.dtype:
    """In which attention computes: a mask of another type would be copied in every block."""
    kind = query.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype


def _masks(tree: AttendedTree, dtype: torch.dtype, window: int | None, num_queries: int) -> list[Tensor]:
    """What is added to the scores of each group, (E, 1, G · Q, K)."""
    if window is not None and window >= max(group.keys.shape[1] for group in tree.groups):
        window = None
    if (dtype, window) not in tree.masks:
        tree.masks[dtype, window] = [_mask(group, dtype, window, num_queries) for group in tree.groups]
    return tree.masks[dtype, window]


def _mask(group: TreeTexts, dtype: torch.dtype, window: int | None, num_queries: int) -> Tensor:
    depth, keys = group.depth[..., None], torch.arange(group.keys.shape[1], device=group.depth.device)
    is_hidden = keys > depth
    if window is not None:
        is_hidden |= keys <= depth - window
    mask = torch.zeros(is_hidden.shape, device=depth.device, dtype=dtype).masked_fill_(is_hidden, -torch.inf)
    return mask.repeat(1, num_queries, 1)[:, None]
