"""Greedy answers: the most likely token at each step, until the end token of the example.

A loop of our own and not `generate` of transformers, because that one fills every setting that is not given from the
model's own generation config: a repetition penalty or suppressed tokens in there would change the answers unseen.

Where the likelihood pass has found that the model gives the first k tokens of the right answer itself, the loop begins
behind them: of an answer that the model knows by heart, nothing is generated at all.

E = rows still going, T = tokens so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, LinearAttentionCacheLayerMixin

from stable_forgetting.data.examples import ExampleSet, LanguageExample
from stable_forgetting.errors import ModelError
from stable_forgetting.evaluation.likelihood import Progress, inference, longest_first
from stable_forgetting.evaluation.prompts import left_padded, model_inputs, prompt_batches
from stable_forgetting.models.reading import num_positions
from stable_forgetting.models.tasks import LanguageTask

NO_TOKEN = -1
"""Equal to no token id."""


def greedy_answers(
    model: nn.Module,
    task: LanguageTask,
    example_set: ExampleSet[LanguageExample],
    *,
    max_new_tokens: int,
    batch_size: int,
    num_known: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """What the model answers to each prompt, decoded greedily, in the order of the set.

    An answer ends before the example's end token, if it has one, or after `max_new_tokens` tokens. The attention mask
    comes from lengths and not from token ids, unless the task hides tokens; those have no place of their own then, as
    in transformers' `generate`. The batch size changes nothing beyond rounding.

    Args:
        model: Causal language model of transformers, with or without adapters.
        task: Gives the tokenizer.
        example_set: Examples whose prompts are answered.
        max_new_tokens: At most this many tokens per answer, at least 1.
        batch_size: Prompts decoded at once.
        num_known: How many first tokens of each right answer are the most likely ones for this model, each after the
            prompt and those before; None: not known.
        progress: Told after each batch.

    Returns:
        One text per example, without special tokens and surrounding white space.

    Raises:
        ModelError: A prompt and its answer do not fit into the model's positions, or the model keeps no cache.
    """
    examples = example_set.examples
    _check_positions(model, max(example.num_prompt_tokens for example in examples), max_new_tokens)
    known = [
        _known(examples[i], 0 if num_known is None else num_known[i], max_new_tokens) for i in range(len(examples))
    ]
    tokens = {index: list(row) for index, row in enumerate(known)}
    open_ = [index for index, example in enumerate(examples) if _is_open(example, known[index], max_new_tokens)]
    # A model that knows an answer ends it where the right one ends: a batch of equally long ones ends together.
    by_length = longest_first([examples[index].num_labels - len(known[index]) for index in open_])
    num_done = len(examples) - len(open_)
    if progress is not None and num_done:
        progress(num_done, len(examples))
    with inference(model) as device:
        num_read = [examples[index].num_prompt_tokens + len(known[index]) for index in open_]
        for places in prompt_batches(model, num_read, by_length, batch_size, max_new_tokens):
            chosen = [open_[place] for place in places]
            read = [examples[open_[place]].input_ids[: num_read[place]] for place in places]
            prompts = [torch.tensor(row) for row in read]
            input_ids, attention_mask = left_padded(prompts, [task.visible(row) for row in prompts], device)
            ends = torch.tensor([_end(examples[i]) for i in chosen], device=device)
            room = torch.tensor([max_new_tokens - len(known[i]) for i in chosen], device=device)
            rows = _Rows(torch.arange(len(chosen), device=device), ends, room, input_ids, attention_mask)
            for index, row in zip(chosen, _decode(model, rows), strict=True):
                tokens[index] += row
            num_done += len(chosen)
            if progress is not None:
                progress(num_done, len(examples))
    return [_text(task, examples[index], tokens[index]) for index in range(len(examples))]


def _known(example: LanguageExample, num_known: int, max_new_tokens: int) -> tuple[int, ...]:
    """The first tokens of the answer, as far as they are known; with its end token, should that be among them."""
    start, end = example.num_prompt_tokens, _end(example)
    known = example.input_ids[start : start + min(num_known, max_new_tokens)]
    return known[: known.index(end) + 1] if end in known else known


def _is_open(example: LanguageExample, known: Sequence[int], max_new_tokens: int) -> bool:
    """Whether the answer goes on behind what is known of it."""
    return len(known) < max_new_tokens and _end(example) not in known[-1:]


def _text(task: LanguageTask, example: LanguageExample, tokens: Sequence[int]) -> str:
    answer = tokens[:-1] if _end(example) in tokens[-1:] else tokens
    return str(task.tokenizer.decode(answer, skip_special_tokens=True)).strip()


def _end(example: LanguageExample) -> int:
    """The example's end token, or a number that no token has."""
    return NO_TOKEN if example.end_token is None else example.end_token


@dataclass(eq=False)
class _Rows:
    """The rows that are still going.

    Args:
        number: (E,), place of each row in the batch as it came.
        end: (E,), end token of each row.
        room: (E,), how many tokens of each row may still come.
        input_ids: (E, T) at first, then (E, 1): tokens that the model has not seen yet.
        attention_mask: (E, T), 1 for tokens and 0 for padding.
        cache: Keys and values of the tokens seen so far.
    """

    number: Tensor
    end: Tensor
    room: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    cache: Any = None

    def advance(self, token: Tensor) -> None:
        """Append a token to each row, and drop the rows that end with it."""
        going = (token != self.end) & (self.room > 1)
        if not going.all():
            _select_rows(self.cache, going.nonzero()[:, 0])
        token, self.number, self.end, self.room = (
            token[going],
            self.number[going],
            self.end[going],
            self.room[going] - 1,
        )
        mask = self.attention_mask[going]
        self.attention_mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        self.input_ids = token[:, None]


def _decode(model: nn.Module, rows: _Rows) -> list[list[int]]:
    """Greedy tokens of each row, with its end token where it was reached."""
    answers: list[list[int]] = [[] for _ in rows.number]
    while len(rows.number):
        inputs = model_inputs(model, rows.input_ids, rows.attention_mask, logits_to_keep=1)
        outputs = model(**inputs, past_key_values=rows.cache, use_cache=True)
        rows.cache = _cache_of(outputs, model)
        found = outputs.logits[:, -1].argmax(dim=-1)
        for number, token in zip(rows.number.tolist(), found.tolist(), strict=True):
            answers[number].append(token)
        rows.advance(found)
    return answers


def _select_rows(cache: Any, chosen: Tensor) -> None:
    """Keep these rows of a cache. Layers with a recurrent state select all that they have by reordering it alone."""
    if type(cache) is not DynamicCache:
        cache.batch_select_indices(chosen)
        return
    for layer in cache.layers:
        is_recurrent = isinstance(layer, LinearAttentionCacheLayerMixin)
        (layer.reorder_cache if is_recurrent else layer.batch_select_indices)(chosen)


def _cache_of(outputs: Any, model: nn.Module) -> Any:
    cache = getattr(outputs, "past_key_values", None)
    if cache is None or not hasattr(cache, "batch_select_indices"):
        raise ModelError(
            f"{type(model).__name__} returns no key-value cache, which greedy answers need. "
            "Set evaluation.generate to false to measure without answers."
        )
    return cache


def _check_positions(model: nn.Module, longest: int, max_new_tokens: int) -> None:
    positions = num_positions(extract_model_from_parallel(model).config)
    if positions is None or longest + max_new_tokens <= positions:
        return
    room = positions - longest
    advice = f"Set evaluation.max_new_tokens to at most {room}" if room > 0 else "Shorten the prompts"
    raise ModelError(
        f"The longest prompt has {longest} tokens; with {max_new_tokens} new ones it does not fit into the model's "
        f"{positions} positions. {advice}."
    )
