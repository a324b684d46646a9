"""Around a training: the device it runs on, and what is put back after it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from logging import getLogger
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
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


def warn_of_few_batches(num_batches: int, gradient_accumulation: int) -> None:
    """Say that an update takes fewer forward passes than it should: it does not go beyond an epoch.

    Args:
        num_batches: In an epoch.
        gradient_accumulation: Forward passes of an update as set.
    """
    if num_batches < gradient_accumulation:
        logger.warning(
            "An update takes %d forward passes and not training.gradient_accumulation = %d: it does not go beyond an "
            "epoch of the forget set, which has no more batches. Raise training.retain_batch_size for more retain "
            "examples in an update, or lower training.forget_batch_size.",
            num_batches,
            gradient_accumulation,
        )


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
def as_it_was(model: nn.Module) -> Iterator[None]:
    """Put back what transformers' Trainer leaves changed, also after an error: the model may be used on.

    That is its `forward`, which accelerate replaces under bfloat16; the modes of its modules, `config.use_cache` and
    activation checkpointing; and the random states of Python, NumPy and torch, which the Trainer seeds.

    Args:
        model: The model, with or without an adapter.
    """
    with ExitStack() as stack:
        for part in (_own_forward(model), _own_modes(model), _own_use_of_cache(model), _own_checkpointing(model)):
            stack.enter_context(part)
        stack.enter_context(_own_random_states())
        yield


@contextmanager
def _own_forward(model: nn.Module) -> Iterator[None]:
    names = ("forward", "_original_forward")
    own = {name: model.__dict__[name] for name in names if name in model.__dict__}
    try:
        yield
    finally:
        for name in names:
            model.__dict__.pop(name, None)
        model.__dict__.update(own)


@contextmanager
def _own_modes(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _own_use_of_cache(model: nn.Module) -> Iterator[None]:
    config: Any = getattr(model, "config", None)
    own = getattr(config, "use_cache", None)
    try:
        yield
    finally:
        if own is not None:
            config.use_cache = own


@contextmanager
def _own_checkpointing(model: nn.Module) -> Iterator[None]:
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(base, PreTrainedModel):
        yield
        return
    is_on, has_hooks = base.is_activation_checkpointing, bool(getattr(base, "_require_grads_hooks", None))
    try:
        yield
    finally:
        if base.is_activation_checkpointing and not is_on:
            base.activation_checkpointing_disable()
        if not has_hooks:
            base.disable_input_require_grads()


@contextmanager
def _own_random_states() -> Iterator[None]:
    states = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


@contextmanager
def own_verbosity() -> Iterator[None]:
    """Leave transformers as talkative as it was: its Trainer sets the level for the whole process."""
    level: Any = logging.get_verbosity()
    try:
        yield
    finally:
        logging.set_verbosity(level)
