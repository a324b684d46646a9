"""A change of a weight against the grid of the type that the weight is kept in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from stable_forgetting.adapters.functional import LowRankChange, change_dtype, row_blocks, slice_bytes
from stable_forgetting.adapters.layer import BoundedLoraLinear
from stable_forgetting.errors import ConfigError


@dataclass(frozen=True)
class RoundingSteps:
    """Size of a change against the grid that a quantised weight is rounded to.

    Attributes:
        bits: Width of the whole numbers.
        root_mean_square: Root mean square of change / step.
        largest: Largest absolute change / step.
        share_above_half: Share of entries, from 0 to 1, that change by half a step or more. An entry below that
            mostly rounds to the value it had without the change, so near 0 the change is likely to be lost.
    """

    bits: int
    root_mean_square: float
    largest: float
    share_above_half: float


@torch.no_grad()
def unchanged_share(layer: BoundedLoraLinear, change: LowRankChange) -> float | None:
    """Share of entries at which base weight plus change rounds to the base weight: changes without any effect.

    Args:
        layer: The adapted layer.
        change: One of its changes.

    Returns:
        From 0 to 1, 1 for a fresh adapter; None if the weight is quantised or not whole in this process.
    """
    base: Tensor = layer.base_layer.weight if layer.kept_base_weight is None else layer.kept_base_weight
    weight = base.t() if layer.transposed else base
    is_whole = weight.shape == (layer.out_features, layer.in_features) and not isinstance(base.data, DTensor)
    if not is_whole or not weight.is_floating_point():
        return None
    unchanged = torch.zeros((), dtype=torch.int64, device=change.lora_b.device)
    bytes_per_row = layer.in_features * change_dtype(change.lora_a).itemsize
    for rows in row_blocks(layer.out_features, bytes_per_row, slice_bytes(change.lora_b.device)):
        part = weight[rows].to(change.lora_b.device)
        unchanged += torch.count_nonzero((part + change.delta(rows)).to(part.dtype) == part)
    return unchanged.item() / weight.numel()


def rounding_steps(weight: Tensor, delta: Tensor, *, bits: int) -> RoundingSteps:
    """Compare a change with the rounding step of the base weight, symmetric and per row.

    The step of row i is ``max_j |W_ij| / (2**(bits - 1) - 1)``. Rows of zeros have no step and are left out.

    Args:
        weight: Base weight, out × in.
        delta: Its change, out × in.
        bits: Width of the whole numbers, 8 or 4 as a rule; 2 at least.

    Returns:
        The comparison.

    Raises:
        ConfigError: If ``bits`` is below 2, the shapes differ, the weight is one of codes or every row is zero.

    Example:
        >>> rounding_steps(torch.tensor([[7.0, 0.0]]), torch.tensor([[0.25, 1.0]]), bits=4)
        RoundingSteps(bits=4, root_mean_square=0.7288689868556626, largest=1.0, share_above_half=0.5)
    """
    if bits < 2:
        raise ConfigError(f"bits is {bits}, at least 2 is needed. Usual are 8 and 4.")
    if not weight.is_floating_point():
        raise ConfigError(
            f"The weight is of type {weight.dtype}: the codes of a quantised layer. Give get_base_weight() of the "
            "adapted layer, which dequantises them."
        )
    if weight.shape != delta.shape:
        raise ConfigError(
            f"The weight has shape {tuple(weight.shape)}, its change {tuple(delta.shape)}. Both must be out × in; "
            "transpose those of a Conv1D."
        )
    steps = weight.detach().double().abs().amax(dim=1) / (2 ** (bits - 1) - 1)
    rows = steps > 0
    if not rows.any():
        raise ConfigError("Every row of the weight is zero, so that there is no rounding step. Give the base weight.")
    ratio = delta.detach().double()[rows].abs() / steps[rows, None]
    return RoundingSteps(
        bits=bits,
        root_mean_square=ratio.square().mean().sqrt().item(),
        largest=ratio.max().item(),
        share_above_half=(ratio >= 0.5).double().mean().item(),
    )
