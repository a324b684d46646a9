"""Greedy answers: the most likely token at each step, until the end token of the example.

A loop of our own and not `generate` of transformers, because that one fills every setting that is not given from the
model's own generation config: a repetition penalty or suppressed tokens in there would change the answers unseen.

Where the likelihood pass has found that the model gives the first k tokens of the right answer itself, the loop begins
behind them: of an answer that the model knows by heart, nothing is generated at all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from stable_forgetting.data.examples import ExampleSet, LanguageExample
from stable_forgetting.errors import ModelError
from stable_forgetting.evaluation.decoding import Rows, joined
from stable_forgetting.evaluation.likelihood import Progress, inference, longest_first
from stable_forgetting.evaluation.prompts import ReadPrompts, ReadTexts, left_padded, prompt_batches
from stable_forgetting.models.reading import num_positions, reads_padded_prompts, stretching_length
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
    """What the model answers to each prompt, see `GreedyDecoder` and its `answers`."""
    decoder = GreedyDecoder(model, task, example_set, max_new_tokens=max_new_tokens, batch_size=batch_size)
    return decoder.answers(num_known, progress=progress)


class GreedyDecoder:
    """Answers the prompts of a set greedily; prompts join the answers that are under way, where caches allow it.

    An answer ends before the example's end token, if it has one, or after `max_new_tokens` tokens. The attention mask
    comes from lengths and not from token ids, unless the task hides tokens; those have no place of their own then, as
    in transformers' `generate`. The batch size changes nothing beyond rounding. A decoder is used once.

    Args:
        model: Causal language model of transformers, with or without adapters.
        task: Gives the tokenizer.
        example_set: Examples whose prompts are answered.
        max_new_tokens: At most this many tokens per answer, at least 1.
        batch_size: Prompts read at once. While others wait, at least as many are answered at once, and up to three
            times as many: a step, which is a token of each, takes nearly as long with a few as with many.

    Raises:
        ModelError: A prompt and its answer do not fit into the model's positions.
    """

    def __init__(
        self,
        model: nn.Module,
        task: LanguageTask,
        example_set: ExampleSet[LanguageExample],
        *,
        max_new_tokens: int,
        batch_size: int,
    ) -> None:
        self.model = model
        self.task = task
        self.examples = example_set.examples
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size
        _check_positions(model, max(example.num_prompt_tokens for example in self.examples), max_new_tokens)
        self._may_pad = reads_padded_prompts(model) and stretching_length(model) is None
        self._tokens: dict[int, list[int]] = {}
        self._under_way: list[Rows] = []
        self._num_ended = 0
        self._progress: Progress | None = None

    def continue_from(
        self, texts: ReadTexts, places: Sequence[int], numbers: Sequence[int], num_known: Sequence[int]
    ) -> None:
        """Answer prompts from what the model keeps of texts that it has read; called within `inference`.

        Args:
            texts: Texts, as this model has read them.
            places: Places among them of prompts with their right answers.
            numbers: Numbers of these in the set.
            num_known: See `answers`.
        """
        place_of = dict(zip(numbers, places, strict=True))
        open_ = self._begin(numbers, num_known)
        if open_:
            begun = [self._text(number) for number in open_]
            # The last token is read once more, as the first step; a prompt of a single one is read behind nothing.
            last = torch.tensor([text[-1:] for text in begun], device=texts.column.device)
            chosen, num_tokens = [place_of[number] for number in open_], [len(text) - 1 for text in begun]
            self._enter(self._rows(open_, last, torch.ones_like(last), texts.beginnings(chosen, num_tokens)))

    def answers(self, num_known: Sequence[int] | None = None, *, progress: Progress | None = None) -> list[str]:
        """The answers to all prompts, in the order of the set; those that there are already are not decoded again.

        Args:
            num_known: How many first tokens of each right answer are the most likely ones for this model, each after
                the prompt and those before; None: not known.
            progress: Told as answers end.

        Returns:
            One text per example, without special tokens and surrounding white space.

        Raises:
            ModelError: The model keeps no cache.
        """
        new = [number for number in range(len(self.examples)) if number not in self._tokens]
        open_ = self._begin(new, [0 if num_known is None else num_known[number] for number in new])
        begun = [self._text(number) for number in open_]
        num_tokens = [len(text) for text in begun]
        # A model that knows an answer ends it where the right one ends: a batch of equally long ones ends together.
        by_length = longest_first([self.examples[number].num_labels - len(self._tokens[number]) for number in open_])
        self._progress = progress
        self._tell()
        with inference(self.model) as device:
            for places in prompt_batches(self.model, num_tokens, by_length, self.batch_size, self.max_new_tokens):
                read = [torch.tensor(begun[place]) for place in places]
                inputs = left_padded(read, [self.task.visible(text) for text in read], device)
                self._enter(self._rows([open_[place] for place in places], *inputs))
            self._continue_together(until=0)
        return [self._answer(number) for number in range(len(self.examples))]

    def _tell(self) -> None:
        if self._progress is not None and self._num_ended:
            self._progress(self._num_ended, len(self.examples))

    def _begin(self, numbers: Sequence[int], num_known: Sequence[int]) -> list[int]:
        """Begin answers with what is known of them; those that go on behind it."""
        for number, count in zip(numbers, num_known, strict=True):
            self._tokens[number] = list(_known(self.examples[number], count, self.max_new_tokens))
        open_ = [n for n in numbers if _is_open(self.examples[n], self._tokens[n], self.max_new_tokens)]
        self._num_ended += len(numbers) - len(open_)
        return open_

    def _text(self, number: int) -> tuple[int, ...]:
        """A prompt and what there is of its answer."""
        example = self.examples[number]
        return (*example.input_ids[: example.num_prompt_tokens], *self._tokens[number])

    def _rows(
        self, numbers: Sequence[int], input_ids: Tensor, attention_mask: Tensor, read: ReadPrompts | None = None
    ) -> Rows:
        """Rows of answers that were begun."""
        ends = [_end(self.examples[number]) for number in numbers]
        rooms = [self.max_new_tokens - len(self._tokens[number]) for number in numbers]
        number, end, room = torch.tensor([numbers, ends, rooms], device=input_ids.device)
        return Rows(number, end, room, input_ids, attention_mask, read)

    def _enter(self, rows: Rows) -> None:
        """Let rows go on with those under way, once there are two batches of them; or alone, to their end."""
        if rows.read is None:
            self._step(rows)
        if rows.read is None or not (self._may_pad and rows.read.keeps_all):
            self._decode(rows, until=0)
            return
        if len(rows):
            self._under_way.append(rows)
        if sum(map(len, self._under_way)) >= 2 * self.batch_size:
            self._continue_together(until=self.batch_size)

    def _continue_together(self, *, until: int) -> None:
        if self._under_way:
            rows = joined(self._under_way)
            for part in self._under_way:
                part.read = None  # whoever holds the part would keep its caches as long as these rows go on
            self._under_way = [rows]
            self._decode(rows, until=until)
            self._under_way = [rows] if len(rows) else []

    def _decode(self, rows: Rows, *, until: int) -> None:
        """Go on until so many rows are left."""
        while len(rows) > until:
            self._step(rows)

    def _step(self, rows: Rows) -> None:
        num_before = len(rows)
        for number, token in rows.step(self.model):
            self._tokens[number].append(token)
        self._num_ended += num_before - len(rows)
        if len(rows) < num_before:
            self._tell()

    def _answer(self, number: int) -> str:
        tokens = self._tokens[number]
        answer = tokens[:-1] if _end(self.examples[number]) in tokens[-1:] else tokens
        return str(self.task.tokenizer.decode(answer, skip_special_tokens=True)).strip()


def _known(example: LanguageExample, num_known: int, max_new_tokens: int) -> tuple[int, ...]:
    """The first tokens of the answer, as far as they are known; with its end token, should that be among them."""
    start, end = example.num_prompt_tokens, _end(example)
    known = example.input_ids[start : start + min(num_known, max_new_tokens)]
    return known[: known.index(end) + 1] if end in known else known


def _is_open(example: LanguageExample, known: Sequence[int], max_new_tokens: int) -> bool:
    """Whether the answer goes on behind what is known of it."""
    return len(known) < max_new_tokens and _end(example) not in known[-1:]


def _end(example: LanguageExample) -> int:
    """The example's end token, or a number that no token has."""
    return NO_TOKEN if example.end_token is None else example.end_token


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
