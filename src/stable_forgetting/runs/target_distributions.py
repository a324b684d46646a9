"""Targets of `calibrated_distribution`: how likely every token is to be at each label of the forget set.

The label gets its target, as in `calibrated_labels`. What that leaves goes to all other tokens in the proportions that
the base model gives them: what it would say if not this. So a model that forgets a name still expects a name there.

P = labels of the forget set, V = tokens or classes, K = those of them that are kept one by one at each label.
"""

from __future__ import annotations

import math
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


def target_distributions(
    targets: Floats, *, model: nn.Module, task: Task, forget: ExampleSet[Any], batch_size: int, progress: Progress
) -> dict[str, RaggedRows]:
    """What the forget term takes: a row for each example.

    Args:
        targets: (P,), NLL that each label of the forget set is to get, example after example, in nats.
        model: The base model.
        task: Its task.
        forget: The forget set.
        batch_size: Examples per forward pass.
        progress: Where a bar is shown.

    Returns:
        ``target_tokens``, (N, labels of the example, K), int32: the label and the tokens that are likeliest beside it;
        ``target_probabilities``, (N, labels of the example, K + 1): of each of them and, last, of all others together.
    """
    of_example = np.split(targets, np.cumsum([example.num_labels for example in forget])[:-1])
    found: dict[int, tuple[Tensor, Tensor]] = {}
    bar = progress.track("base model: target distributions", len(forget), unit_of(task))
    with inference(model) as device, bar as advance:
        for numbers, predictions in plain_batches(model, task, forget.examples, batch_size, device):
            own = np.concatenate([of_example[number] for number in numbers])
            wanted = torch.tensor(own, dtype=torch.float32, device=device)
            parts = [
                _groups(
                    predictions.logits_of(chunk.to(device)).float(),
                    predictions.labels[chunk, None],
                    wanted[chunk, None],
                )
                for chunk in torch.split(torch.arange(len(wanted)), POSITIONS_AT_ONCE)
            ]
            counts = predictions.num_labels.tolist()
            rows = [torch.split(torch.cat(values).cpu(), counts) for values in zip(*parts, strict=True)]
            found |= dict(zip(numbers, zip(*rows, strict=True), strict=True))
            advance(len(numbers))
    tokens, probabilities = zip(*(found[number] for number in range(len(forget))), strict=True)
    lengths = torch.tensor([len(row) for row in tokens])
    return {
        "target_tokens": RaggedRows(torch.cat(tokens), lengths),
        "target_probabilities": RaggedRows(torch.cat(probabilities), lengths),
    }


def _groups(logits: Tensor, labels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens that are kept one by one, and the probabilities of each and of all others; (P, V), (P, 1), (P, 1)."""
    right = (-targets).exp()
    others = logits.scatter(1, labels, -math.inf).softmax(dim=-1) * (1 - right)
    probabilities = others.scatter(1, labels, right)
    above_all = others.scatter(1, labels, 2.0)
    tokens = above_all.topk(min(NUM_KEPT, logits.shape[1]), dim=-1).indices
    kept = probabilities.gather(1, tokens)
    return tokens.int(), torch.cat([kept, (1 - kept.sum(dim=-1, keepdim=True)).clamp(min=0)], dim=1)
