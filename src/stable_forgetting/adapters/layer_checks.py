"""Which layers can be adapted, and into which an adapter can be merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
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
        ModelError: If it is not a Linear or Conv1D, has another method's adapter, is parametrised, is never called but
            read, or is quantised in another way than by bitsandbytes.
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
    if isinstance(layer, NonDynamicallyQuantizableLinear):
        raise ModelError(
            f"Layer '{name}' belongs to an nn.MultiheadAttention, which reads its weight and never calls it: an "
            "adapter would do nothing before it is merged. Choose other target_modules, or name it in exclude_modules."
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


def weight_places(model: nn.Module) -> dict[int, list[str]]:
    """Names of the modules that hold each weight, by the weight's identity.

    A module that is part of one parent counts once, wherever that parent stands: what replaces it there is seen from
    all places.

    Args:
        model: The model, before anything in it is replaced.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    found: dict[int, dict[tuple[int, str], str]] = {}
    for name, module in modules.items():
        weight = module._parameters.get("weight")
        if weight is not None and name:
            parent, _, own = name.rpartition(".")
            found.setdefault(id(weight), {}).setdefault((id(modules[parent]), own), name)
    return {weight: list(names.values()) for weight, names in found.items()}


def check_not_shared(name: str, layer: nn.Module, places: Mapping[int, Sequence[str]]) -> None:
    """Refuse a layer whose weight another module has as well, as an output layer may have that of the embeddings.

    Trained, the adapter would change what the layer does; merged, the other module with it, and so another model.

    Args:
        name: Name of the layer, for the message.
        layer: The layer.
        places: What `weight_places` found in its model.

    Raises:
        ModelError: If it does.
    """
    others = [place for place in places.get(id(layer._parameters.get("weight")), ()) if place != name]
    if others:
        raise ModelError(
            f"Layer '{name}' shares its weight with '{others[0]}', which a merged adapter would change as well. Leave "
            "it out of target_modules, or load the model with weights of their own (such as tie_word_embeddings=False)."
        )


_READ_IN_MAMBA = ("x_proj", "dt_proj", "out_proj")
_MAMBA = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")


def check_called(name: str, model: nn.Module) -> None:
    """Refuse a layer of a Mamba model whose weight its kernels read: an adapter on it would do nothing on a GPU.

    Args:
        name: Name of the layer.
        model: The model that it is in.

    Raises:
        ModelError: If it is one.
    """
    family = getattr(getattr(model, "config", None), "model_type", None)
    if family in _MAMBA and name.rpartition(".")[2] in _READ_IN_MAMBA:
        raise ModelError(
            f"Layer '{name}' of a {family} model is read by its kernels and never called there, so that an adapter "
            "would do nothing before it is merged. Choose other target_modules, such as in_proj."
        )


def check_loaded(x: Tensor, *weights: Tensor) -> None:
    """Check that weights are there: offloading brings those of a module when it is called, and here they are read.

    Args:
        x: Input of the layer.
        weights: Of the adapter, and of the base layer if its own forward pass is not made.

    Raises:
        ModelError: One is on the meta device, and the input is not.
    """
    if x.device.type != "meta" and any(weight.device.type == "meta" for weight in weights):
        raise ModelError(
            "Weights of an adapted layer are offloaded, and its change is computed from all of them. Merge the adapter "
            "before the model is offloaded, or load the model in 8 or 4 bits, without offloading."
        )
