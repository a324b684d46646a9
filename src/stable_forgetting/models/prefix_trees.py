"""Texts that begin alike, read once as far as they do: the prefix tree of several texts, in one row without padding.

The answers to a question share its prompt, and often their first words; all texts of a set may share a system prompt.
And padding is much of a batch of short texts: of TOFU's questions and answers, 24 in a batch, 37 of 100 tokens.

A token's position is its depth, and it sees those that lie between it and the root, so that it computes what it would
in each of its texts alone.

E = texts, T = longest of them, C = nodes of the tree, S = tokens before the tree that the model has read already,
P = tokens that are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from stable_forgetting.models.reading import causal_model, stretching_length
from stable_forgetting.models.tree_attention import AttendedTree, TreeMasks, TreeTexts, can_read_trees, reads_again

WORTHWHILE = 0.95
"""Share of a padded batch's tokens, without its last column, that a tree may have at most: else the batch stays as it
is."""

MANY_NODES = 64
"""A text with more nodes of its own shares a pass of attention only with those that have at least half as many."""

_ALIGNMENT = 8
"""Attention on GPUs copies masks whose rows are no multiple of so many numbers, in every block."""


@dataclass(frozen=True)
class PrefixTree:
    """The distinct beginnings of some texts, each one a node; there may be several first tokens.

    Args:
        depths: Tokens before each node.
        sources: Text and position of the first token that is at each node.
        paths: The nodes of each text.
        num_own: How many last nodes of each text no text before it has; they are numbered in a row.
    """

    depths: list[int]
    sources: list[tuple[int, int]]
    paths: list[list[int]]
    num_own: list[int]

    def __len__(self) -> int:
        return len(self.depths)


def prefix_tree(texts: Sequence[Sequence[int]]) -> PrefixTree:
    """The tree of some texts.

    Example:
        >>> tree = prefix_tree([[7, 8, 9], [7, 8, 5], [7, 6]])
        >>> tree.paths, tree.num_own
        ([[0, 1, 2], [0, 1, 3], [0, 4]], [3, 1, 1])
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
        tree.num_own.append(len(tree) - num_before)
    return tree


@dataclass(frozen=True, eq=False)
class TreeRow:
    """A prefix tree as the only row of a batch.

    Args:
        source: (C,), the place in the padded batch of texts, its rows one behind the other, of each node's token.
        depth: (C,), tokens before each node in its texts, those before the tree included: S for the first.
        column: (E, S + T), place of each text's tokens among all that the model has read with the row, from the first.
        num_before: S.
        attended: The tree as attention looks at it.
    """

    source: Tensor
    depth: Tensor
    column: Tensor
    num_before: int
    attended: AttendedTree

    def inputs(self, padded: Tensor) -> dict[str, Any]:
        """Inputs of the model, within `reading_trees`.

        Args:
            padded: (E, T), token ids, or what a trunk makes of them, (E, T, D); padding is on the right.
        """
        return {
            "input_ids": padded.reshape(-1, *padded.shape[2:])[self.source][None],
            "position_ids": self.depth[None],
            # Models hand on a mask of four dimensions as it is; without one they would make their own, of C² numbers.
            "attention_mask": torch.zeros(1, 1, 1, 1, device=self.depth.device),
            "tree": self.attended,
        }

    def places(self, text: Tensor, position: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
        """Row and column in the inputs of tokens that are named by text and position, (P,) each; each node once.

        Returns:
            Both, (R,) each, and which of these R nodes each of the tokens is, (P,); None: R = P, each has its own.
        """
        node = self.column[text, self.num_before + position] - self.num_before
        nodes, which = torch.unique(node, return_inverse=True)
        if len(nodes) == len(node):
            return (torch.zeros_like(node), node), None
        return (torch.zeros_like(nodes), nodes), which


def tree_row(tree: PrefixTree, width: int, num_before: int, device: torch.device) -> TreeRow:
    """The row of a tree.

    Args:
        tree: Of texts that have at least one token each.
        width: Columns of the padded batch of these texts.
        num_before: S.
        device: Where the model is.
    """
    before, depth = torch.arange(num_before), torch.tensor(tree.depths) + num_before
    column = pad_sequence(
        [torch.cat([before, num_before + torch.tensor(path)]) for path in tree.paths], batch_first=True
    )
    groups, answer, start = [], torch.empty_like(depth), 0
    for texts in _groups(tree.num_own):
        own = [torch.tensor(tree.paths[text][-tree.num_own[text] :]) for text in texts]
        for row, nodes in enumerate(own):
            answer[nodes] = start + row * len(own[0]) + torch.arange(len(nodes))
        start += len(own) * len(own[0])
        queries, longest = pad_sequence(own, batch_first=True), max(len(tree.paths[text]) for text in texts)
        num_keys = -(-(num_before + longest) // _ALIGNMENT) * _ALIGNMENT
        keys = F.pad(column, (0, _ALIGNMENT))[texts, :num_keys]
        groups.append(TreeTexts(*(values.to(device) for values in (keys, queries, depth[queries]))))
    attended = AttendedTree((*groups,), answer.to(device), TreeMasks())
    source = torch.tensor([text * width + position for text, position in tree.sources])
    return TreeRow(source.to(device), depth.to(device), column.to(device), num_before, attended)


def _groups(num_own: Sequence[int]) -> list[list[int]]:
    """Texts that share a pass of attention, in which each costs as much as the one with most nodes of its own.

    Args:
        num_own: Nodes of each text that no text before it has; texts without any are left out.
    """
    groups: list[list[int]] = []
    for text in sorted((text for text, count in enumerate(num_own) if count), key=lambda text: -num_own[text]):
        most = num_own[groups[-1][0]] if groups else math.inf
        if most > MANY_NODES and 2 * num_own[text] < most:
            groups.append([text])
        else:
            groups[-1].append(text)
    return groups


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
    lengths, limit = attention_mask.sum(dim=1).tolist(), stretching_length(model)
    if limit is not None and limit < max(lengths):  # positions depend on the longest text, its last token included
        return None
    tree = prefix_tree([row[: length - 1] for row, length in zip(token_ids.tolist(), lengths, strict=True)])
    if len(tree) > WORTHWHILE * token_ids[:, 1:].numel():
        return None
    return tree_row(tree, token_ids.shape[1], 0, token_ids.device)


def reads_trees(model: nn.Module, longest: int) -> bool:
    """Whether a model can read trees behind what it has read already, whatever is beside a text.

    What is kept of texts that are longer than an attention window is not all of them; and rotary positions must not
    depend on the longest text of a batch, as some do that stretch them.

    Args:
        model: A causal language model.
        longest: Tokens of the longest text.
    """
    if not can_read_trees(model):
        return False
    window = getattr(causal_model(model).config, "sliding_window", None)
    return (window is None or longest <= window) and stretching_length(model) is None
