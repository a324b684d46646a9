"""How much memory an unlearning needs on each GPU, from the model's config and the run's settings alone.

What does not depend on the batch is counted: weights, adapter, gradients, AdamW's moments, and what sharding gathers.
What does depend on it is found by a rehearsal of one step (`runs.rehearsal`). Only the unlearning is estimated:
finetuning a base model needs gradients and moments of all its weights, and generating answers needs a cache.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import Parameter

from stable_forgetting.adapters.linear import DEFAULT_BLOCK_BYTES, GPU_BLOCK_BYTES
from stable_forgetting.config import RunConfig
from stable_forgetting.objectives import Objective
from stable_forgetting.runs.rehearsal import StepShape, rehearse
from stable_forgetting.runs.sets import Sets
from stable_forgetting.runs.skeleton import blocks_of

Sharding = Literal["none", "fsdp"]

CUDA_PART = "CUDA context, larger blocks (assumed)"
CUDA_BYTES = 768 * 2**20 + GPU_BLOCK_BYTES - DEFAULT_BLOCK_BYTES
"""What a process takes of a GPU before its first tensor: context, kernels, the workspace of cuBLAS. Assumed, not
measured; usual are 0.5 to 1 GiB, by card and driver. And the larger blocks that a bounded layer has on a GPU, at most.
A training on the CPU has no such part."""

QUANTIZED_BYTES = {"4bit": 0.5 + 1 / 64 + 4 / (64 * 256), "8bit": 1.0}
"""Per weight of a linear layer, as bitsandbytes holds it. NF4 with double quantisation: half a byte, a byte of scale
for 64 weights, a float for 256 scales. LLM.int8: a byte; its float for each row is left out."""

GATHERED_BLOCKS = 2
"""Blocks that FSDP holds whole at a time: the one that computes, and the next, whose weights are on their way."""


@dataclass(frozen=True)
class Devices:
    """The GPUs of a run.

    Args:
        num: How many, with one process each.
        sharding: none: each holds everything, and the batch is divided; fsdp: weights, adapter, gradients and moments
            are divided as well.
        memory_bytes: Memory of each; None if it is not said.
    """

    num: int = 1
    sharding: Sharding = "none"
    memory_bytes: int | None = None

    @property
    def divides_weights(self) -> bool:
        """Whether a GPU holds only its share of the weights."""
        return self.num > 1 and self.sharding == "fsdp"


@dataclass(frozen=True)
class Estimate:
    """What an unlearning needs.

    Args:
        parts: Bytes per GPU, by part.
        shape: The largest batch of one GPU.
        devices: The GPUs.
        fitting_rows: Most examples together, per GPU and in the config's proportion, that fit into
            the GPU's memory; 0 if not even the smallest batch does, None if its memory is not said.
        is_assumed: Whether the lengths are those that the config allows, because no text was read.
    """

    parts: dict[str, int]
    shape: StepShape
    devices: Devices
    fitting_rows: int | None = None
    is_assumed: bool = False

    @property
    def total(self) -> int:
        """Bytes per GPU."""
        return sum(self.parts.values())


def estimate(model: Any, sets: Sets | None, config: RunConfig, objective: Objective, devices: Devices) -> Estimate:
    """What the unlearning needs, and the largest batch that fits.

    Args:
        model: Model of transformers with the adapter attached; its layers may be on the meta device.
        sets: The example sets, for the lengths; None: every example has `data.max_length` tokens, all of them labels.
        config: The run's config.
        objective: Built from the config's section.
        devices: The GPUs. The batch sizes of a config are of all processes together, so each GPU gets its share.

    Returns:
        The estimate.

    Raises:
        ModelError: The model cannot be rehearsed without its weights.
    """
    shape = step_shape(model, sets, config, objective, devices.num)
    parts = estimate_memory(model, shape, config, objective, devices)
    found = Estimate(parts, shape, devices, is_assumed=sets is None and config.task == "language")
    if devices.memory_bytes is None:
        return found
    unit = math.gcd(shape.forget_rows, shape.retain_rows)

    def total(units: int) -> int:
        if units == unit:
            return found.total
        scaled = shape.scaled(units, unit)
        return sum(estimate_memory(model, scaled, config, objective, devices).values())

    units = _most(total, max(2, unit), devices.memory_bytes)
    return replace(found, fitting_rows=units * shape.rows // unit)


def estimate_memory(
    model: Any, shape: StepShape, config: RunConfig, objective: Objective, devices: Devices
) -> dict[str, int]:
    """Bytes of the unlearning on one GPU, by part.

    Args:
        model: Model of transformers with the adapter attached; its layers may be on the meta device.
        shape: The largest batch of one GPU.
        config: Precision, quantisation and checkpointing are read.
        objective: Built from the config's section.
        devices: The GPUs.

    Returns:
        Bytes by part.

    Raises:
        ModelError: The model cannot be rehearsed without its weights.
    """
    training = config.training
    step = rehearse(
        model,
        shape,
        objective,
        dtype=getattr(torch, config.model.dtype),
        bf16=training.bf16,
        checkpointing=training.gradient_checkpointing,
    )
    return {
        **_held(model, config, devices),
        "activations": step.activations,
        "logits and loss": step.logits,
        "temporaries at the peak": step.temporaries,
        CUDA_PART: CUDA_BYTES,
    }


def _held(model: Any, config: RunConfig, devices: Devices) -> dict[str, int]:
    """What is there during the whole training, whatever the batch."""
    shares = devices.num if devices.divides_weights else 1
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    copies = 1 + 1 + 2  # weight, gradient, and the two moments of AdamW
    if devices.num > 1 and not devices.divides_weights:
        copies += 1  # the buffers in which data-parallel training adds up gradients
    size = _frozen_size(model, config)
    parts = {
        "base weights": math.ceil(size(model.parameters()) / shares),
        "adapter, gradients and optimizer": math.ceil(trained * 4 * copies / shares),
    }
    if devices.divides_weights:
        blocks = blocks_of(model)
        largest = max((size(block.parameters()) for block in blocks), default=0)
        outside = size(model.parameters()) - size(blocks.parameters())
        parts["gathered weights"] = outside + min(GATHERED_BLOCKS, len(blocks)) * largest
    return parts


def _frozen_size(model: Any, config: RunConfig) -> Callable[[Iterable[Parameter]], int]:
    """A function that gives the bytes of the frozen ones among some parameters."""
    width: int = getattr(torch, config.model.dtype).itemsize
    per_weight: dict[int, float] = {}
    if config.model.quantization is not None:
        linear = (module for module in model.modules() if isinstance(module, nn.Linear))
        head = model.get_output_embeddings()  # stays in the model's own precision
        quantized_width = QUANTIZED_BYTES[config.model.quantization]
        per_weight = {id(layer.weight): quantized_width for layer in linear if layer is not head}

    def size(parameters: Iterable[Parameter]) -> int:
        frozen = (parameter for parameter in parameters if not parameter.requires_grad)
        return math.ceil(sum(weight.numel() * per_weight.get(id(weight), width) for weight in frozen))

    return size


def step_shape(
    model: Any, sets: Sets | None, config: RunConfig, objective: Objective, num_processes: int = 1
) -> StepShape:
    """The largest batch that one process may meet: its share of the longest examples with the most labels.

    Args:
        model: Image models without sets: its config has the size of the images.
        sets: The example sets; None: every example has `data.max_length` tokens, all of them labels.
        config: Batch sizes and lengths.
        objective: Says which sets take part.
        num_processes: Processes that share each batch.
    """
    training = config.training
    sizes = (
        training.forget_batch_size if objective.uses_forget else 0,
        (training.retain_batch_size if objective.uses_retain else 0)
        + (training.unseen_batch_size if objective.uses_unseen else 0),
    )
    if sets is not None:
        others = list(sets.retain) if objective.uses_retain else []
        if objective.uses_unseen and sets.unseen is not None:
            others += sets.unseen
        used = [(sets.forget.examples, sizes[0]), (others, sizes[1])]
        sizes = (min(sizes[0], len(sets.forget)), sizes[1])
    shares = [_share(sizes, process, num_processes) for process in range(num_processes)]
    forget_rows, retain_rows = max(shares, key=sum)
    if config.task == "image":
        size = getattr(model.config, "image_size", 224)
        height, width = (size, size) if isinstance(size, int) else size
        image = (getattr(model.config, "num_channels", 3), height, width)
        if sets is not None:
            image = tuple(sets.forget[0].pixel_values.shape)
        return StepShape(forget_rows, retain_rows, forget_rows, retain_rows, image)
    if sets is None:
        length = config.data.max_length
        return StepShape(forget_rows, retain_rows, forget_rows * (length - 1), retain_rows * (length - 1), (length,))
    length = max(len(example.input_ids) for examples, size in used if size for example in examples)
    labels = (_most_labels(sets.forget, forget_rows), _most_labels(others, retain_rows))
    return StepShape(forget_rows, retain_rows, *labels, (length,))


def _share(sizes: tuple[int, int], process: int, num_processes: int) -> tuple[int, int]:
    """Forget and other examples of one process, as `ShareOfBatches` deals them."""
    places = (process, num_processes - 1 - process)
    forget, retain = (len(range(place, size, num_processes)) for place, size in zip(places, sizes, strict=True))
    return forget, retain


def _most_labels(examples: Iterable[Any], rows: int) -> int:
    return sum(heapq.nlargest(rows, (example.num_labels for example in examples)))


def _most(total: Callable[[int], int], second: int, limit: int) -> int:
    """Largest n with total(n) <= limit, for a total that grows and never slows down; asks for few values of it.

    A peak is the largest of several sums that grow in proportion to n, so between two known points the total is never
    above the line through them, and that line is safe.
    """
    low = (1, total(1))
    if low[1] > limit:
        return 0
    high = (second, total(second))
    found = _on_line(low, high, limit)
    if found <= second:
        return found
    further = (found, total(found))
    return found if further[1] <= limit else _on_line(high, further, limit)


def _on_line(low: tuple[int, int], high: tuple[int, int], limit: int) -> int:
    """Where the line through two points meets the limit, rounded down."""
    slope = max(1, (high[1] - low[1]) / (high[0] - low[0]))
    return int(low[0] + (limit - low[1]) / slope)
