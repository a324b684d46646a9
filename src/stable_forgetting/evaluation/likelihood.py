"""Per-example likelihood: one forward pass that every teacher-forced metric is made from.

S = summed negative log-likelihood of an example's labels, n = their number, l = S / n, P = exp(−l).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from stable_forgetting.data.examples import Example, ExampleSet, LanguageExample
from stable_forgetting.errors import DataError
from stable_forgetting.models.predictions import Predictions
from stable_forgetting.models.tasks import Task

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

Progress = Callable[[int, int], None]
"""Called with the number of examples done and the number of all examples."""


@dataclass(frozen=True, eq=False)
class LikelihoodScores:
    """What one model says about each label of each example; N examples, all columns (N,).

    The columns ``…_without_last`` leave the last label out. They exist for published protocols that do so.

    Args:
        nll_sum: S, in nats.
        num_labels: n, at least 1.
        num_correct: Labels that are the most likely token or class, given the right tokens before them.
        first_extractable: k, the smallest index from which every label is the most likely one; n if the last is not.
        num_correct_without_last: As `num_correct`.
        first_extractable_without_last: As `first_extractable`, at most n − 1.
        predicted: Most likely class; None for language.
        label: Right class; None for language.
    """

    nll_sum: Floats
    num_labels: Ints
    num_correct: Ints
    first_extractable: Ints
    num_correct_without_last: Ints
    first_extractable_without_last: Ints
    predicted: Ints | None = None
    label: Ints | None = None

    def __len__(self) -> int:
        return len(self.nll_sum)

    @property
    def nll(self) -> Floats:
        """Negative log-likelihood per label, l = S / n, (N,), in nats."""
        return self.nll_sum / self.num_labels

    @property
    def probability(self) -> Floats:
        """P = exp(−S / n), (N,): for an image the probability of its class."""
        return np.exp(-self.nll)

    @property
    def not_finite(self) -> list[int]:
        """Examples whose likelihood is infinite or not a number."""
        return np.flatnonzero(~np.isfinite(self.nll_sum)).tolist()

    def to_json(self) -> dict[str, list[float] | list[int] | None]:
        """Columns as plain lists; `from_json` gives back every bit."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: None if values is None else values.tolist() for name, values in columns.items()}

    @classmethod
    def from_json(cls, columns: Mapping[str, Any]) -> LikelihoodScores:
        """Read what `to_json` wrote.

        Raises:
            DataError: A column is missing, unknown, or not as long as the others.
        """
        expected = {field.name for field in fields(cls)}
        if set(columns) != expected:
            raise DataError(
                f"The likelihood has the columns {sorted(columns)} and not {sorted(expected)}. Score the model again."
            )
        lengths = {name: len(values) for name, values in columns.items() if values is not None}
        if len(set(lengths.values())) != 1:
            raise DataError(f"The likelihood columns differ in length: {lengths}. Score the model again.")
        return cls(**{name: _column(name, values) for name, values in columns.items()})


def _column(name: str, values: Sequence[float] | None) -> Any:
    if values is None:
        return None
    return np.asarray(values, dtype=np.float64 if name == "nll_sum" else np.int64)


def score_examples(
    model: nn.Module,
    task: Task,
    example_set: ExampleSet[Any],
    *,
    batch_size: int,
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
        progress: Told after each batch.

    Returns:
        One row per example.
    """
    examples = example_set.examples
    order = longest_first([_length(example) for example in examples])
    parts = []
    with inference(model) as device:
        for start in range(0, len(order), batch_size):
            chosen = [examples[index] for index in order[start : start + batch_size]]
            batch = {name: tensor.to(device) for name, tensor in task.collate(chosen).items()}
            parts.append(_columns(task.predict(model, batch), is_image=task.name == "image"))
            if progress is not None:
                progress(start + len(chosen), len(order))
    back = np.argsort(order)
    return LikelihoodScores(**{name: np.concatenate([part[name] for part in parts])[back] for name in parts[0]})


def _columns(predictions: Predictions, *, is_image: bool) -> dict[str, npt.NDArray[Any]]:
    example, correct = predictions.example, predictions.correct
    counts = predictions.num_labels
    starts = counts.cumsum(0) - counts
    position = torch.arange(len(example), device=example.device) - starts[example]
    is_last = position == counts[example] - 1
    columns = {
        "nll_sum": predictions.nll_sum.double(),
        "num_labels": counts,
        "num_correct": predictions.sum_by_example(correct.long()),
        "first_extractable": _first_extractable(predictions, position, ~correct),
        "num_correct_without_last": predictions.sum_by_example((correct & ~is_last).long()),
        "first_extractable_without_last": _first_extractable(predictions, position, ~correct & ~is_last),
    }
    if is_image:
        columns |= {"predicted": predictions.logits.argmax(dim=-1), "label": predictions.labels}
    return {name: values.cpu().numpy() for name, values in columns.items()}


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


@contextmanager
def inference(model: nn.Module) -> Iterator[torch.device]:
    """Use a model without gradients and without dropout, and leave every module in the mode it was in.

    Yields:
        The device of the model's first parameter, where inputs belong.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield next(model.parameters()).device
    finally:
        for module in training:
            module.training = True
