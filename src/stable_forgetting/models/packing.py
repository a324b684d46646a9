"""Texts of a batch one behind the other: rows that hold several short texts in place of padding.

In a batch of texts of different lengths most of the work can go into padding: of TOFU's questions and answers, 24 in a
batch, 37 of 100 tokens are. Positions begin anew at each text, by which transformers' models with rotary positions know
where one ends, so that no text sees another.

E = texts, T = longest of them, R = rows, C = their length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from stable_forgetting.models.trunk import LANGUAGE_FAMILIES, is_of_transformers

WORTHWHILE = 0.95
"""Share of the padded batch's cost that is left at most: above it the batch stays as it is."""

_ROW_LENGTHS = (1, 2, 3, 4)
"""Lengths of rows that are tried, in multiples of the longest text: long ones fill better and cost more attention."""

_ATTENTION = frozenset({"eager", "sdpa"})
"""Kinds of attention that know texts in several rows by their positions; others do so in a single row only."""


Places = tuple[tuple[Tensor, Tensor], Tensor | None]
"""Row and column in the inputs of some tokens, (R,) each, and which of them each of P tokens is, (P,); None: R = P."""


@dataclass(frozen=True, eq=False)
class Packing:
    """Where the texts of a padded batch go.

    Args:
        source: (R, C), the place in the padded batch, its rows one behind the other, that each place is filled from.
        position_ids: (R, C), place of each token in its text; 0 in what is left over.
        row: (E,), row of each text.
        start: (E,), where it begins in its row.
    """

    source: Tensor
    position_ids: Tensor
    row: Tensor
    start: Tensor

    def inputs(self, padded: Tensor) -> dict[str, Tensor]:
        """Inputs of the model.

        Args:
            padded: (E, T), token ids, or what a trunk makes of them, (E, T, D); padding is on the right.
        """
        flat = padded.reshape(-1, *padded.shape[2:])
        return {"input_ids": flat[self.source], "position_ids": self.position_ids}

    def places(self, text: Tensor, position: Tensor) -> Places:
        """Where tokens are that are named by text and position, each (P,)."""
        return (self.row[text], self.start[text] + position), None


def find_packing(model: nn.Module, attention_mask: Tensor) -> Packing | None:
    """How a padded batch can be read in fewer rows; None if the model cannot, or little would be saved.

    Args:
        model: A causal language model.
        attention_mask: (E, T), 1 for tokens and 0 for padding, which is on the right.
    """
    if not reads_positions(model):
        return None
    lengths, hidden_size = attention_mask.sum(dim=1).tolist(), causal_model(model).config.hidden_size
    alone, rows = [[text] for text in range(len(lengths))], best_rows(lengths, hidden_size)
    packed, padded = (pass_cost(tried, lengths, hidden_size) for tried in (rows, alone))
    if packed > WORTHWHILE * padded:
        return None
    return _packing(rows, lengths, attention_mask)


def causal_model(model: nn.Module) -> Any:
    """The model of transformers within adapters and wrappers."""
    unwrapped: Any = extract_model_from_parallel(model)
    return unwrapped.get_base_model() if hasattr(unwrapped, "get_base_model") else unwrapped


def reads_positions(model: nn.Module) -> bool:
    """Whether a model goes by positions and masks alone in what its tokens see and where they are."""
    inner = causal_model(model)
    config = inner.config
    is_known = config.model_type in LANGUAGE_FAMILIES and config._attn_implementation in _ATTENTION
    return is_known and is_of_transformers(inner)


def best_rows(lengths: Sequence[int], hidden_size: int) -> list[list[int]]:
    """Which texts share a row, at the length of rows that makes the cheapest pass.

    Args:
        lengths: Tokens of each text.
        hidden_size: Width of the model.
    """
    tried = [packed_rows(lengths, factor * max(lengths)) for factor in _ROW_LENGTHS]
    return min(tried, key=lambda rows: pass_cost(rows, lengths, hidden_size))


def pass_cost(rows: Sequence[Sequence[int]], lengths: Sequence[int], hidden_size: int) -> float:
    """Cost of a pass in tokens: those of all rows, each as long as the longest, and what attention adds to them.

    A block has about 12 · hidden_size² weights and takes twice as many operations for a token; attention adds
    4 · C · hidden_size.

    Args:
        rows: The texts of each row.
        lengths: Tokens of each text.
        hidden_size: Width of the model.
    """
    longest = max(sum(lengths[text] for text in row) for row in rows)
    return len(rows) * longest * (1 + longest / (6 * hidden_size))


def packed_rows(lengths: Sequence[int], room_of_row: int) -> list[list[int]]:
    """Which texts share a row of some length: each goes into the first row with room, the longest ones first.

    Example:
        >>> packed_rows([3, 9, 5, 4], 9)
        [[1], [2, 3], [0]]
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for text in sorted(range(len(lengths)), key=lambda text: -lengths[text]):
        for row, left in enumerate(room):
            if lengths[text] <= left:
                rows[row].append(text)
                room[row] -= lengths[text]
                break
        else:
            rows.append([text])
            room.append(room_of_row - lengths[text])
    return rows


def _packing(rows: Sequence[Sequence[int]], lengths: Sequence[int], attention_mask: Tensor) -> Packing:
    width = attention_mask.shape[1]  # of the padded rows: the longest text may be shorter, in a part of a batch
    columns = max(sum(lengths[text] for text in row) for row in rows)
    source = torch.zeros(len(rows), columns, dtype=torch.long)
    position_ids = torch.zeros_like(source)
    row_of, start_of = torch.zeros(2, len(lengths), dtype=torch.long)
    for row, texts in enumerate(rows):
        start = 0
        for text in texts:
            end = start + lengths[text]
            positions = torch.arange(lengths[text])
            source[row, start:end] = text * width + positions
            position_ids[row, start:end] = positions
            row_of[text], start_of[text] = row, start
            start = end
    return Packing(*(values.to(attention_mask.device) for values in (source, position_ids, row_of, start_of)))
