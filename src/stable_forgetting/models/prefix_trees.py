"""Texts that begin alike, read once as far as they do: the prefix tree of several texts in one row.

The answers to a question share its prompt, and often their first words. A token sees those that lie between it and the
root, and its position is its depth, so that it computes what it would in each of its texts alone.

E = texts, T = longest of them, R = trees, C = nodes of the largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from stable_forgetting.models.packing import Places, causal_model, reads_positions
from stable_forgetting.models.reading import stretching_length

LARGEST_TREE = 1024
"""Nodes: the mask of a tree has their square, and attention looks at all of it."""


@dataclass(frozen=True)
class PrefixTree:
    """The distinct beginnings of some texts, each one a node; there may be several first tokens.

    Args:
        parents: Node before each node, lower than its own number; −1 for a first token.
        depths: Tokens before each node.
        sources: Text and position of the first token that is at each node.
        paths: The nodes of each text.
    """

    parents: list[int]
    depths: list[int]
    sources: list[tuple[int, int]]
    paths: list[list[int]]

    def __len__(self) -> int:
        return len(self.parents)


def prefix_tree(texts: Sequence[Sequence[int]]) -> PrefixTree:
    """The tree of some texts.

    Example:
        >>> prefix_tree([[7, 8, 9], [7, 8, 5], [7, 6]]).paths
        [[0, 1, 2], [0, 1, 3], [0, 4]]
    """
    parents: list[int] = []
    depths: list[int] = []
    sources: list[tuple[int, int]] = []
    paths: list[list[int]] = []
    numbers: dict[tuple[int, int], int] = {}
    for text, tokens in enumerate(texts):
        node, path = -1, []
        for position, token in enumerate(tokens):
            child = numbers.setdefault((node, token), len(parents))
            if child == len(parents):
                parents.append(node)
                depths.append(position)
                sources.append((text, position))
            node = child
            path.append(node)
        paths.append(path)
    return PrefixTree(parents, depths, sources, paths)


@dataclass(frozen=True, eq=False)
class TreeRows:
    """Prefix trees as rows of a batch.

    Args:
        source: (R, C), the place in the padded batch of texts, its rows one behind the other, of each node's token.
        position_ids: (R, C), tokens before each node; of what is left over, as of a first node.
        sees: (R, 1, C, S + C), bool: whether a node, of the third axis, sees one of S tokens before the trees, another
            node or itself.
        node: (E, T), place of each token's node in all rows, one behind the other.
    """

    source: Tensor
    position_ids: Tensor
    sees: Tensor
    node: Tensor

    def inputs(self, padded: Tensor, *, adds_mask: bool) -> dict[str, Tensor]:
        """Inputs of the model.

        Args:
            padded: (E, T), token ids, or what a trunk makes of them, (E, T, D); padding is on the right.
            adds_mask: Whether the model adds its mask to the scores of attention; else it takes true and false.
        """
        flat, mask = padded.reshape(-1, *padded.shape[2:]), self.sees
        if adds_mask:
            mask = torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, torch.finfo(torch.float32).min)
        return {"input_ids": flat[self.source], "position_ids": self.position_ids, "attention_mask": mask}

    def places(self, text: Tensor, position: Tensor) -> Places:
        """The nodes of tokens that are named by text and position, each (P,); each node once."""
        nodes, which = torch.unique(self.node[text, position], return_inverse=True)
        columns = self.source.shape[1]
        return (nodes // columns, nodes % columns), which


def tree_rows(trees: Sequence[PrefixTree], width: int, num_before: int, device: torch.device) -> TreeRows:
    """Rows for some trees.

    Args:
        trees: Of consecutive texts of the batch.
        width: T, of the padded batch.
        num_before: S, tokens before each tree that the model has read already.
        device: Where the model is.
    """
    columns, num_texts = max(map(len, trees)), sum(len(tree.paths) for tree in trees)
    source, position_ids = np.zeros((2, len(trees), columns), dtype=np.int64)
    node = np.zeros((num_texts, width), dtype=np.int64)
    # What is left over sees itself: a softmax over nothing is not a number.
    sees = np.repeat(np.eye(columns, dtype=bool)[None], len(trees), axis=0)
    first = 0
    for row, tree in enumerate(trees):
        source[row, : len(tree)] = [(first + text) * width + position for text, position in tree.sources]
        position_ids[row, : len(tree)] = tree.depths
        for number, parent in enumerate(tree.parents):
            if parent >= 0:
                sees[row, number] |= sees[row, parent]
        for text, path in enumerate(tree.paths, start=first):
            node[text, : len(path)] = row * columns + np.array(path)
        first += len(tree.paths)
    sees = np.concatenate([np.ones((*sees.shape[:2], num_before), dtype=bool), sees], axis=2)[:, None]
    found = (source, position_ids + num_before, sees, node)
    return TreeRows(*(torch.from_numpy(values).to(device) for values in found))


def adds_mask(model: nn.Module) -> bool:
    """See `TreeRows.inputs`."""
    return bool(causal_model(model).config._attn_implementation == "eager")


def reads_trees(model: nn.Module, longest: int) -> bool:
    """Whether a model takes a mask of its own for every pair of tokens, and reads a text alike whatever is beside it.

    A window must reach back as far as the texts do, and rotary positions must not depend on the longest text of a
    batch, as some do that stretch them.

    Args:
        model: A causal language model.
        longest: Tokens of the longest text.
    """
    if not reads_positions(model):
        return False
    window = getattr(causal_model(model).config, "sliding_window", None)
    return (window is None or longest <= window) and stretching_length(model) is None
