"""Weights that DeepSpeed ZeRO-3 divides between processes. Written from its documentation; not tested with it."""

from __future__ import annotations

from typing import Any

from torch import Size, Tensor, nn
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled


def register_weights(layer: nn.Module, *weights: Tensor) -> None:
    """Tell ZeRO-3 which weights a layer reads besides its own; without ZeRO-3 this does nothing.

    ZeRO-3 gathers the weights of a module before that module's own passes. An adapted layer reads its base layer's
    weight and its factors itself, and never calls the modules that hold them; registered weights are gathered for the
    layer's own forward and backward pass instead.

    Args:
        layer: The layer whose forward pass reads the weights.
        weights: The weights. Those that are not divided are left alone.
    """
    if not is_deepspeed_zero3_enabled():
        return
    import deepspeed  # type: ignore[import-not-found]

    for weight in weights:
        if hasattr(weight, "ds_id"):
            deepspeed.zero.register_external_parameter(layer, weight)


def whole_shape(weight: Any) -> Size:
    """Shape of a weight; ZeRO-3 keeps it aside and shows that of an empty tensor."""
    shape: Size = getattr(weight, "ds_shape", weight.shape)
    return shape
