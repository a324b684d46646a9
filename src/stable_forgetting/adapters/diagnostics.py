"""What an adapter did to the weights: the certificate of the bound, and measures of the change.

Changes are made block of rows by block of rows; no temporary of the size of a layer's weight is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from operator import truediv

import torch
from torch import Tensor, nn

from stable_forgetting.adapters.functional import LowRankChange, change_dtype, row_blocks, slice_bytes
from stable_forgetting.adapters.layer import BoundedLoraLinear
from stable_forgetting.adapters.rounding import unchanged_share
from stable_forgetting.errors import ModelError

ROUNDING_TOLERANCE = 1e-5
"""Share by which a measured entry or norm may pass its limit: room for float32 rounding, no more."""

SATURATED_FROM = 0.99
"""Share of the limit from which an entry counts as saturated."""


@dataclass(frozen=True)
class LayerCertificate:
    """The change of one adapted layer next to the limit that the bound sets.

    Attributes:
        name: Name of the layer in the base model.
        adapter: Name of the adapter.
        bound: Name of the bounding function.
        rank: Rank of B @ A.
        omega: Frequency inside the bound.
        scale: Factor outside the bound.
        largest_entry: Largest absolute entry of the change.
        entry_limit: The most it can be, scale * limit of the bound; None if unbounded.
        frobenius_norm: Frobenius norm of the change.
        frobenius_limit: The most it can be, entry limit * sqrt(out * in); None if unbounded.
        holds: Whether both are within their limits, give or take `ROUNDING_TOLERANCE`. Never true of an unbounded
            adapter, which promises nothing, nor of a change with undefined entries.
        unchanged_share: Share of entries, from 0 to 1, at which the sum of weight and change rounds to the weight
            itself in the weight's own type; None of a quantised weight, or one that is divided between processes.
    """

    name: str
    adapter: str
    bound: str
    rank: int
    omega: float
    scale: float
    largest_entry: float
    entry_limit: float | None
    frobenius_norm: float
    frobenius_limit: float | None
    holds: bool
    unchanged_share: float | None


@dataclass(frozen=True)
class AdapterStatistics:
    """Size of all active changes of a model together.

    Attributes:
        frobenius_norm: Frobenius norm of all changes as one long vector.
        largest_entry: Largest absolute entry of any change.
        limit: Largest limit of any layer's entries; None if one of them is unbounded.
        largest_share: Largest absolute entry as a share of its own layer's limit, from 0 to 1; None if a layer is
            unbounded.
        saturated_share: Share of entries, from 0 to 1, at 99 % of their layer's limit or beyond; None if one of them
            is unbounded.
    """

    frobenius_norm: float
    largest_entry: float
    limit: float | None
    largest_share: float | None
    saturated_share: float | None


@dataclass(frozen=True)
class _Measured:
    largest: Tensor
    square_sum: Tensor
    num_saturated: Tensor


def certificate(model: nn.Module) -> list[LayerCertificate]:
    """Check the guarantee of the bound: no weight is changed by more than scale * limit.

    Of the adapters as trained, in float32, and of nothing that was trained besides. The sum with a bfloat16 or float16
    weight, merged or not, is rounded to the grid of that type, and may be off by half a step: so a change that is below
    half a step has no effect at all, which `unchanged_share` counts.

    Args:
        model: A model with bounded adapters.

    Returns:
        One certificate per adapted layer and active adapter, in the order of the model.

    Raises:
        ModelError: If the model has no active bounded adapter.
    """
    certificates = []
    for name, adapter, layer in _active_adapters(model):
        change = layer.low_rank_change(adapter)
        entry_limit = _entry_limit(change)
        measured = _measure(change, entry_limit)
        largest, norm = measured.largest.item(), math.sqrt(measured.square_sum.item())
        norm_limit = None if entry_limit is None else entry_limit * math.sqrt(layer.out_features * layer.in_features)
        certificates.append(
            LayerCertificate(
                name=name,
                adapter=adapter,
                bound=change.bound.name,
                rank=layer.bounded_lora_settings[adapter].rank,
                omega=change.omega,
                scale=change.scale,
                largest_entry=largest,
                entry_limit=entry_limit,
                frobenius_norm=norm,
                frobenius_limit=norm_limit,
                holds=_is_within(largest, entry_limit) and _is_within(norm, norm_limit),
                unchanged_share=unchanged_share(layer, change),
            )
        )
    return certificates


def adapter_statistics(model: nn.Module) -> AdapterStatistics:
    """Measure all active changes of a model, once per training step if wanted.

    Costs the product B @ A and the bound of every adapted layer, and one synchronisation with the device.

    Args:
        model: A model with bounded adapters.

    Returns:
        The measures.

    Raises:
        ModelError: If the model has no active bounded adapter.
    """
    changes = [layer.low_rank_change(adapter) for _, adapter, layer in _active_adapters(model)]
    limits = [_entry_limit(change) for change in changes]
    measured = [_measure(change, limit) for change, limit in zip(changes, limits, strict=True)]
    device = measured[0].largest.device
    square_sum = torch.stack([m.square_sum.to(device) for m in measured]).sum().item()
    largest = torch.stack([m.largest.to(device) for m in measured]).tolist()
    num_saturated = torch.stack([m.num_saturated.to(device) for m in measured]).sum().item()
    known = [limit for limit in limits if limit is not None]
    is_bounded = len(known) == len(limits)
    num_entries = sum(change.lora_b.shape[0] * change.lora_a.shape[1] for change in changes)
    return AdapterStatistics(
        frobenius_norm=math.sqrt(square_sum),
        largest_entry=max(largest),
        limit=max(known) if is_bounded else None,
        largest_share=max(map(truediv, largest, known)) if is_bounded else None,
        saturated_share=num_saturated / num_entries if is_bounded else None,
    )


def effective_rank(delta: Tensor) -> float:
    """Effective rank: exp of the entropy of the singular values, taken as shares of their sum.

    Source: Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007. From 1, all
    in one direction, to the smaller side of the matrix, all directions alike; 0 for a matrix of zeros.

    Args:
        delta: A matrix. Its singular values are computed, in float32 at least.

    Returns:
        The effective rank.

    Example:
        >>> round(effective_rank(torch.eye(3)), 4)
        3.0
    """
    values = torch.linalg.svdvals(delta.detach().to(torch.promote_types(delta.dtype, torch.float32)))
    total = values.sum()
    if total == 0:
        return 0.0
    shares = values / total
    return float(torch.special.entr(shares).sum().exp())


def _active_adapters(model: nn.Module) -> Iterator[tuple[str, str, BoundedLoraLinear]]:
    """Name of the layer, name of the adapter and the layer, for every active adapter."""
    found = False
    for name, module in model.named_modules():
        if isinstance(module, BoundedLoraLinear):
            for adapter in module.active_names():
                found = True
                yield name.removeprefix("base_model.model."), adapter, module
    if not found:
        raise ModelError(
            "The model has no active bounded adapter. Attach one with get_peft_model(model, BoundedLoraConfig(...)), "
            "or choose one with set_adapter."
        )


def _entry_limit(change: LowRankChange) -> float | None:
    return None if change.bound.limit is None else change.scale * change.bound.limit


def _is_within(value: float, limit: float | None) -> bool:
    return limit is not None and value <= limit * (1 + ROUNDING_TOLERANCE)


@torch.no_grad()
def _measure(change: LowRankChange, entry_limit: float | None) -> _Measured:
    """Largest entry, sum of squares and number of saturated entries of one change."""
    lora_b = change.lora_b
    largest = lora_b.new_zeros((), dtype=torch.float64)
    square_sum, num_saturated = torch.zeros_like(largest), torch.zeros_like(largest)
    bytes_per_row = change.lora_a.shape[1] * change_dtype(change.lora_a).itemsize
    for rows in row_blocks(lora_b.shape[0], bytes_per_row, slice_bytes(lora_b.device)):
        sizes = change.delta(rows).abs_()
        largest = torch.maximum(largest, sizes.max().double())
        square_sum += torch.linalg.vector_norm(sizes).double().square()
        if entry_limit is not None:
            num_saturated += torch.count_nonzero(sizes >= SATURATED_FROM * entry_limit)
    return _Measured(largest, square_sum, num_saturated)
