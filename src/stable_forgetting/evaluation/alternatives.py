"""Likelihood of several answers to one question: the right one, its paraphrase, and wrong ones.

The answers to a question share its prompt and often their first words. A model that can read trees reads the one of all
answers; another one reads each prompt once, and every answer continues from a copy of what it keeps of it. The values
are those of one pass per answer up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from stable_forgetting.data.examples import ExampleSet, LanguageExample
from stable_forgetting.evaluation.answer_trees import Keep, fits_a_tree, tree_batches
from stable_forgetting.evaluation.continued_answers import continued_batches
from stable_forgetting.evaluation.generation import GreedyDecoder
from stable_forgetting.evaluation.likelihood import (
    Ints,
    LikelihoodScores,
    Progress,
    ScoredBatch,
    collect,
    inference,
    plain_batches,
)
from stable_forgetting.evaluation.prompts import Family, ReadTexts
from stable_forgetting.models.predictions import Predictions
from stable_forgetting.models.reading import stretching_length
from stable_forgetting.models.tasks import LanguageTask


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
    decoder: GreedyDecoder | None = None,
    progress: Progress | None = None,
) -> AnswerScores:
    """Likelihood of every answer of every example.

    Args:
        model: Causal language model; used without dropout, and left in the mode it was in.
        task: Its task.
        example_set: Examples with alternative answers.
        batch_size: Answers per forward pass; where they continue prompts that were read before, of those, too.
        with_tokens: Whether to keep the values of each label of the right answers.
        decoder: Of the same examples; answers from what the model keeps of the texts that are read here, where it
            keeps them.
        progress: Told after each batch; it counts all answers.
    """
    families = [(example, *example.alternatives) for example in example_set]
    first = np.cumsum([0, *map(len, families)])[:-1]
    with inference(model) as device:
        keep: Keep | None = None
        if decoder is not None and task.trunk is None:  # else the model keeps nothing of the blocks below
            keep = partial(_hand_over, decoder, {int(start): index for index, start in enumerate(first)})
        batches = answer_batches(model, task, families, batch_size, device, keep)
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


def _hand_over(
    decoder: GreedyDecoder, examples: Mapping[int, int], numbers: list[int], predictions: Predictions, texts: ReadTexts
) -> None:
    """Let a decoder go on behind what the model gives of right answers, of which `examples` has number and example."""
    known = predictions.num_leading_correct.tolist()
    right = [place for place, number in enumerate(numbers) if number in examples]
    decoder.continue_from(
        texts, right, [examples[numbers[place]] for place in right], [known[place] for place in right]
    )


def answer_batches(
    model: nn.Module,
    task: LanguageTask,
    families: Sequence[Family],
    batch_size: int,
    device: torch.device,
    keep: Keep | None = None,
) -> Iterator[ScoredBatch]:
    """Predictions of all answers, numbered family after family; `keep` as `tree_batches` takes it.

    Every answer is read with its own prompt where no question has a second answer, where the task hides tokens, which
    have a place if a text is read as a whole and none after prompts, and where answers are so long that they stretch
    the rotary positions of their prompts.
    """
    answers = [answer for family in families for answer in family]
    limit = stretching_length(model)
    is_stretched = limit is not None and max(len(answer.input_ids) for answer in answers) > limit
    if len(answers) == len(families) or task.hides_pad_tokens or is_stretched:
        yield from plain_batches(model, task, answers, batch_size, device)
        return
    starts = np.cumsum([0, *map(len, families)]).tolist()
    numbered = [list(enumerate(family, start)) for family, start in zip(families, starts, strict=False)]
    as_tree = [fits_a_tree(model, family, batch_size) for family in families]
    in_trees = [family for family, is_tree in zip(numbered, as_tree, strict=True) if is_tree]
    continued = [family for family, is_tree in zip(numbered, as_tree, strict=True) if not is_tree]
    yield from tree_batches(model, task, in_trees, batch_size, device, keep)
    numbers = [number for family in continued for number, _ in family]
    others = [[answer for _, answer in family] for family in continued]
    for places, predictions in continued_batches(model, task, others, batch_size, device):
        yield [numbers[place] for place in places], predictions
