"""A linear layer with bounded adapters, as a PEFT tuner layer."""

from __future__ import annotations

import hashlib
import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from stable_forgetting.adapters.base_weight import (
    keep_quantized_layout,
    quantization_of,
    quantized_weight,
)
from stable_forgetting.adapters.bounds import Bound
from stable_forgetting.adapters.functional import LowRankChange, effective_weight, lora_linear
from stable_forgetting.adapters.layer_checks import check_loaded, check_mergeable
from stable_forgetting.adapters.linear import bounded_linear
from stable_forgetting.adapters.zero3 import register_weights, whole_shape
from stable_forgetting.errors import ModelError


@dataclass(frozen=True)
class LayerSettings:
    """What one adapter is in one layer, besides its weights.

    Attributes:
        rank: Rank of B @ A.
        bound: The bounding function.
        omega: Frequency inside the bound.
        scale: Factor outside the bound.
    """

    rank: int
    bound: Bound
    omega: float
    scale: float


def layer_shape(layer: nn.Module) -> tuple[int, int]:
    """Output and input features of a layer that `check_layer` accepts.

    Args:
        layer: The layer, without adapter. The weight of a 4-bit layer is packed and does not show its shape.

    Returns:
        out, in.
    """
    source: Any = layer
    if quantization_of(layer) is not None:
        return source.out_features, source.in_features
    rows, columns = whole_shape(source.weight)
    return (columns, rows) if isinstance(layer, Conv1D) else (rows, columns)


class BoundedLoraLinear(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A Linear or Conv1D whose weight is changed by the active bounded adapters; their changes add up.

    Merging puts a new weight, made from the untouched base weight, into the base layer and keeps the base weight;
    unmerging puts it back, bit for bit. A fresh adapter and disabled adapters give the base layer's output, bit for
    bit.

    Over a quantised layer of bitsandbytes, active adapters change the dequantised weight, and merging is refused. A
    fresh adapter then gives the product with the dequantised weight in the layer's own compute type. The layer's own
    output differs from that where bitsandbytes computes in another way: 8-bit layers round the input to 8 bits too.

    Args:
        base_layer: The layer, see `check_layer`.
    """

    adapter_layer_names = ("bounded_lora_A", "bounded_lora_B")
    other_param_names = ("bounded_lora_settings",)

    def __init__(self, base_layer: Any) -> None:
        super().__init__()
        self.base_layer: Any = base_layer
        self.bounded_lora_A = nn.ParameterDict({})
        self.bounded_lora_B = nn.ParameterDict({})
        self.bounded_lora_settings: dict[str, LayerSettings] = {}
        self.transposed = isinstance(base_layer, Conv1D)
        self.out_features, self.in_features = layer_shape(base_layer)
        keep_quantized_layout(base_layer)
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.kept_base_weight: Tensor | None = None

    def add_bounded_adapter(self, name: str, settings: LayerSettings, *, generator: torch.Generator | None) -> None:
        """Add an adapter that changes nothing yet: A as in LoRA (Kaiming uniform), B zero.

        Args:
            name: Name of the adapter.
            settings: Its rank, bound, omega and scale.
            generator: Source of random numbers on the CPU, or None for torch's own.
        """
        lora_a = torch.empty(settings.rank, self.in_features)
        nn.init.kaiming_uniform_(lora_a, a=math.sqrt(5), generator=generator)
        self.bounded_lora_settings[name] = settings
        self.bounded_lora_A[name] = nn.Parameter(lora_a)
        self.bounded_lora_B[name] = nn.Parameter(torch.zeros(self.out_features, settings.rank))
        BaseTunerLayer._move_adapter_to_device_of_base_layer(self, name)

    def active_names(self) -> list[str]:
        """Names of the active adapters that this layer has."""
        names: Any = self.active_adapters
        return [name for name in names if name in self.bounded_lora_settings]

    def low_rank_change(self, name: str) -> LowRankChange:
        """The change of one adapter.

        Args:
            name: Name of an adapter of this layer.

        Returns:
            The change with the adapter's own parameters, not copies.
        """
        settings = self.bounded_lora_settings[name]
        lora_a, lora_b = self.bounded_lora_A[name], self.bounded_lora_B[name]
        return LowRankChange(lora_a, lora_b, settings.bound, settings.omega, settings.scale)

    def get_delta_weight(self, name: str) -> Tensor:
        """Weight change of one adapter in the layout of the base weight, for PEFT's own tools.

        Args:
            name: Name of an adapter of this layer.

        Returns:
            The change, out × in, or in × out for a Conv1D.
        """
        delta: Tensor = self.low_rank_change(name).delta()
        return delta.t() if self.transposed else delta

    def get_base_weight(self) -> Tensor:
        """The base weight as a matrix of numbers.

        Returns:
            The weight itself, in its own layout; of a quantised layer the dequantised one, out × in, float32.
        """
        base = self.base_layer
        if quantization_of(base) is None:
            weight: Tensor = base.weight
            return weight
        quantized = quantized_weight(base, torch.float32)
        return quantized.read(quantized.stored)[:]

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether PEFT may turn the change into plain LoRA: no, the result would have no bound."""
        return False

    def forward(self, x: Tensor) -> Tensor:
        """Output with the active adapters.

        Args:
            x: Input, ... × in.

        Returns:
            The output, ... × out.
        """
        if self.disable_adapters and self.merged:
            self.unmerge()
        names = [] if self.disable_adapters or self.merged else self.active_names()
        changes = [self.low_rank_change(name) for name in names]
        bounded = [change for change in changes if change.bound.limit is not None]
        output = self._bounded_output(x, bounded) if bounded else self.base_layer(x)
        for change in changes:
            if change.bound.limit is None:
                check_loaded(x, change.lora_a, change.lora_b)
                output = lora_linear(output, x, change)
        return output

    def _bounded_output(self, x: Tensor, changes: list[LowRankChange]) -> Tensor:
        base = self.base_layer
        factors = [factor for change in changes for factor in (change.lora_a, change.lora_b)]
        check_loaded(x, base.weight, *factors)
        register_weights(self, base.weight, *factors)
        if quantization_of(base) is None:
            return bounded_linear(x, base.weight, base.bias, changes, transposed=self.transposed)
        weight = quantized_weight(base, x.dtype)
        bias = None if base.bias is None else base.bias.to(weight.dtype)
        return bounded_linear(x.to(weight.dtype), weight, bias, changes).to(x.dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put base weight plus changes into the base layer; the base weight is kept aside.

        Args:
            safe_merge: Whether to check first that every entry of the new weight is finite.
            adapter_names: Adapters to merge besides those merged already; None for the active ones.

        Raises:
            ModelError: If the base layer is quantised, or ``safe_merge`` finds an entry that is not finite. The layer
                is as before then.
        """
        check_mergeable("base_layer", self.base_layer)
        wanted = check_adapters_to_merge(self, adapter_names)
        names = [name for name in wanted if name in self.bounded_lora_settings]
        if not names:
            return
        all_names = [*self.merged_adapters, *names]
        plain, kept = self.base_layer.weight.data, self.kept_base_weight
        base_weight = plain if kept is None else kept.to(plain)
        changes = [self.low_rank_change(name) for name in all_names]
        merged = effective_weight(base_weight, changes, transposed=self.transposed)
        if safe_merge and not torch.isfinite(merged).all():
            raise ModelError(
                f"Merging {', '.join(names)} gives a weight with infinite or undefined entries. The adapter is broken; "
                "use an earlier checkpoint of it."
            )
        # Not on the GPU: merged adapters of all layers would hold every weight twice, 10 GB more with 8 billion.
        self.kept_base_weight = base_weight.to("cpu") if kept is None else kept
        self.merged_adapters = all_names  # before the weight: unmerging repairs what is interrupted in between
        self.base_layer.weight.data = merged

    def unmerge(self) -> None:
        """Put the kept base weight back, bit for bit."""
        if self.kept_base_weight is None:
            warnings.warn("No adapter is merged, nothing to do.", stacklevel=2)
            return
        self.base_layer.weight.data = self.kept_base_weight.to(self.base_layer.weight)
        self.kept_base_weight = None
        self.merged_adapters = []


def seeded_generator(seed: int, layer_name: str) -> torch.Generator:
    """Random numbers of one layer's start, independent of the other layers and of torch's global state.

    Args:
        seed: The seed of the whole adapter.
        layer_name: Name of the layer.

    Returns:
        A generator on the CPU.
    """
    digest = hashlib.sha256(f"{seed}:{layer_name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
