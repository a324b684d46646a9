"""Per-example likelihood: one forward pass that every teacher-forced metric is made from.

S = summed negative log-likelihood of an example's labels, n = their number, l = S / n, P = exp(−l).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from stable_forgetting.data.examples import Example, ExampleSet, LanguageExample
from stable_forgetting.evaluation.likelihood_scores import Floats, Ints, LikelihoodScores, Singles, TokenScores
from stable_forgetting.models.predictions import Predictions
from stable_forgetting.models.reading import stretching_length
from stable_forgetting.models.tasks import Task

__all__ = [
    "Collected",
    "Floats",
    "Ints",
    "LikelihoodScores",
    "Progress",
    "ScoredBatch",
    "Singles",
    "TokenScores",
    "collect",
    "inference",
    "longest_first",
    "plain_batches",
    "score_examples",
    "without_dropout",
]

ScoredBatch = tuple[list[int], Predictions]
"""Numbers of the examples of a batch, and their predictions."""

POSITIONS_AT_ONCE = 64
"""Label positions whose whole distribution is looked at together: a few vocabularies of memory, not a batch of them."""

LEAST_LOG_PROBABILITY = -1e4
"""Smaller ones stand for a probability that is 0 in double precision too."""

Progress = Callable[[int, int], None]
"""Called with the number of examples done and the number of all examples."""


def score_examples(
    model: nn.Module,
    task: Task,
    example_set: ExampleSet[Any],
    *,
    batch_size: int,
    with_tokens: bool = False,
    progress: Progress | None = None,
) -> LikelihoodScores:
    """Likelihood of every example under the model, in the order of the set, from one forward pass each.

    Longest examples come first, so that a batch that does not fit into memory shows at once. Values depend on the other
    examples of a batch only through rounding.

    Args:
        model: Model of the task; used without dropout, and left in the mode it was in.
        task: Turns examples into predictions at label positions.
        example_set: The examples.
        batch_size: Examples per forward pass.
        with_tokens: Whether to keep the values of each label.
        progress: Told after each batch.

    Returns:
        One row per example.
    """
    with inference(model) as device:
        batches = plain_batches(model, task, example_set.examples, batch_size, device)
        wanted = frozenset(range(len(example_set))) if with_tokens else frozenset()
        is_image = task.name == "image"
        count = len(example_set)
        return collect(batches, count, with_tokens=wanted, is_image=is_image, progress=progress).scores()


def plain_batches(
    model: nn.Module, task: Task, examples: Sequence[Any], batch_size: int, device: torch.device
) -> Iterator[ScoredBatch]:
    """Predictions of all examples, longest first, each example read as a whole.

    A text that stretches the rotary positions of its batch is read with others of its length only.
    """
    lengths = [_length(example) for example in examples]
    limit = stretching_length(model) if task.name == "language" else None
    stretched = [0 if limit is None or length <= limit else length for length in lengths]
    for chosen in batches_of_like(longest_first(lengths), stretched, batch_size):
        batch = {
            name: tensor.to(device) for name, tensor in task.collate([examples[index] for index in chosen]).items()
        }
        yield chosen, task.predict(model, batch)


@dataclass(frozen=True, eq=False)
class Collected:
    """What was measured of examples.

    Args:
        columns: Columns of `LikelihoodScores` by name, (N,) each.
        num_leading_correct: Labels before the first that is not the most likely token or class, (N,).
        tokens: Columns of `TokenScores` in order, (3, n), by the number of the example, where they were asked for.
    """

    columns: dict[str, npt.NDArray[Any]]
    num_leading_correct: Ints
    tokens: dict[int, Singles]

    def scores(self, chosen: Sequence[int] | None = None) -> LikelihoodScores:
        """Scores of some examples in the order given; None for all. They have `tokens` if all of them were asked."""
        numbers = range(len(self.columns["nll_sum"])) if chosen is None else chosen
        columns: dict[str, Any] = {name: values[list(numbers)] for name, values in self.columns.items()}
        if not all(number in self.tokens for number in numbers):
            return LikelihoodScores(**columns)
        return LikelihoodScores(
            **columns, tokens=TokenScores(*np.concatenate([self.tokens[number] for number in numbers], axis=1))
        )


def collect(
    batches: Iterable[ScoredBatch],
    count: int,
    *,
    with_tokens: frozenset[int] = frozenset(),
    is_image: bool = False,
    with_classes: bool = False,
    progress: Progress | None = None,
) -> Collected:
    """Take from predictions what is kept of them, batch by batch.

    Args:
        batches: Numbers of the examples of each batch, and their predictions; each of `count` examples comes once.
        count: Number of examples, N.
        with_tokens: Examples whose values of each label are kept.
        is_image: Whether predicted and right class are kept, and the entropy over the classes.
        with_classes: Whether the log-probability of each class is kept.
        progress: Told after each batch.
    """
    parts: list[dict[str, npt.NDArray[Any]]] = []
    order: list[int] = []
    tokens: dict[int, Singles] = {}
    for numbers, predictions in batches:
        parts.append(_columns(predictions, is_image=is_image, with_classes=with_classes))
        if with_tokens.intersection(numbers):
            found = _token_columns(predictions, [number in with_tokens for number in numbers])
            tokens |= {numbers[place]: values for place, values in found.items()}
        order += numbers
        if progress is not None:
            progress(len(order), count)
    back = np.argsort(order)
    columns = {name: np.concatenate([part[name] for part in parts])[back] for name in parts[0]}
    return Collected(columns, columns.pop("num_leading_correct"), tokens)


def _columns(predictions: Predictions, *, is_image: bool, with_classes: bool) -> dict[str, npt.NDArray[Any]]:
    example, correct = predictions.example, predictions.correct
    counts = predictions.num_labels
    position = predictions.position
    is_last = position == counts[example] - 1
    columns = {
        "nll_sum": predictions.nll_sum.double(),
        "num_labels": counts,
        "num_correct": predictions.sum_by_example(correct.long()),
        "num_leading_correct": predictions.num_leading_correct,
        "first_extractable": _first_extractable(predictions, position, ~correct),
        "num_correct_without_last": predictions.sum_by_example((correct & ~is_last).long()),
        "first_extractable_without_last": _first_extractable(predictions, position, ~correct & ~is_last),
    }
    if is_image:
        columns |= {"predicted": predictions.logits.argmax(dim=-1), "label": predictions.labels}
        columns |= _class_columns(predictions.logits, with_classes=with_classes)
    return {name: values.cpu().numpy() for name, values in columns.items()}


def _class_columns(logits: Tensor, *, with_classes: bool) -> dict[str, Tensor]:
    log_probabilities = logits.double().log_softmax(dim=-1).clamp(min=LEAST_LOG_PROBABILITY)
    columns = {"entropy": -(log_probabilities.exp() * log_probabilities).sum(dim=-1)}
    return columns | ({"class_log_probabilities": log_probabilities.float()} if with_classes else {})


def _token_columns(predictions: Predictions, wanted: Sequence[bool]) -> dict[int, Singles]:
    """Log-probability of each label, and mean and variance of the log-probability, by the place of the example."""
    places = torch.tensor(wanted, device=predictions.example.device)[predictions.example].nonzero()[:, 0]
    parts = []
    for chunk in torch.split(places, POSITIONS_AT_ONCE):
        log_probabilities = predictions.logits_of(chunk).float().log_softmax(dim=-1)
        probabilities = log_probabilities.exp()
        # Excluded tokens have -inf, and 0 * -inf is not a number; what is that unlikely has probability 0 anyway.
        log_probabilities = log_probabilities.clamp(min=LEAST_LOG_PROBABILITY)
        mean = (probabilities * log_probabilities).sum(dim=-1, keepdim=True)
        variance = (probabilities * (log_probabilities - mean) ** 2).sum(dim=-1)
        parts.append(torch.stack([-predictions.nll[chunk].float(), mean[:, 0], variance]))
    columns = torch.cat(parts, dim=1).cpu().numpy()
    counts = predictions.num_labels.tolist()
    found = [place for place, is_wanted in enumerate(wanted) if is_wanted]
    ends = np.cumsum([counts[place] for place in found])
    return {place: columns[:, end - counts[place] : end] for place, end in zip(found, ends.tolist(), strict=True)}


def _first_extractable(predictions: Predictions, position: Tensor, wrong: Tensor) -> Tensor:
    """Index after the last wrong position of each example, (E,); 0 if none is wrong."""
    after = torch.where(wrong, position + 1, 0)
    return after.new_zeros(predictions.num_examples).scatter_reduce(0, predictions.example, after, reduce="amax")


def _length(example: Example) -> int:
    return len(example.input_ids) if isinstance(example, LanguageExample) else example.num_labels


def longest_first(lengths: Sequence[int]) -> list[int]:
    """Indices by falling length; equal lengths stay in order.

    Example:
        >>> longest_first([2, 5, 5, 1])
        [1, 2, 0, 3]
    """
    return sorted(range(len(lengths)), key=lambda index: -lengths[index])


def batches_of_like(order: Sequence[int], kinds: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Batches of places in their order, each of neighbours of one kind.

    Args:
        order: Places, each once.
        kinds: What is alike, by place.
        batch_size: Places in a batch at most.

    Example:
        >>> [*batches_of_like([3, 1, 0, 2], [5, 7, 5, 7], 2)]
        [[3, 1], [0, 2]]
    """
    for _, group in groupby(order, key=kinds.__getitem__):
        places = list(group)
        yield from (places[start : start + batch_size] for start in range(0, len(places), batch_size))


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[torch.device]:
    """Use a model without dropout, and leave every module in the mode it was in.

    Yields:
        The device of the model's first parameter, where inputs belong.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield next(model.parameters()).device
    finally:
        for module in training:
            module.training = True


@contextmanager
def inference(model: nn.Module) -> Iterator[torch.device]:
    """Use a model without gradients and without dropout, and leave every module in the mode it was in.

    Yields:
        The device of the model's first parameter, where inputs belong.
    """
    with without_dropout(model) as device, torch.inference_mode():
        yield device
