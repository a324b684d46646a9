"""Answers that are read as prefix trees, behind what all questions of a set begin with, such as a system prompt.

R = rows of a batch, C = nodes of its largest row, E = its answers, T = longest of them behind the common beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import DynamicCache

from stable_forgetting.data.examples import LanguageExample
from stable_forgetting.evaluation.likelihood import ScoredBatch, longest_first
from stable_forgetting.evaluation.prompts import (
    Family,
    ReadPrompts,
    ReadTexts,
    common_prompt,
    keeps_all,
    labels_after,
    read_prompts,
)
from stable_forgetting.models.packing import causal_model, packed_rows, pass_cost
from stable_forgetting.models.predictions import Predictions
from stable_forgetting.models.prefix_trees import (
    LARGEST_TREE,
    TreeRows,
    adds_mask,
    prefix_tree,
    reads_trees,
    tree_rows,
)
from stable_forgetting.models.tasks import IGNORED, LanguageTask

LEAST_BEGINNING = 16
"""Tokens that all prompts of a set have to begin with for them to be read apart."""

Numbered = Sequence[tuple[int, LanguageExample]]
"""Answers with their numbers among all answers."""

Keep = Callable[[list[int], Predictions, ReadTexts], None]
"""Given the numbers of the answers of a batch, their predictions, and what the model keeps of their texts."""


def fits_a_tree(model: nn.Module, family: Family, batch_size: int) -> bool:
    """Whether all answers can be in one tree: a second one for those that are too many would read the prompt again."""
    lengths, size = [len(answer.input_ids) for answer in family], _size(family)
    if len(family) > batch_size or size > LARGEST_TREE or not reads_trees(model, max(lengths)):
        return False
    hidden_size = causal_model(model).config.hidden_size
    alone = sum(pass_cost([[0]], [length], hidden_size) for length in lengths)
    return pass_cost([[0]], [size], hidden_size) < alone  # attention looks at all pairs of a tree's nodes


def _size(family: Family) -> int:
    """Tokens of the answers to a question, those of the prompt that they share counted once."""
    prompt = common_prompt(family)
    return prompt + sum(len(answer.input_ids) - prompt for answer in family)


def tree_batches(
    model: nn.Module,
    task: LanguageTask,
    families: Sequence[Numbered],
    batch_size: int,
    device: torch.device,
    keep: Keep | None = None,
) -> Iterator[ScoredBatch]:
    """Predictions from prefix trees, the largest families first, as many at once as have `batch_size` answers.

    Small families share the rows that the largest one of a batch needs: less is read in vain. `keep` is called with
    each batch before it comes.
    """
    if not families:
        return
    beginning = _read_beginning(model, task, [answer for family in families for _, answer in family], device)
    sizes = [_size([answer for _, answer in family]) - beginning.num_tokens for family in families]
    waiting = longest_first(sizes)
    while waiting:
        counts = np.cumsum([len(families[place]) for place in waiting[:batch_size]])
        num_taken = int((counts <= batch_size).sum())
        taken, waiting = waiting[:num_taken], waiting[num_taken:]
        packed = packed_rows([sizes[place] for place in taken], sizes[taken[0]])
        rows = [[answer for place in row for answer in families[taken[place]]] for row in packed]
        numbers = [number for row in rows for number, _ in row]
        read = [[answer for _, answer in row] for row in rows]
        yield numbers, _predict(model, task, read, beginning, None if keep is None else partial(keep, numbers))


def _read_beginning(
    model: nn.Module, task: LanguageTask, answers: Sequence[LanguageExample], device: torch.device
) -> ReadPrompts:
    """What the model keeps of the tokens that all prompts begin with, one row; there may be none.

    A short beginning is left in the trees: behind one the model keeps all that it reads, which takes memory.
    """
    count = common_prompt(answers)
    if count < LEAST_BEGINNING:
        return ReadPrompts(torch.ones(1, 0, dtype=torch.long, device=device), None)
    read = task.inputs(answers[:1])[0][:count]
    with task.reading():
        return read_prompts(model, [read], device)


def _predict(
    model: nn.Module,
    task: LanguageTask,
    rows: Sequence[Family],
    beginning: ReadPrompts,
    keep: Callable[[Predictions, ReadTexts], None] | None,
) -> Predictions:
    """Predictions of the labels of answers, those of each row as one tree behind the beginning.

    `keep` is called with them and with what the model keeps of the texts, if that is all of it.
    """
    answers, num_read = [answer for row in rows for answer in row], beginning.num_tokens
    device = beginning.attention_mask.device
    trees = [prefix_tree([answer.input_ids[num_read:-1] for answer in row]) for row in rows]
    unread = pad_sequence([row[num_read:-1] for row in task.inputs(answers)], batch_first=True).to(device)
    labels = pad_sequence(labels_after(answers, [num_read] * len(answers)), batch_first=True, padding_value=IGNORED).to(
        device
    )
    tree = tree_rows(trees, unread.shape[1], num_read, device)
    cache = None if keep is None else DynamicCache()
    if num_read:
        cache = beginning.rows(torch.zeros(len(rows), dtype=torch.long, device=device)).cache
    inputs = tree.inputs(unread, adds_mask=adds_mask(model))
    cached = {"past_key_values": cache, "use_cache": cache is not None}
    predictions = task.predict_next(model, {**inputs, **cached}, labels, tree.places)
    if keep is not None and keeps_all(cache):
        keep(predictions, _read_texts(cache, tree, num_read))
    return predictions


def _read_texts(cache: Any, tree: TreeRows, num_before: int) -> ReadTexts:
    """Where the tokens of each text are, behind those that all texts begin with."""
    columns = tree.source.shape[1]
    before = torch.arange(num_before, device=tree.node.device).expand(len(tree.node), -1)
    return ReadTexts(cache, tree.node[:, 0] // columns, torch.cat([before, num_before + tree.node % columns], dim=1))
