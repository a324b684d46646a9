"""Answers that are read as prefix trees, behind what all questions of a set begin with, such as a system prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

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
from stable_forgetting.models.predictions import Predictions
from stable_forgetting.models.prefix_trees import prefix_tree, reads_trees, tree_row
from stable_forgetting.models.tasks import IGNORED, LanguageTask

LEAST_BEGINNING = 16
"""Tokens that all prompts of a set have to begin with for them to be read apart."""

Numbered = Sequence[tuple[int, LanguageExample]]
"""Answers with their numbers among all answers."""

Keep = Callable[[list[int], Predictions, ReadTexts], None]
"""Given the numbers of the answers of a batch, their predictions, and what the model keeps of their texts."""


def fits_a_tree(model: nn.Module, family: Family, batch_size: int) -> bool:
    """Whether all answers can be in one tree: a second one for those that are too many would read the prompt again."""
    return len(family) <= batch_size and reads_trees(model, max(len(answer.input_ids) for answer in family))


def tree_batches(
    model: nn.Module,
    task: LanguageTask,
    families: Sequence[Numbered],
    batch_size: int,
    device: torch.device,
    keep: Keep | None = None,
) -> Iterator[ScoredBatch]:
    """Predictions from prefix trees, the largest families first, as many at once as have `batch_size` answers.

    `keep` is called with each batch before it comes.
    """
    if not families:
        return
    beginning = _read_beginning(model, task, [answer for family in families for _, answer in family], device)
    waiting = longest_first([sum(len(answer.input_ids) for _, answer in family) for family in families])
    while waiting:
        counts = np.cumsum([len(families[place]) for place in waiting[:batch_size]])
        num_taken = int((counts <= batch_size).sum())
        taken, waiting = waiting[:num_taken], waiting[num_taken:]
        numbers, answers = zip(*(numbered for place in taken for numbered in families[place]), strict=True)
        keep_these = None if keep is None else partial(keep, [*numbers])
        yield [*numbers], _predict(model, task, answers, beginning, keep_these)


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
    answers: Sequence[LanguageExample],
    beginning: ReadPrompts,
    keep: Callable[[Predictions, ReadTexts], None] | None,
) -> Predictions:
    """Predictions of the labels of answers, which are read as one tree behind the beginning.

    `keep` is called with them and with what the model keeps of the texts, if that is all of it.
    """
    num_read, device = beginning.num_tokens, beginning.attention_mask.device
    unread = pad_sequence([text[num_read:-1] for text in task.inputs(answers)], batch_first=True)
    texts = prefix_tree([answer.input_ids[num_read:-1] for answer in answers])
    tree = tree_row(texts, unread.shape[1], num_read, device)
    following = labels_after(answers, [num_read] * len(answers))
    labels = pad_sequence(following, batch_first=True, padding_value=IGNORED)
    cache = None if keep is None else DynamicCache()
    if num_read:
        cache = beginning.rows(torch.zeros(1, dtype=torch.long, device=device)).cache
    inputs = {**tree.inputs(unread.to(device)), "past_key_values": cache, "use_cache": cache is not None}
    predictions = task.predict_next(model, inputs, labels.to(device), tree)
    if keep is not None and keeps_all(cache):
        keep(predictions, ReadTexts(cache, tree.column))
    return predictions
