"""A linear layer with a bounded change, forward and backward, that keeps nothing dense between the passes.

Shapes: x is tokens × in, dy tokens × out, W and its change D out × in, A rank × in, B out × rank.

The bound is elementwise, so the whole product B @ A is needed in every pass; the short cut x -> A -> B of plain
LoRA is not available. What can be avoided is keeping it: the backward pass makes it again, in blocks of rows. What
cannot be avoided is dy.T @ x, the gradient of the change, so the floor is three products of the layer's size where
plain LoRA has two:

    y  = x @ (W + D).T                  D = scale * bound(omega * B @ A)
    dx = dy @ (W + D)
    M  = (dy.T @ x) * bound'(omega * B @ A) * omega * scale
    dB = M @ A.T        dA = B.T @ M
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from stable_forgetting.adapters import kernels
from stable_forgetting.adapters.base_weight import QuantizedWeight, WeightRows
from stable_forgetting.adapters.functional import (
    LowRankChange,
    bound_argument,
    change_dtype,
    delta_from_argument,
    effective_rows,
    row_blocks,
    slice_bytes,
    without_autocast,
)
from stable_forgetting.errors import ConfigError

DEFAULT_BLOCK_BYTES = 32 * 2**20
"""Most bytes of dense temporaries in a backward pass."""

GPU_BLOCK_BYTES = 256 * 2**20
"""The same on a GPU. One block then holds an MLP layer of a model with 8 billion weights (4096 × 14336, bfloat16, rank
8: 252 MiB): a product with a whole layer fills the card, and dx needs no float32 sum over blocks."""


def bounded_linear(
    x: Tensor,
    weight: Tensor | QuantizedWeight,
    bias: Tensor | None,
    changes: Sequence[LowRankChange],
    *,
    transposed: bool = False,
    max_block_bytes: int | None = None,
) -> Tensor:
    """Output of a linear layer with changed weight: x @ (W + sum of changes).T + bias.

    One product forward, nothing dense kept. Between the passes it holds x, W, A and B; the forward pass needs one
    effective weight while it runs, the backward pass ``max_block_bytes``. The block size changes gradients by
    rounding only, as the sum over rows is made in another order. Gradients flow to x, A and B, and to W and the bias
    if they require them; there is no second derivative. Under autocast the product is made in the type of autocast,
    as by ``F.linear``, and float32 adapters get float32 gradients. ``torch.compile`` breaks the graph here.

    A quantised weight is read in the same blocks of rows, dequantised to float32; its codes are what is held, and they
    get no gradient.

    Args:
        x: Input, ... × in.
        weight: Base weight, out × in, or in × out if ``transposed``; or a quantised one, see `quantized_weight`.
        bias: Bias of length out, or None.
        changes: The changes of one or several adapters; their sum is applied.
        transposed: Whether the weight is a tensor in × out, as in the Conv1D of transformers.
        max_block_bytes: Most bytes of dense temporaries in the backward pass, unless a single row needs more; 32 MiB
            if not given, 256 MiB on a GPU.

    Returns:
        The output, ... × out.

    Raises:
        ConfigError: If ``changes`` is empty or ``max_block_bytes`` is below 1.
    """
    if not changes:
        raise ConfigError("No change was given, at least one is needed. For the base layer alone use F.linear.")
    if max_block_bytes is None:
        max_block_bytes = DEFAULT_BLOCK_BYTES if x.device.type == "cpu" else GPU_BLOCK_BYTES
    if max_block_bytes < 1:
        raise ConfigError(f"max_block_bytes is {max_block_bytes}, at least 1 is allowed. Leave it out for the default.")
    stored, read = (weight.stored, weight.read) if isinstance(weight, QuantizedWeight) else (weight, None)
    dtype = weight.dtype
    if _autocasts(x) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        x, bias = x.to(dtype), None if bias is None else bias.to(dtype)
    settings = tuple((change.bound, change.omega, change.scale) for change in changes)
    plan = _Plan(settings, dtype, transposed, max_block_bytes, read)
    factors = [factor for change in changes for factor in (change.lora_a, change.lora_b)]
    return _apply_uncompiled(x, stored, bias, plan, *factors)


def _autocasts(x: Tensor) -> bool:
    device = x.device.type
    available = torch.amp.is_autocast_available(device)
    return available and torch.is_autocast_enabled(device) and x.dtype != torch.float64


@dataclass(frozen=True)
class _Plan:
    """What the two passes must know besides tensors."""

    settings: tuple[tuple[Any, float, float], ...]
    dtype: torch.dtype
    transposed: bool
    max_block_bytes: int
    read: Callable[[Tensor], WeightRows] | None

    def changes(self, factors: Sequence[Tensor]) -> list[LowRankChange]:
        pairs = zip(factors[0::2], factors[1::2], strict=True)
        return [LowRankChange(a, b, *setting) for (a, b), setting in zip(pairs, self.settings, strict=True)]

    def rows_of(self, weight: Tensor) -> WeightRows:
        """The base weight as out × in."""
        return self.turned(weight) if self.read is None else self.read(weight)

    def turned(self, weight: Tensor) -> Tensor:
        """View of a plain weight, or of its gradient, as out × in."""
        return weight.t() if self.transposed else weight


@dataclass(frozen=True)
class _Needs:
    """Which gradients are asked for."""

    x: bool
    weight: bool
    bias: bool
    factors: tuple[bool, ...]

    @property
    def change(self) -> bool:
        """Whether dy.T @ x is needed, the gradient of the effective weight."""
        return self.weight or any(self.factors)


class _BoundedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, plan: _Plan, *factors: Tensor) -> Tensor:
        needs_x, needs_weight, needs_bias, _, *needs_factors = ctx.needs_input_grad
        ctx.plan, ctx.needs = plan, _Needs(needs_x, needs_weight, needs_bias, tuple(needs_factors))
        ctx.save_for_backward(x if ctx.needs.change else None, weight, *factors)
        with without_autocast(x.device):
            effective = effective_rows(plan.rows_of(weight), plan.changes(factors), dtype=plan.dtype)
            return F.linear(x, effective, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *factors = ctx.saved_tensors
        dy = grad_output.reshape(-1, grad_output.shape[-1])
        blockwise = _BlockwiseBackward(dy, x, weight, ctx.plan, ctx.needs, factors)
        with without_autocast(dy.device):
            blockwise.run()
            grad_bias = dy.sum(0) if ctx.needs.bias else None
        grad_x = blockwise.grad_x
        if grad_x is not None:
            grad_x = grad_x.to(grad_output.dtype).view(*grad_output.shape[:-1], grad_x.shape[-1])  # there may be no row
        return grad_x, blockwise.grad_weight, grad_bias, None, *blockwise.results()


_apply_uncompiled: Callable[..., Tensor] = torch.compiler.disable(_BoundedLinear.apply)  # type: ignore[no-untyped-call]


class _BlockwiseBackward:
    """The backward pass, block of rows by block of rows.

    Holds the gradients, which grow block by block, and the dense temporaries, which all blocks share.
    """

    def __init__(
        self, dy: Tensor, x: Tensor | None, weight: Tensor, plan: _Plan, needs: _Needs, factors: Sequence[Tensor]
    ) -> None:
        self.dy, self.x = dy, None if x is None else x.reshape(-1, x.shape[-1])
        self.weight_rows = plan.rows_of(weight)
        self.plan, self.needs = plan, needs
        self.changes = plan.changes(factors)
        self.by_kernels = kernels.usable(dy.device, plan.dtype, self.changes)
        self.grad_weight = torch.empty_like(weight) if needs.weight else None
        self.grad_factors = [
            torch.zeros_like(factor, dtype=change_dtype(factor)) if needed else None
            for factor, needed in zip(factors, needs.factors, strict=True)
        ]
        self._allocate(change_dtype(factors[0]))

    def _allocate(self, dtype: torch.dtype) -> None:
        """Set up the temporaries of one block and the sum of dx.

        Products are fastest on high blocks, elementwise work on blocks that stay in the cache. So a block has two
        dense temporaries, the gradient and the effective weight, and its changes are made in slices of it.
        """
        num_rows, width = self.weight_rows.shape
        plan, is_quantized = self.plan, self.plan.read is not None
        most = min(slice_bytes(self.dy.device), plan.max_block_bytes // 8)
        num_slices = (0 if self.by_kernels else 3) + is_quantized  # dequantised rows are one more
        itemsize = plan.dtype.itemsize
        bytes_per_row = (self.needs.change + self.needs.x) * width * itemsize
        if self.by_kernels:
            bytes_per_row += kernels.bytes_per_row(self.changes, width, plan.dtype)
        self.blocks = list(row_blocks(num_rows, bytes_per_row, plan.max_block_bytes - num_slices * most))
        height = self.blocks[0].stop if self.blocks else 0
        slices_matter = is_quantized or not self.by_kernels
        self.slices = list(row_blocks(height, width * dtype.itemsize, most)) if slices_matter else [slice(0, height)]
        slice_height = self.slices[0].stop if self.slices and not self.by_kernels else 0
        self.space = self.dy.new_empty(3 if len(self.changes) > 1 else 2, slice_height, width, dtype=dtype)
        self.grad_space = self.dy.new_empty(height if self.needs.change else 0, width)
        self.effective_space = self.dy.new_empty(height if self.needs.x else 0, width)
        sums_in_low_precision = itemsize < 4 and len(self.blocks) > 1
        sum_dtype = torch.float32 if sums_in_low_precision else self.plan.dtype
        self.grad_x = self.dy.new_empty(self.dy.shape[0], width, dtype=sum_dtype) if self.needs.x else None

    def run(self) -> None:
        """Go through the blocks and add what each gives to the gradients."""
        for rows in self.blocks:
            height = rows.stop - rows.start
            grad_rows, effective = self.grad_space[:height], self.effective_space[:height]
            if self.x is not None:
                torch.mm(self.dy[:, rows].t(), self.x, out=grad_rows)
            if self.grad_weight is not None:
                self.plan.turned(self.grad_weight)[rows] = grad_rows
            for inner in self.slices:
                if inner.start < height:
                    stop = min(inner.stop, height)
                    part = slice(rows.start + inner.start, rows.start + stop)
                    self._pass_changes(part, grad_rows[inner.start : stop], effective[inner.start : stop])
            if self.grad_x is not None:
                self._add_grad_x(self.grad_x, effective, rows)

    def _pass_changes(self, rows: slice, grad_rows: Tensor, effective: Tensor) -> None:
        """For a slice of rows, add to the gradients of every A and B and write the effective weight."""
        if self.by_kernels:
            self._pass_by_kernels(rows, grad_rows, effective)
            return
        space = self.space[:, : rows.stop - rows.start]
        for index, change in enumerate(self.changes):
            argument_space = space[0 if index == 0 else 2]
            argument = bound_argument(change.lora_a, change.lora_b[rows], change.omega, out=argument_space)
            grad_a, grad_b = self.grad_factors[2 * index : 2 * index + 2]
            if grad_a is not None or grad_b is not None:
                slope = change.bound.derivative(argument, out=space[1])
                _add_grad_factors(change, slope.mul_(grad_rows), rows, grad_a, grad_b)
            if self.needs.x:
                delta = delta_from_argument(argument, bound=change.bound, scale=change.scale)
                if index > 0:
                    space[0].add_(delta)
        if self.needs.x:
            torch.add(self.weight_rows[rows], space[0], out=effective)

    def _pass_by_kernels(self, rows: slice, grad_rows: Tensor, effective: Tensor) -> None:
        """The same in one pass over memory."""
        grad_factors = [
            gradient if gradient is None or index % 2 == 0 else gradient[rows]
            for index, gradient in enumerate(self.grad_factors)
        ]
        base, out = (self.weight_rows[rows], effective) if self.needs.x else (None, None)
        kernels.pass_changes([change.of_rows(rows) for change in self.changes], grad_rows, base, out, grad_factors)

    def _add_grad_x(self, grad_x: Tensor, effective: Tensor, rows: slice) -> None:
        """Dx += dy[:, rows] @ (W + D)[rows]; the sum over blocks is never made in low precision."""
        dy = self.dy[:, rows]
        is_first = rows.start == 0
        if grad_x.dtype == dy.dtype:
            grad_x.addmm_(dy, effective, beta=0 if is_first else 1)
        elif is_first:
            grad_x.copy_(dy @ effective)
        else:
            grad_x.add_(dy @ effective)

    def results(self) -> tuple[Tensor | None, ...]:
        """Gradients of A and B of every change, in their own types."""
        factors = [factor for change in self.changes for factor in (change.lora_a, change.lora_b)]
        return tuple(
            None if gradient is None else gradient.to(factor.dtype)
            for gradient, factor in zip(self.grad_factors, factors, strict=True)
        )


def _add_grad_factors(
    change: LowRankChange, inner: Tensor, rows: slice, grad_a: Tensor | None, grad_b: Tensor | None
) -> None:
    """dB[rows] = M @ A.T and dA += B[rows].T @ M, M = omega * scale * inner."""
    factor = change.omega * change.scale
    if grad_b is not None:
        torch.mm(inner, change.lora_a.to(inner.dtype).t(), out=grad_b[rows]).mul_(factor)
    if grad_a is not None:
        grad_a.addmm_(change.lora_b[rows].to(inner.dtype).t(), inner, alpha=factor)
