"""Models without content: their layers on the meta device, and on fake tensors that have a shape and no values."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stable_forgetting.adapters.functional import CACHE_BLOCK_BYTES, row_blocks
from stable_forgetting.adapters.layer import BoundedLoraLinear
from stable_forgetting.adapters.linear import DEFAULT_BLOCK_BYTES
from stable_forgetting.errors import ModelError

_FLOAT = 4
"""Bytes of a number of the change, which is made in float32."""


def made_fake(skeleton: Any, *, checkpointing: bool) -> Any:
    """The skeleton with fake tensors and bounded layers that only allocate; gradients are there already."""
    model = skeleton.to_empty(device="cpu").train()
    for name, module in list(model.named_modules()):
        if isinstance(module, BoundedLoraLinear) and all(
            module.low_rank_change(adapter).bound.limit is not None for adapter in module.active_names()
        ):
            model.set_submodule(name, BoundedAllocations(module))
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    if checkpointing:
        _enable_checkpointing(model)
    return model


def _enable_checkpointing(model: Any) -> None:
    """As the trainer does, but without the state of random numbers (5 KB a block), which fake tensors do not have."""
    options = {"use_reentrant": False, "preserve_rng_state": False}
    try:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    except ValueError as error:
        raise ModelError(
            f"{type(model).__name__} cannot compute activations again in the backward pass. Leave out "
            "training.gradient_checkpointing."
        ) from error


def blocks_of(model: Any) -> nn.ModuleList:
    """The blocks of a model: its longest list of modules."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=nn.ModuleList())


def are_alike(blocks: nn.ModuleList) -> bool:
    """Whether all blocks have parameters of the same names and shapes, adapters included."""
    shapes = [{name: tuple(value.shape) for name, value in block.named_parameters()} for block in blocks]
    return all(found == shapes[0] for found in shapes)


def skeleton_of(model: Any, num_blocks: int, dtype: torch.dtype) -> Any:
    """A copy without content (on the meta device), with the first blocks only and frozen weights of the given type."""
    memo: dict[int, Any] = {id(buffer): torch.empty_like(buffer, device="meta") for buffer in model.buffers()}
    for parameter in model.parameters():
        own = parameter.dtype if parameter.requires_grad or not parameter.is_floating_point() else dtype
        empty = torch.empty_like(parameter, device="meta", dtype=own)
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    copied = copy.deepcopy(model, memo)
    del blocks_of(copied)[num_blocks:]
    return copied


class BoundedAllocations(nn.Module):
    """A bounded layer that makes the allocations of `bounded_linear`, each once and not slice by slice."""

    def __init__(self, layer: BoundedLoraLinear) -> None:
        super().__init__()
        weight, bias = layer.base_layer.weight, layer.base_layer.bias
        self.weight, self.bias = weight, bias
        if layer.transposed:
            self.weight = nn.Parameter(weight.t(), requires_grad=False)
        self.factors = nn.ParameterList([*layer.bounded_lora_A.values(), *layer.bounded_lora_B.values()])

    def forward(self, x: Tensor) -> Tensor:
        """Output of the right shape and type, ... × out."""
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else self.weight.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        output: Tensor = _Allocations.apply(x.to(dtype), self.weight, bias, *self.factors)  # type: ignore[no-untyped-call]
        return output


class _Allocations(torch.autograd.Function):
    """In low precision, adding a slice of the change to a slice of the weight takes two more slices on the CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *factors: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, *factors)
        effective = torch.empty_like(weight, dtype=x.dtype)
        slices = (1 if x.element_size() == _FLOAT else 3) * min(CACHE_BLOCK_BYTES, _FLOAT * weight.numel())
        space = torch.empty(slices, dtype=torch.uint8)
        del space
        return F.linear(x, effective, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *factors = ctx.saved_tensors
        num_rows, width = weight.shape
        row_bytes = 2 * width * x.element_size()  # of the gradient and of the effective weight
        height = next(row_blocks(num_rows, row_bytes, DEFAULT_BLOCK_BYTES - 3 * CACHE_BLOCK_BYTES)).stop
        slices = (2 if x.element_size() == _FLOAT else 4) * min(CACHE_BLOCK_BYTES, _FLOAT * height * width)
        space = torch.empty(height * row_bytes + slices, dtype=torch.uint8)
        sums_in_float = x.element_size() < _FLOAT and height < num_rows
        grad_x = torch.empty_like(x, dtype=torch.float32 if sums_in_float else x.dtype)
        block = torch.empty_like(x) if sums_in_float else None
        gradients = [torch.zeros_like(factor) for factor in factors]
        del space, block
        return grad_x.to(x.dtype), None, None, *gradients
