"""Likelihood of several answers to one question: the right one, its paraphrase, and wrong ones.

The answers to a question share its prompt and often their first words. A model that takes any mask reads the prefix
tree of all answers in one row; another one reads each prompt once, and every answer continues from a copy of what it
keeps of it. The values are those of one pass per answer up to rounding.

E = rows of a batch, T = longest answer in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from stable_forgetting.data.examples import ExampleSet, LanguageExample
from stable_forgetting.evaluation.likelihood import (
    Ints,
    LikelihoodScores,
    Progress,
    ScoredBatch,
    collect,
    inference,
    longest_first,
    plain_batches,
)
from stable_forgetting.evaluation.prompts import ReadPrompts, model_inputs, read_prompts
from stable_forgetting.models.packing import packed_rows
from stable_forgetting.models.predictions import Predictions
from stable_forgetting.models.prefix_trees import LARGEST_TREE, prefix_tree, reads_trees
from stable_forgetting.models.tasks import IGNORED, LanguageTask

Family = Sequence[LanguageExample]
"""All answers to one question."""

Numbered = Sequence[tuple[int, LanguageExample]]
"""Answers with their numbers among all answers."""


@dataclass(frozen=True, eq=False)
class AnswerScores:
    """Likelihood of the answers of N examples.

    Args:
        likelihood: Of the right answers, N rows.
        paraphrased: Of the paraphrased answers, N rows; None unless every example has one.
        perturbed: Of the wrong answers, example after example; None unless every example has at least one.
        num_perturbed: Wrong answers of each example, (N,); None where `perturbed` is.
        num_leading_correct: Labels of each right answer before the first that is not the most likely token, (N,).
    """

    likelihood: LikelihoodScores
    paraphrased: LikelihoodScores | None
    perturbed: LikelihoodScores | None
    num_perturbed: Ints | None
    num_leading_correct: Ints


def score_answers(
    model: nn.Module,
    task: LanguageTask,
    example_set: ExampleSet[LanguageExample],
    *,
    batch_size: int,
    with_tokens: bool = False,
    progress: Progress | None = None,
) -> AnswerScores:
    """Likelihood of every answer of every example.

    Args:
        model: Causal language model; used without dropout, and left in the mode it was in.
        task: Its task.
        example_set: Examples with alternative answers.
        batch_size: Answers per forward pass; where they continue prompts that were read before, of those, too.
        with_tokens: Whether to keep the values of each label of the right answers.
        progress: Told after each batch; it counts all answers.
    """
    families = [(example, *example.alternatives) for example in example_set]
    first = np.cumsum([0, *map(len, families)])[:-1]
    with inference(model) as device:
        batches = answer_batches(model, task, families, batch_size, device)
        wanted = frozenset(first.tolist()) if with_tokens else frozenset()
        collected = collect(batches, sum(map(len, families)), with_tokens=wanted, progress=progress)
    has_paraphrase = np.array([example.paraphrased is not None for example in example_set])
    num_perturbed = np.array([len(example.perturbed) for example in example_set], dtype=np.int64)
    starts = first + 1 + has_paraphrase
    perturbed = [
        place for start, count in zip(starts, num_perturbed, strict=True) for place in range(start, start + count)
    ]
    all_perturbed = bool(num_perturbed.min() > 0)
    return AnswerScores(
        likelihood=collected.scores(first.tolist()),
        paraphrased=collected.scores((first + 1).tolist()) if has_paraphrase.all() else None,
        perturbed=collected.scores(perturbed) if all_perturbed else None,
        num_perturbed=num_perturbed if all_perturbed else None,
        num_leading_correct=collected.num_leading_correct[first],
    )


def answer_batches(
    model: nn.Module, task: LanguageTask, families: Sequence[Family], batch_size: int, device: torch.device
) -> Iterator[ScoredBatch]:
    """Predictions of all answers, numbered family after family.

    Every answer is read with its own prompt where no question has a second answer, and where the task hides tokens,
    which have a place if a text is read as a whole and none after prompts.
    """
    answers = [answer for family in families for answer in family]
    if len(answers) == len(families) or task.hides_pad_tokens:
        yield from plain_batches(model, task, answers, batch_size, device)
        return
    starts = np.cumsum([0, *map(len, families)]).tolist()
    numbered = [list(enumerate(family, start)) for family, start in zip(families, starts, strict=False)]
    as_tree = [_fits_a_tree(model, family, batch_size) for family in families]
    in_trees = [family for family, is_tree in zip(numbered, as_tree, strict=True) if is_tree]
    continued = [family for family, is_tree in zip(numbered, as_tree, strict=True) if not is_tree]
    yield from _tree_batches(model, task, in_trees, batch_size, device)
    numbers = [number for family in continued for number, _ in family]
    others = [[answer for _, answer in family] for family in continued]
    for places, predictions in _continued_batches(model, task, others, batch_size, device):
        yield [numbers[place] for place in places], predictions


def _fits_a_tree(model: nn.Module, family: Family, batch_size: int) -> bool:
    """Whether all answers can be in one tree: a second one for those that are too many would read the prompt again."""
    longest = max(len(answer.input_ids) for answer in family)
    return len(family) <= batch_size and num_unshared(family) <= LARGEST_TREE and reads_trees(model, longest)


def num_unshared(family: Family) -> int:
    """Tokens of the answers to a question, those of the prompt that they share counted once."""
    prompt = common_prompt(family)
    return prompt + sum(len(answer.input_ids) - prompt for answer in family)


def _tree_batches(
    model: nn.Module, task: LanguageTask, families: Sequence[Numbered], batch_size: int, device: torch.device
) -> Iterator[ScoredBatch]:
    """Predictions from prefix trees, the largest families first, as many at once as have `batch_size` answers.

    Small families share the rows that the largest one of a batch needs: less is read in vain.
    """
    sizes = [num_unshared([answer for _, answer in family]) for family in families]
    waiting = longest_first(sizes)
    while waiting:
        counts = np.cumsum([len(families[place]) for place in waiting[:batch_size]])
        num_taken = int((counts <= batch_size).sum())
        taken, waiting = waiting[:num_taken], waiting[num_taken:]
        packed = packed_rows([sizes[place] for place in taken], sizes[taken[0]])
        rows = [[answer for place in row for answer in families[taken[place]]] for row in packed]
        numbers, answers = zip(*(answer for row in rows for answer in row), strict=True)
        trees = [prefix_tree([answer.input_ids[:-1] for _, answer in row]) for row in rows]
        yield list(numbers), task.predict_trees(model, answers, trees, device)


def _continued_batches(
    model: nn.Module, task: LanguageTask, families: Sequence[Family], batch_size: int, device: torch.device
) -> Iterator[ScoredBatch]:
    """Predictions of answers that continue from copies of their prompts.

    Every answer is read with its own prompt where a prompt has a single token, or where the model keeps something else
    of its prompts than keys and values in the form that transformers gives them by default.
    """
    answers = [answer for family in families for answer in family]
    starts = np.cumsum([0, *map(len, families)]).tolist()
    shared = [common_prompt(family) for family in families]
    order = longest_first(shared)
    for begin in range(0, len(order), batch_size):
        chosen = order[begin : begin + batch_size]
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


def common_prompt(family: Family) -> int:
    """Number of tokens that all answers to a question begin with, at most all prompt tokens but the last.

    The last one is read together with the answer, whose first token it predicts. Tokenizers that join the prompt's end
    with the answer's start can make the prompts differ, so they are compared and not taken for granted.
    """
    limit = min(answer.num_prompt_tokens for answer in family) - 1
    prompts = np.array([answer.input_ids[:limit] for answer in family])
    return limit if limit < 1 else int((prompts == prompts[0]).all(axis=0).cumprod().sum())


def _predict(
    model: nn.Module,
    task: LanguageTask,
    prompts: ReadPrompts,
    answers: Sequence[LanguageExample],
    num_read: Sequence[int],
) -> Predictions:
    """Predictions of the labels of answers, of which the first `num_read` tokens, the prompt, were read."""
    unread = [row[start:-1] for row, start in zip(task.inputs(answers), num_read, strict=True)]
    labels = []
    for answer, start in zip(answers, num_read, strict=True):
        following = torch.tensor(answer.input_ids[start + 1 :])
        following[: -answer.num_labels] = IGNORED
        labels.append(following)
    mask = pad_sequence([torch.ones_like(row) for row in labels], batch_first=True)
    device = prompts.attention_mask.device
    attention_mask = torch.cat([prompts.attention_mask, mask.to(device)], dim=1)
    inputs = model_inputs(model, pad_sequence(unread, batch_first=True).to(device), attention_mask)
    next_tokens = pad_sequence(labels, batch_first=True, padding_value=IGNORED).to(device)
    return task.predict_next(model, {**inputs, "past_key_values": prompts.cache, "use_cache": True}, next_tokens)
