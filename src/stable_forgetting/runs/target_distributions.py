"""Targets of `calibrated_distribution`: how likely every token is to be at each label of the forget set.

The label gets its target, as in `calibrated_labels`. What that leaves goes to all other tokens in the order that the
base model gives them: what it would say if not this. So a model that forgets a name still expects a name there. Their
probabilities are those of the base model to a power, at which the model is as sure of another word as it is in unseen
examples: beside what it knows by heart it has no preference, and where it has none, Min-K++ sees that it was asked to
forget.

P = labels of the forget set, V = tokens or classes, K = those of them that are kept one by one at each label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stable_forgetting.data.examples import ExampleSet
from stable_forgetting.data.ragged import RaggedRows
from stable_forgetting.evaluation.likelihood import POSITIONS_AT_ONCE, inference, plain_batches
from stable_forgetting.evaluation.likelihood_scores import Floats
from stable_forgetting.models.tasks import Task
from stable_forgetting.progress import Progress
from stable_forgetting.runs.scoring import unit_of

NUM_KEPT = 128
"""K, where there are as many tokens or classes: a kilobyte for each label. Nearly all that a model could say is among
them, and all others together are one more group."""


VERSION = "as sure of other tokens as at unseen labels"
"""What the distributions are made by: a run that was begun with others is not gone on with."""

_POWERS = (1 / 8, 8.0)
"""Lowest and highest power."""

_HALVINGS = 20
"""Of the interval of powers, on a logarithmic scale: to 4e-6 of a power."""

WantedEntropies = Callable[[Floats], Floats]
"""From the entropy of all other tokens at each forget label under the base model, (P,), to what it should be, (P,); NaN
where the base model's own proportions are to stay."""


def target_distributions(
    targets: Floats,
    wanted_entropies: WantedEntropies | None,
    *,
    model: nn.Module,
    task: Task,
    forget: ExampleSet[Any],
    batch_size: int,
    progress: Progress,
    num_kept: int | None = None,
) -> dict[str, RaggedRows]:
    """What the forget term takes: a row for each example.

    Args:
        targets: (P,), NLL that each label of the forget set is to get, example after example, in nats.
        wanted_entropies: How sure the model is to be of another token; None: the base model's proportions.
        model: The base model.
        task: Its task.
        forget: The forget set.
        batch_size: Examples per forward pass.
        progress: Where a bar is shown.
        num_kept: K, if it is not to be `NUM_KEPT`; at most V of them.

    Returns:
        ``target_tokens``, (N, labels of the example, K), int32: the label and the tokens that are likeliest beside it;
        ``target_probabilities``, (N, labels of the example, K + 1): of each of them and, last, of all others together.
    """
    base = _BaseModel(model, task, forget, batch_size, progress)
    unchanged = np.full(len(targets), math.nan)
    entropies = unchanged if wanted_entropies is None else wanted_entropies(base.entropies_of_others())
    wanted = torch.tensor(np.stack([targets, entropies], axis=1), dtype=torch.float32)
    lengths = torch.tensor([example.num_labels for example in forget])
    of_example = torch.split(wanted, lengths.tolist())
    found: dict[int, tuple[Tensor, ...]] = {}
    for numbers, counts, chunks in base.label_logits("target distributions"):
        given = torch.split(torch.cat([of_example[number] for number in numbers]), POSITIONS_AT_ONCE)
        parts = [
            _groups(logits, labels, values.to(logits.device), num_kept or NUM_KEPT)
            for (logits, labels), values in zip(chunks, given, strict=True)
        ]
        rows = [torch.split(torch.cat(values).cpu(), counts) for values in zip(*parts, strict=True)]
        found |= dict(zip(numbers, zip(*rows, strict=True), strict=True))
    tokens, probabilities = zip(*(found[number] for number in range(len(forget))), strict=True)
    return {
        "target_tokens": RaggedRows(torch.cat(tokens), lengths),
        "target_probabilities": RaggedRows(torch.cat(probabilities), lengths),
    }


class _BaseModel:
    """What the base model says at the labels of the forget set, some at a time."""

    def __init__(
        self, model: nn.Module, task: Task, forget: ExampleSet[Any], batch_size: int, progress: Progress
    ) -> None:
        self.model, self.task, self.forget = model, task, forget
        self.batch_size, self.progress = batch_size, progress

    def label_logits(self, what: str) -> Iterator[tuple[list[int], list[int], Iterator[tuple[Tensor, Tensor]]]]:
        """Numbers of a batch's examples, their numbers of labels, and logits (P, V) and labels (P, 1) in pieces."""
        bar = self.progress.track(f"base model: {what}", len(self.forget), unit_of(self.task))
        with inference(self.model) as device, bar as advance:
            batches = plain_batches(self.model, self.task, self.forget.examples, self.batch_size, device)
            for numbers, predictions in batches:
                places = torch.arange(len(predictions.labels), device=device)
                chunks = (
                    (predictions.logits_of(chunk).float(), predictions.labels[chunk, None])
                    for chunk in torch.split(places, POSITIONS_AT_ONCE)
                )
                yield numbers, predictions.num_labels.tolist(), chunks
                advance(len(numbers))

    def entropies_of_others(self) -> Floats:
        """Entropy of what is said if not the label, (P,), in nats.

        From the logits: where a label is known by heart, nothing of it is left in single-precision probabilities.
        """
        found: dict[int, Tensor] = {}
        for numbers, counts, chunks in self.label_logits("other words"):
            entropies = [_entropy(_others(logits, labels))[:, 0].cpu() for logits, labels in chunks]
            found |= dict(zip(numbers, torch.split(torch.cat(entropies), counts), strict=True))
        return torch.cat([found[number] for number in range(len(self.forget))]).double().numpy()


def _groups(logits: Tensor, labels: Tensor, wanted: Tensor, num_kept: int) -> tuple[Tensor, Tensor]:
    """Tokens that are kept one by one, and the probabilities of each and of all others.

    Logits (P, V), labels (P, 1), and of each the target and the entropy of the others, (P, 2).
    """
    targets, entropies = torch.split(wanted, 1, dim=1)
    right = (-targets).exp()
    others = _with_entropy(_others(logits, labels), entropies).exp() * (1 - right)
    probabilities = others.scatter(1, labels, right)
    above_all = others.scatter(1, labels, 2.0)
    tokens = above_all.topk(min(num_kept, logits.shape[1]), dim=-1).indices
    kept = probabilities.gather(1, tokens)
    return tokens.int(), torch.cat([kept, (1 - kept.sum(dim=-1, keepdim=True)).clamp(min=0)], dim=1)


def _others(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probabilities of all tokens but the label, among themselves, (P, V); that of the label is −inf."""
    return logits.scatter(1, labels, -math.inf).log_softmax(dim=-1)


def _with_entropy(log_probabilities: Tensor, entropies: Tensor) -> Tensor:
    """The same to a power of their own at each label, at which their entropy is the given one; unchanged at NaN.

    The entropy falls as the power rises, so that halving an interval finds it, or the end of the interval that is
    nearer. Of all tokens: where the power is below 1, the many unlikely ones have a share in it that counts.
    """
    is_asked = entropies[:, 0].isfinite()
    if not is_asked.any():
        return log_probabilities
    asked, wanted = log_probabilities[is_asked], entropies[is_asked]
    low, high = (torch.full_like(wanted, math.log(power)) for power in _POWERS)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        is_too_even = _entropy(_to_power(asked, middle.exp())) > wanted
        low, high = torch.where(is_too_even, middle, low), torch.where(is_too_even, high, middle)
    changed = log_probabilities.clone()
    changed[is_asked] = _to_power(asked, ((low + high) / 2).exp())
    return changed


def _to_power(log_probabilities: Tensor, power: Tensor) -> Tensor:
    return (log_probabilities * power).log_softmax(dim=-1)


def _entropy(log_probabilities: Tensor) -> Tensor:
    """In nats, (P, 1); what is excluded has no share."""
    probabilities = log_probabilities.exp()
    return -torch.where(probabilities > 0, probabilities * log_probabilities, 0.0).sum(dim=-1, keepdim=True)
