"""Which layers can be adapted, and into which an adapter can be merged."""

from __future__ import annotations

from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from stable_forgetting.adapters.base_weight import check_quantized, quantization_of
from stable_forgetting.errors import ModelError

_PLAIN_IN_EFFECT = ("transformers.models.falcon.modeling_falcon.FalconLinear",)
"""Layers whose forward pass is written in another way than Linear's and gives the same."""


def check_layer(name: str, layer: nn.Module) -> None:
    """Refuse a layer that a bounded adapter cannot be attached to.

    Args:
        name: Name of the layer, for the message.
        layer: The layer.

    Raises:
        ModelError: If it is not a Linear or Conv1D, has another method's adapter, is parametrised, or is quantised in
            another way than by bitsandbytes.
    """
    kind = type(layer).__name__
    if isinstance(layer, BaseTunerLayer):
        raise ModelError(f"Layer '{name}' has an adapter of another method ({kind}). Merge or unload it first.")
    if not isinstance(layer, (nn.Linear, Conv1D)):
        raise ModelError(
            f"Layer '{name}' is a {kind}, only Linear and Conv1D can be adapted. Choose other target_modules, or name "
            "it in exclude_modules."
        )
    if quantization_of(layer) is not None:
        check_quantized(name, layer)
        return
    if not layer.weight.is_floating_point():
        raise ModelError(
            f"Layer '{name}' is a {kind} with weights of type {layer.weight.dtype}: a quantised layer, which has no "
            "plain weight to change. Load the model in float32, bfloat16 or float16, or in 4 or 8 bits by bitsandbytes."
        )
    is_plain = type(layer).forward in (nn.Linear.forward, Conv1D.forward)
    if not is_plain and f"{type(layer).__module__}.{kind}" not in _PLAIN_IN_EFFECT:
        raise ModelError(
            f"Layer '{name}' is a {kind}, which has a forward pass of its own, so that it is not known what a change "
            "of its weight does. Choose other target_modules, or name it in exclude_modules."
        )
    if parametrize.is_parametrized(layer):
        raise ModelError(f"Layer '{name}' has a parametrised weight. Remove the parametrisation before adapting it.")


def check_mergeable(name: str, layer: nn.Module) -> None:
    """Refuse to merge into a layer that is quantised or divided between processes.

    Args:
        name: Name of the layer, for the message.
        layer: The base layer.

    Raises:
        ModelError: If it is.
    """
    if isinstance(layer.weight, DTensor):
        raise ModelError(
            f"Layer '{name}' is divided between processes, and no adapter is merged into shares of a weight. Load base "
            "model and adapter in a single process, and merge there."
        )
    quantization = quantization_of(layer)
    if quantization is not None:
        raise ModelError(
            f"Layer '{name}' has {quantization} weights, into which no adapter is merged: rounding the sum to their "
            "grid would lose most of a small change. Load the base model without quantisation, load the same adapter "
            "there, and merge that."
        )


def check_not_tied(name: str, layer: nn.Module, model: Any) -> None:
    """Refuse an output layer that shares its weight with the input embeddings.

    Trained, the adapter would change what the layer does; merged, the embeddings with it, and so another model.

    Args:
        name: Name of the layer, for the message.
        layer: The layer.
        model: The model that it is in.

    Raises:
        ModelError: If it does.
    """
    embeddings = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    if embeddings is not None and getattr(layer, "weight", None) is getattr(embeddings, "weight", layer):
        raise ModelError(
            f"Layer '{name}' shares its weight with the input embeddings (tie_word_embeddings), which a merged adapter "
            "would change as well. Leave it out of target_modules."
        )
