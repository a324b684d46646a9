"""Gradient norm of each example: what the membership attack of that name compares."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stable_forgetting.data.examples import ExampleSet
from stable_forgetting.evaluation.likelihood import Floats, Progress, without_dropout
from stable_forgetting.models.tasks import Task


def gradient_norms(
    model: nn.Module, task: Task, example_set: ExampleSet[Any], *, progress: Progress | None = None
) -> Floats:
    """2-norm of the gradient of each example's mean NLL over all weights that the model computes with, (N,).

    Frozen weights count too; weights that the output does not depend on, such as those of merged adapters, count 0.
    One backward pass per example: the norm of a batch's gradient is not made of those of its examples.

    Args:
        model: The model; adapters must be merged, since the gradient of a base weight under an adapter is not computed.
        task: Its task.
        example_set: N examples.
        progress: Told after each example.
    """
    norms = []
    task = task.with_trunk(None)  # weights of frozen blocks count as well
    with without_dropout(model) as device, _all_trainable(model) as weights:
        for example in example_set:
            batch = {name: tensor.to(device) for name, tensor in task.collate([example]).items()}
            gradients = torch.autograd.grad(task.predict(model, batch).nll_mean[0], weights, allow_unused=True)
            squares = [gradient.float().square().sum() for gradient in gradients if gradient is not None]
            norms.append(float(torch.stack(squares).sum(dtype=torch.float64).sqrt()))
            if progress is not None:
                progress(len(norms), len(example_set))
    return np.array(norms)


@contextmanager
def _all_trainable(model: nn.Module) -> Iterator[list[Tensor]]:
    """All weights of a floating type, with gradients for a while."""
    weights = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    frozen = [weight for weight in weights if not weight.requires_grad]
    for weight in frozen:
        weight.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield list(weights)
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
