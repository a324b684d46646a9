"""The weight change of an adapted layer: the one equation, and the effective weight it gives.

Shapes: A is rank × in, B is out × rank, the base weight W is out × in (in × out if transposed).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stable_forgetting.adapters import kernels
from stable_forgetting.adapters.base_weight import WeightRows
from stable_forgetting.adapters.bounds import Bound

CACHE_BLOCK_BYTES = 2 * 2**20
"""Size of the blocks of rows in which a change is made, so that a block stays in the cache of a core."""

GPU_SLICE_BYTES = 32 * 2**20
"""The same on a GPU: a block fits into its second-level cache, and it is large enough to pay for several launches."""


def delta_weight(
    lora_a: Tensor, lora_b: Tensor, *, bound: Bound, omega: float, scale: float, out: Tensor | None = None
) -> Tensor:
    """Weight change of one layer: scale * bound(omega * (B @ A)), elementwise.

    The one definition: the forward pass, merging, the diagnostics and the tests call it, on all rows or, with rows
    of B, on a block of them. Differentiable if ``out`` is not given.

    Args:
        lora_a: A, rank × in.
        lora_b: B, out × rank, or some of its rows.
        bound: The bounding function.
        omega: Frequency inside the bound.
        scale: Factor outside the bound.
        out: Where to write, out × in.

    Returns:
        The change, out × in, in the type of A and B and in float32 at least.

    Example:
        >>> from stable_forgetting.adapters import get_bound
        >>> delta_weight(torch.ones(1, 2), torch.zeros(2, 1), bound=get_bound("sine"), omega=100.0, scale=0.1)
        tensor([[0., 0.],
                [0., 0.]])
    """
    return delta_from_argument(bound_argument(lora_a, lora_b, omega, out=out), bound=bound, scale=scale)


def delta_from_argument(argument: Tensor, *, bound: Bound, scale: float) -> Tensor:
    """Weight change for an argument that is there already: scale * bound(argument).

    Args:
        argument: Result of `bound_argument`; overwritten unless autograd follows it.
        bound: The bounding function.
        scale: Factor outside the bound.

    Returns:
        The change, in the shape of ``argument``.
    """
    if argument.requires_grad:
        return bound.function(argument) * scale
    return bound.function(argument, out=argument).mul_(scale)


def bound_argument(lora_a: Tensor, lora_b: Tensor, omega: float, *, out: Tensor | None = None) -> Tensor:
    """What goes into the bound: omega * (B @ A), never in a lower precision than float32.

    omega multiplies B before the product, which costs out × rank multiplications instead of out × in.

    Args:
        lora_a: A, rank × in.
        lora_b: B, out × rank.
        omega: Frequency inside the bound.
        out: Where to write, out × in.

    Returns:
        The argument of the bound, out × in.
    """
    dtype = change_dtype(lora_a)
    with without_autocast(lora_a.device):
        return torch.mm(lora_b.to(dtype) * omega, lora_a.to(dtype), out=out)


def change_dtype(lora_a: Tensor) -> torch.dtype:
    """Type in which a change is computed: that of the adapter, float32 at least."""
    return torch.promote_types(lora_a.dtype, torch.float32)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Context in which products keep the type of their operands."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


@dataclass(frozen=True)
class LowRankChange:
    """An adapter's change of one layer, not yet multiplied out.

    Attributes:
        lora_a: A, rank × in.
        lora_b: B, out × rank.
        bound: The bounding function.
        omega: Frequency inside the bound.
        scale: Factor outside the bound.
    """

    lora_a: Tensor
    lora_b: Tensor
    bound: Bound
    omega: float
    scale: float

    def of_rows(self, rows: slice) -> LowRankChange:
        """The change of the given rows, as one of its own."""
        return replace(self, lora_b=self.lora_b[rows])

    def delta(self, rows: slice = slice(None), *, out: Tensor | None = None) -> Tensor:
        """The change of the given rows, by `delta_weight`."""
        lora_b = self.lora_b[rows]
        return delta_weight(self.lora_a, lora_b, bound=self.bound, omega=self.omega, scale=self.scale, out=out)


def slice_bytes(device: torch.device) -> int:
    """Size of the blocks of rows in which the torch code makes a change, and a quantised weight is read."""
    return CACHE_BLOCK_BYTES if device.type == "cpu" else GPU_SLICE_BYTES


def row_blocks(num_rows: int, bytes_per_row: int, max_block_bytes: int) -> Iterator[slice]:
    """Cut rows into blocks of about equal height.

    Args:
        num_rows: Number of rows.
        bytes_per_row: What a row costs.
        max_block_bytes: What a block may cost; a block has one row at least.

    Yields:
        The blocks from first to last; the first is the highest.

    Example:
        >>> list(row_blocks(5, bytes_per_row=4, max_block_bytes=12))
        [slice(0, 3, None), slice(3, 5, None)]
    """
    most = max(1, max_block_bytes // max(1, bytes_per_row))
    num_blocks = -(-num_rows // most)
    height = -(-num_rows // max(1, num_blocks))
    for start in range(0, num_rows, max(1, height)):
        yield slice(start, min(start + height, num_rows))


@torch.no_grad()
def effective_weight(
    weight: Tensor,
    changes: Sequence[LowRankChange],
    *,
    transposed: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Base weight plus every change, W + sum of scale * bound(omega * (B @ A)), as a new tensor.

    Args:
        weight: Base weight; it stays untouched.
        changes: One change or more.
        transposed: Whether the weight is in × out, as in the Conv1D of transformers.
        dtype: Type of the result; that of ``weight`` if not given.

    Returns:
        The effective weight, in the shape of ``weight``. The sum is made in the type of the changes, float32 at
        least, and rounded once.
    """
    effective = effective_rows(weight.t() if transposed else weight, changes, dtype=dtype or weight.dtype)
    return effective.t() if transposed else effective


@torch.no_grad()
def effective_rows(weight_rows: WeightRows, changes: Sequence[LowRankChange], *, dtype: torch.dtype) -> Tensor:
    """The effective weight of a base weight that is read by rows, as a new tensor.

    Args:
        weight_rows: Base weight, out × in; `slice_bytes` of a quantised one are read at a time.
        changes: One change or more.
        dtype: Type of the result.

    Returns:
        The effective weight, out × in, in the memory layout of a base weight that is a tensor: products with the two
        then have the same bits if the change is zero.
    """
    num_rows, width = weight_rows.shape
    if isinstance(weight_rows, Tensor):
        effective = torch.empty_like(weight_rows, dtype=dtype)
    else:
        effective = changes[0].lora_b.new_empty(num_rows, width, dtype=dtype)
    if kernels.usable(effective.device, dtype, changes):
        _fill_by_kernels(weight_rows, changes, effective)
        return effective
    space: Tensor | None = None
    delta_dtype = change_dtype(changes[0].lora_a)
    for rows in row_blocks(num_rows, width * delta_dtype.itemsize, slice_bytes(effective.device)):
        if space is None:
            space = effective.new_empty(rows.stop, width, dtype=delta_dtype)
        total = changes[0].delta(rows, out=space[: rows.stop - rows.start])
        for change in changes[1:]:
            total.add_(change.delta(rows))
        torch.add(weight_rows[rows], total, out=effective[rows])
    return effective


def _fill_by_kernels(weight_rows: WeightRows, changes: Sequence[LowRankChange], effective: Tensor) -> None:
    """Slices only where something of their size is made: dequantised rows, or the sum of several changes."""
    num_rows, width = weight_rows.shape
    in_one = isinstance(weight_rows, Tensor) and len(changes) == 1
    for rows in row_blocks(num_rows, width * 4, num_rows * width * 4 if in_one else slice_bytes(effective.device)):
        kernels.add_changes(weight_rows[rows], [change.of_rows(rows) for change in changes], effective[rows])


def lora_linear(output: Tensor, x: Tensor, change: LowRankChange) -> Tensor:
    """Add an unbounded change to a layer's output by the short cut x -> A -> B of plain LoRA.

    Only for the bound ``identity``, where it equals the product with the effective weight at far less cost.

    Args:
        output: Output of the base layer, ... × out.
        x: Input of the base layer, ... × in.
        change: The change; its factor is omega * scale.

    Returns:
        ``output + omega * scale * (x @ A.T @ B.T)`` in the type of ``output``.
    """
    inner = F.linear(x.to(change.lora_a.dtype), change.lora_a) * (change.omega * change.scale)
    return output + F.linear(inner, change.lora_b).to(output.dtype)
