"""Answers that continue from a copy of what the model keeps of their prompt, which it reads once for all of them.

E = rows of a batch, T = longest of its answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from stable_forgetting.data.examples import LanguageExample
from stable_forgetting.evaluation.likelihood import ScoredBatch, longest_first, plain_batches
from stable_forgetting.evaluation.prompts import (
    Family,
    ReadPrompts,
    common_prompt,
    labels_after,
    model_inputs,
    prompt_batches,
    read_prompts,
)
from stable_forgetting.models.predictions import Predictions
from stable_forgetting.models.tasks import IGNORED, LanguageTask


def continued_batches(
    model: nn.Module, task: LanguageTask, families: Sequence[Family], batch_size: int, device: torch.device
) -> Iterator[ScoredBatch]:
    """Predictions of answers that continue from copies of their prompts.

    Every answer is read with its own prompt where a prompt has a single token, or where the model keeps something else
    of its prompts than keys and values in the form that transformers gives them by default.
    """
    answers = [answer for family in families for answer in family]
    starts = np.cumsum([0, *map(len, families)]).tolist()
    shared = [common_prompt(family) for family in families]
    for chosen in prompt_batches(model, shared, longest_first(shared), batch_size):
        prompts = None
        if min(shared) > 0:
            whole = task.inputs([families[index][0] for index in chosen])
            with task.reading():
                read = [row[: shared[index]] for row, index in zip(whole, chosen, strict=True)]
                prompts = read_prompts(model, read, device)
        if prompts is None or not prompts.can_be_copied:
            yield from plain_batches(model, task, answers, batch_size, device)
            return
        rows = [(row, place) for row, index in enumerate(chosen) for place in range(starts[index], starts[index + 1])]
        num_unread = [len(answers[place].input_ids) - shared[chosen[row]] for row, place in rows]
        by_length = [rows[number] for number in longest_first(num_unread)]
        for start in range(0, len(by_length), batch_size):
            part = by_length[start : start + batch_size]
            places = [place for _, place in part]
            source = prompts.rows(torch.tensor([row for row, _ in part], device=device))
            num_read = [shared[chosen[row]] for row, _ in part]
            yield places, _predict(model, task, source, [answers[place] for place in places], num_read)


def _predict(
    model: nn.Module,
    task: LanguageTask,
    prompts: ReadPrompts,
    answers: Sequence[LanguageExample],
    num_read: Sequence[int],
) -> Predictions:
    """Predictions of the labels of answers, of which the first `num_read` tokens, the prompt, were read."""
    unread = [row[start:-1] for row, start in zip(task.inputs(answers), num_read, strict=True)]
    labels = labels_after(answers, num_read)
    mask = pad_sequence([torch.ones_like(row) for row in labels], batch_first=True)
    device = prompts.attention_mask.device
    attention_mask = torch.cat([prompts.attention_mask, mask.to(device)], dim=1)
    inputs = model_inputs(model, pad_sequence(unread, batch_first=True).to(device), attention_mask)
    next_tokens = pad_sequence(labels, batch_first=True, padding_value=IGNORED).to(device)
    return task.predict_next(model, {**inputs, "past_key_values": prompts.cache, "use_cache": True}, next_tokens)
