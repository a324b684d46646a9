"""The bounded change on a GPU: when the Triton kernels are used, and how they are launched.

Two passes over memory, `add_changes` for the forward pass and `pass_changes` for the backward pass, do what the plain
torch code in `functional` and `linear` does in many. Both compute in float32. float64, other devices and Python
environments without Triton take the torch code; the results differ by rounding only.

Every sum is made in a fixed order, without atomic additions: the same inputs give the same bits.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from stable_forgetting.adapters.functional import LowRankChange

KERNEL_BOUNDS = frozenset({"sine", "tanh", "clip", "softsign", "identity"})
KERNEL_DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})
OLDEST_CAPABILITY = (8, 0)
"""Ampere: the first cards with TF32 and bfloat16 in the tensor cores."""

TILE_ROWS = TILE_COLUMNS = 64
NUM_WARPS = 4
"""32 entries a thread: compiled for Hopper, twice as many spill registers, half as many take more instructions each."""

MOST_RANKS = 32
"""Ranks that get their gradient in one launch; twice as many would need twice the shared memory and registers."""
_OPTIONS = {
    "ROWS": TILE_ROWS,
    "COLUMNS": TILE_COLUMNS,
    "num_warps": NUM_WARPS,
    "num_stages": 2,
    "enable_fp_fusion": True,  # Triton's versions differ in their default
}

PROGRAMS, MOST_TILES = 1024, 8
"""Programs wanted in a launch, several for each unit of a card, and most tiles a program goes through for it."""


def available(device: torch.device) -> bool:
    """Whether the kernels can run: Triton is there, and the device is an NVIDIA card from Ampere on.

    With ``TRITON_INTERPRET=1`` in the environment, Triton runs kernels on the CPU, slowly: this is how they are tested
    without a card.

    Args:
        device: Where the tensors are.

    Returns:
        Whether `add_changes` and `pass_changes` work there.
    """
    if not _has_triton():
        return False
    if os.environ.get("TRITON_INTERPRET") == "1":
        return device.type in {"cpu", "cuda"}
    is_nvidia = device.type == "cuda" and torch.version.cuda is not None
    return is_nvidia and torch.cuda.get_device_capability(device) >= OLDEST_CAPABILITY


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def usable(device: torch.device, dtype: torch.dtype, changes: Sequence[LowRankChange]) -> bool:
    """Whether these changes go through the kernels.

    Args:
        device: Where the tensors are.
        dtype: Type of the effective weight.
        changes: The changes.

    Returns:
        Whether the kernels are available and know the types and the bounds. There is none for float64.
    """
    types = {dtype, *(factor.dtype for change in changes for factor in (change.lora_a, change.lora_b))}
    known = types <= KERNEL_DTYPES and {change.bound.name for change in changes} <= KERNEL_BOUNDS
    return known and available(device)


def bytes_per_row(changes: Sequence[LowRankChange], width: int, dtype: torch.dtype) -> int:
    """Temporaries of `pass_changes`, its arguments not counted, for a row of the weight.

    Args:
        changes: The changes.
        width: Entries of a row.
        dtype: Type of the effective weight.

    Returns:
        Bytes: the parts of the sums of dA and, for the sum of several changes in low precision, float32 rows.
    """
    most_ranks = min(MOST_RANKS, max(int(change.lora_a.shape[0]) for change in changes))
    needs_sum = len(changes) > 1 and dtype != torch.float32
    return -(-width * 4 * most_ranks // TILE_ROWS) + (width * 4 if needs_sum else 0)


def add_changes(base: Tensor, changes: Sequence[LowRankChange], out: Tensor) -> None:
    """Out = base + sum of scale * bound(omega * (B @ A)), in one pass over memory for each change.

    Several changes are added up in float32, in ``out`` if it has that type and else in a float32 tensor of its size;
    only the last launch rounds.

    Args:
        base: Base weight or some of its rows, out × in, with any strides.
        changes: The changes of these rows.
        out: Where to write, of the shape of ``base``, with any strides.
    """
    sources, targets = _stages(base, out, len(changes))
    for change, source, target in zip(changes, sources, targets, strict=True):
        _launch_effective(source, change, target)


def pass_changes(
    changes: Sequence[LowRankChange],
    grad: Tensor,
    base: Tensor | None,
    out: Tensor | None,
    grad_factors: Sequence[Tensor | None],
) -> None:
    """Gradients of every A and B from the gradient of the effective weight, and the effective weight on the way.

    With M = grad * bound'(omega * (B @ A)) * omega * scale, made in registers from ``grad`` and the factors: dB is
    set to M @ A.T and B.T @ M is added to dA. The effective weight comes from the same argument of the bound.

    Args:
        changes: The changes of these rows.
        grad: Gradient of these rows, rows × in, contiguous.
        base: Base weight of these rows, or None if ``out`` is None.
        out: Where to write the effective weight, contiguous, or None.
        grad_factors: Per change dA, rank × in, and the rows of dB, rows × rank, in float32; None where not needed.
    """
    sources, targets = _stages(base, out, len(changes))
    for index, (change, source, target) in enumerate(zip(changes, sources, targets, strict=True)):
        grad_a, grad_b = grad_factors[2 * index : 2 * index + 2]
        if grad_a is not None or grad_b is not None:
            _launch_backward(change, grad, source, target, grad_a, grad_b)
        elif source is not None and target is not None:
            _launch_effective(source, change, target)


def _stages(
    base: Tensor | None, out: Tensor | None, num_changes: int
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """What each launch reads and writes, so that the sum of several changes is rounded only in the last."""
    between = out
    if out is not None and num_changes > 1 and out.dtype != torch.float32:
        between = torch.empty_like(out, dtype=torch.float32)
    num_between = num_changes - 1
    return [base, *[between] * num_between], [*[between] * num_between, out]


def _on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current card, which need not be the one that has the tensors."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _launch_effective(base: Tensor | None, change: LowRankChange, out: Tensor | None) -> None:
    from stable_forgetting.adapters import kernels_triton

    assert base is not None
    assert out is not None
    a, b, rank = change.lora_a, change.lora_b, change.lora_a.shape[0]
    if out.stride(1) != 1:  # in × out: the same product with A and B in each other's place runs along the memory
        base, out, a, b = base.t(), out.t(), b.t(), a.t()
    height, width = out.shape
    grid = (-(-height // TILE_ROWS) * -(-width // TILE_COLUMNS),)
    kernel: Any = kernels_triton.effective_kernel
    with _on_device(out):
        kernel[grid](
            base, out, a, b, height, width, *base.stride(), *out.stride(), *a.stride(), *b.stride(),
            rank, float(change.omega), float(change.scale), BOUND=change.bound.name, STEPS=-(-rank // 16), **_OPTIONS,
        )  # fmt: skip


def _launch_backward(
    change: LowRankChange,
    grad: Tensor,
    base: Tensor | None,
    out: Tensor | None,
    grad_a: Tensor | None,
    grad_b: Tensor | None,
) -> None:
    """All ranks, at most `MOST_RANKS` in a launch; the first launch writes the effective weight."""
    factor = change.omega * change.scale
    rank = change.lora_a.shape[0]
    for first in range(0, rank, MOST_RANKS):
        part_a, part_b = _launch_ranks(change, grad, base, out if first == 0 else None, first)
        ranks = slice(first, first + MOST_RANKS)
        if grad_a is not None:
            grad_a[ranks].add_(part_a.sum(0), alpha=factor)
        if grad_b is not None:
            grad_b[:, ranks] = part_b.sum(0).mul_(factor)


def _launch_ranks(
    change: LowRankChange, grad: Tensor, base: Tensor | None, out: Tensor | None, first: int
) -> tuple[Tensor, Tensor]:
    """Parts of B.T @ M by tile of rows, and of M @ A.T by chunk of columns, for the ranks from ``first`` on."""
    from stable_forgetting.adapters import kernels_triton

    a, b = change.lora_a, change.lora_b
    rank, (height, width) = a.shape[0], grad.shape
    num_ranks = min(MOST_RANKS, rank - first)
    tiles_down, tiles_across = -(-height // TILE_ROWS), -(-width // TILE_COLUMNS)
    tiles_per_chunk = min(MOST_TILES, max(1, tiles_down * tiles_across // PROGRAMS))
    num_chunks = -(-tiles_across // tiles_per_chunk)
    part_a = grad.new_empty(tiles_down, num_ranks, width, dtype=torch.float32)
    part_b = grad.new_empty(num_chunks, height, num_ranks, dtype=torch.float32)
    given_base, given_out = (grad, grad) if base is None or out is None else (base, out)
    kernel: Any = kernels_triton.backward_kernel
    with _on_device(grad):
        kernel[(tiles_down * num_chunks,)](
            grad, given_base, given_out, a, b, part_a, part_b, height, width, first, num_ranks, grad.stride(0),
            *given_base.stride(), given_out.stride(0), *a.stride(), *b.stride(),
            rank, float(change.omega), float(change.scale), num_chunks, tiles_per_chunk,
            BOUND=change.bound.name, STEPS=-(-rank // 16), RANKS=16 if num_ranks <= 16 else MOST_RANKS,
            WRITE_OUT=out is not None, **_OPTIONS,
        )  # fmt: skip
    return part_a, part_b
