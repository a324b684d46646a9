"""Texts that begin alike, read once as far as they do: the prefix tree of several texts, in one row without padding.

The answers to a question share its prompt, and often their first words; all texts of a set may share a system prompt.
And padding is much of a batch of short texts: of TOFU's questions and answers, 24 in a batch, 37 of 100 tokens.

A token's position is its depth, and it sees those that lie between it and the root, so that it computes what it would
in each of its texts alone.

E = texts, T = longest of them, C = nodes of the tree, Q = most nodes of one text that no text before it has,
S = tokens before the tree that the model has read already, P = tokens that are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from stable_forgetting.models.reading import causal_model, stretching_length
from stable_forgetting.models.tree_attention import TreeTexts, can_read_trees, reads_again, tree_mask

WORTHWHILE = 0.95
"""Tokens of a padded batch that a tree may have at most: above it the batch stays as it is."""


@dataclass(frozen=True)
class PrefixTree:
    """The distinct beginnings of some texts, each one a node; there may be several first tokens.

    Args:
        depths: Tokens before each node.
        sources: Text and position of the first token that is at each node.
        paths: The nodes of each text.
        num_shared: How many first nodes of each text one before it has; the others are numbered in a row.
    """

    depths: list[int]
    sources: list[tuple[int, int]]
    paths: list[list[int]]
    num_shared: list[int]

    def __len__(self) -> int:
        return len(self.depths)


def prefix_tree(texts: Sequence[Sequence[int]]) -> PrefixTree:
    """The tree of some texts.

    Example:
        >>> tree = prefix_tree([[7, 8, 9], [7, 8, 5], [7, 6]])
        >>> tree.paths, tree.num_shared
        ([[0, 1, 2], [0, 1, 3], [0, 4]], [0, 2, 1])
    """
    tree = PrefixTree([], [], [], [])
    numbers: dict[tuple[int, int], int] = {}
    for text, tokens in enumerate(texts):
        num_before = len(tree)
        path: list[int] = []
        for position, token in enumerate(tokens):
            node = numbers.setdefault((path[-1] if path else -1, token), len(tree))
            if node == len(tree):
                tree.depths.append(position)
                tree.sources.append((text, position))
            path.append(node)
        tree.paths.append(path)
        tree.num_shared.append(len(path) - (len(tree) - num_before))
    return tree


@dataclass(frozen=True, eq=False)
class TreeRow:
    """A prefix tree as the only row of a batch.

    Args:
        source: (C,), the place in the padded batch of texts, its rows one behind the other, of each node's token.
        depth: (C,), tokens before each node in its texts, those before the tree included: S for the first.
        texts: For attention.
    """

    source: Tensor
    depth: Tensor
    texts: TreeTexts

    @property
    def num_before(self) -> int:
        """S."""
        return int(self.depth[0])

    def inputs(self, model: nn.Module, padded: Tensor) -> dict[str, Any]:
        """Inputs of the model, within `reading_trees`.

        Args:
            model: The model.
            padded: (E, T), token ids, or what a trunk makes of them, (E, T, D); padding is on the right.
        """
        return {
            "input_ids": padded.reshape(-1, *padded.shape[2:])[self.source][None],
            "position_ids": self.depth[None],
            "attention_mask": tree_mask(model, self.texts),
            "tree": self.texts,
        }

    def places(self, text: Tensor, position: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Row and column in the inputs of tokens that are named by text and position, (P,) each; each node once.

        Returns:
            Both, (R,) each, and which of these R nodes each of the tokens is, (P,).
        """
        columns, which = torch.unique(self.texts.keys[text, self.num_before + position], return_inverse=True)
        return (torch.zeros_like(columns), columns - self.num_before), which


def tree_row(tree: PrefixTree, width: int, num_before: int, device: torch.device) -> TreeRow:
    """The row of a tree.

    Args:
        tree: Of texts that have at least one token each.
        width: Columns of the padded batch of these texts.
        num_before: S.
        device: Where the model is.
    """
    before, depth = torch.arange(num_before), torch.tensor(tree.depths) + num_before
    paths = [torch.tensor(path) for path in tree.paths]
    own = [path[count:] for path, count in zip(paths, tree.num_shared, strict=True)]
    is_own = pad_sequence([torch.ones_like(nodes) for nodes in own], batch_first=True)
    queries = pad_sequence(own, batch_first=True)
    texts = TreeTexts(
        keys=pad_sequence([torch.cat([before, num_before + path]) for path in paths], batch_first=True).to(device),
        queries=queries.to(device),
        depth=depth[queries].to(device),
        # Nodes are numbered in the order of the texts that have them first.
        answer=is_own.flatten().nonzero()[:, 0].to(device),
    )
    source = torch.tensor([text * width + position for text, position in tree.sources])
    return TreeRow(source.to(device), depth.to(device), texts)


def find_tree_row(model: nn.Module, token_ids: Tensor, attention_mask: Tensor) -> TreeRow | None:
    """How the texts of a padded batch can be read as a tree, the last token of each left out: none follows it.

    Args:
        model: A causal language model.
        token_ids: (E, T).
        attention_mask: (E, T), 1 for tokens and 0 for padding, which is on the right; two tokens at least of each text.

    Returns:
        None if the model cannot read trees, or not here, or if little would be saved.
    """
    if not can_read_trees(model) or reads_again(model):
        return None
    lengths = attention_mask.sum(dim=1).tolist()
    tree = prefix_tree([row[: length - 1] for row, length in zip(token_ids.tolist(), lengths, strict=True)])
    if len(tree) > WORTHWHILE * token_ids.numel():
        return None
    return tree_row(tree, token_ids.shape[1], 0, token_ids.device)


def reads_trees(model: nn.Module, longest: int) -> bool:
    """Whether a model can read trees, and reads a text alike whatever is beside it.

    A window must reach back as far as the texts do, and rotary positions must not depend on the longest text of a
    batch, as some do that stretch them.

    Args:
        model: A causal language model.
        longest: Tokens of the longest text.
    """
    if not can_read_trees(model):
        return False
    window = getattr(causal_model(model).config, "sliding_window", None)
    return (window is None or longest <= window) and stretching_length(model) is None
