"""Attention over the prefix trees of `prefix_trees`, as one of transformers' own: the texts of a tree, one by one.

Over all pairs of nodes attention would look at most of them in vain.

E = texts, T = longest of them, C = nodes of the tree, Q = most nodes of one text that no text before it has,
S = tokens before the tree that the model has read already.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from stable_forgetting.models.reading import causal_model
from stable_forgetting.models.trunk import LANGUAGE_FAMILIES, is_of_transformers

ATTENTION = "sdpa_and_prefix_trees"
"""Name among transformers' attentions of one that is `sdpa`, but for trees."""


class TreeTexts(NamedTuple):
    """The texts of a tree, as attention looks at them; like a tensor, a named tuple follows its model to a device.

    Args:
        keys: (E, S + T), place of each text's tokens among all that the model has read with the tree, from the first.
        queries: (E, Q), the nodes of each text that no text before it has; what is left over holds the first node.
        depth: (E, Q), tokens before each of them.
        answer: (C,), where each node is among the queries, their rows one behind the other.
    """

    keys: Tensor
    queries: Tensor
    depth: Tensor
    answer: Tensor


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
    inner = causal_model(model)
    config = getattr(inner, "config", None)
    if config is None or config.model_type not in LANGUAGE_FAMILIES or not is_of_transformers(inner):
        return False
    return config._attn_implementation in ("sdpa", ATTENTION)


def reads_again(model: nn.Module) -> bool:
    """Whether blocks would read a tree again where they could not: see `reading_trees`."""
    inner = causal_model(model)
    is_prepared = inner.config._attn_implementation == ATTENTION
    return torch.is_grad_enabled() and inner.is_activation_checkpointing and not is_prepared


def tree_mask(model: nn.Module, texts: TreeTexts) -> Tensor:
    """What is added to the scores of attention over a tree, the same in all blocks: (E, 1, G · Q, S + T).

    G heads share their keys, and are queries of one head: more at once, and no copies of the keys.
    """
    inner, device = causal_model(model), texts.keys.device
    num_queries = inner.config.num_attention_heads // inner.config.num_key_value_heads
    is_autocast = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if is_autocast else inner.dtype
    is_behind = torch.arange(texts.keys.shape[1], device=device) > texts.depth[..., None]
    return _added_to_scores(is_behind, dtype).repeat(1, num_queries, 1)[:, None]


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    tree: TreeTexts | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: of a tree, or else as by `sdpa`."""
    if tree is None:
        found, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return found, None
    assert attention_mask is not None, "a tree comes with its mask"
    num_keys, window = tree.keys.shape[1], options.get("sliding_window")
    if window is not None and window < num_keys:
        is_outside = torch.arange(num_keys, device=query.device) <= tree.depth[..., None] - window
        num_queries = query.shape[1] // key.shape[1]
        attention_mask = attention_mask + _added_to_scores(is_outside, query.dtype).repeat(1, num_queries, 1)[:, None]
    scale, dropout = options["scaling"], options.get("dropout", 0.0)
    return _attend_by_text(query, key, value, attention_mask, tree, scale=scale, dropout=dropout), None


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def _attend_by_text(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, tree: TreeTexts, *, scale: float, dropout: float
) -> Tensor:
    """Attention of a row, (1, heads, C or S + C, D) each, as that of its texts: (1, C, heads, D)."""
    num_heads, queries = query.shape[1], _by_text(query, tree.queries)
    found = F.scaled_dot_product_attention(
        queries.reshape(len(queries), key.shape[1], -1, query.shape[3]),
        _by_text(key, tree.keys),
        _by_text(value, tree.keys),
        attn_mask=mask.to(query.dtype),
        scale=scale,
        dropout_p=dropout,
    )
    texts = found.view(len(found), num_heads, -1, found.shape[-1]).transpose(1, 2)
    return texts.flatten(0, 1).index_select(0, tree.answer)[None]


def _by_text(values: Tensor, places: Tensor) -> Tensor:
    """Values of the only row, (1, heads, tokens, D), at the places of each text, (E, N): (E, heads, N, D)."""
    chosen = values[0].index_select(1, places.flatten())
    return chosen.view(len(chosen), *places.shape, -1).transpose(0, 1)


def _added_to_scores(is_hidden: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(is_hidden.shape, device=is_hidden.device, dtype=dtype).masked_fill_(is_hidden, -torch.inf)
