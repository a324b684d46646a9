"""Around a training: the device it runs on, and what is put back after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from logging import getLogger
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers.utils import logging

logger = getLogger(__name__)


def move_to_training_device(model: nn.Module) -> None:
    """Put a model where the training will run, in place: on a GPU if there is one.

    So that what is measured before is measured there too. A model that was divided between devices or processes stays
    where it is, and so does a quantised one.

    Args:
        model: A model of transformers.
    """
    if _is_movable(model):
        model.to("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def set_aside(model: nn.Module) -> Iterator[None]:
    """Keep a model off the GPU while another one is measured there: two with 8 billion weights would take 32 GB.

    Args:
        model: A model of transformers; it is moved in place, and back. One that was divided or quantised stays.
    """
    device = next((parameter.device for parameter in model.parameters()), None)
    is_moved = device is not None and _is_movable(model)
    if is_moved:
        model.to("cpu")
    try:
        yield
    finally:
        if is_moved:
            model.to(device)


def warn_of_float16(model: nn.Module) -> None:
    """Say that a training over float16 weights loses small gradients, such as those of examples known by heart.

    What is below 6e-8 is 0 in float16, and nothing scales the loss here. bfloat16 has the range of float32.

    Args:
        model: The model that is trained.
    """
    if any(parameter.dtype == torch.float16 for parameter in model.parameters()):
        logger.warning("The model is in float16, in which small gradients are lost. Load it in bfloat16 or float32.")


def _is_movable(model: nn.Module) -> bool:
    is_divided = getattr(model, "hf_device_map", None) is not None or any(
        isinstance(parameter.data, DTensor) for parameter in model.parameters()
    )
    return not is_divided and not getattr(model, "is_quantized", False)


@contextmanager
def own_forward(model: nn.Module) -> Iterator[None]:
    """Give the model its own `forward` back: accelerate replaces it under bfloat16 and leaves the replacement there."""
    names = ("forward", "_original_forward")
    own = {name: model.__dict__[name] for name in names if name in model.__dict__}
    try:
        yield
    finally:
        for name in names:
            model.__dict__.pop(name, None)
        model.__dict__.update(own)


@contextmanager
def own_verbosity() -> Iterator[None]:
    """Leave transformers as talkative as it was: its Trainer sets the level for the whole process."""
    level: Any = logging.get_verbosity()
    try:
        yield
    finally:
        logging.set_verbosity(level)
