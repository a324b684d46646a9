"""Which linear layers are the MLP and the attention of a model: tables by family, and lists for error messages."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from stable_forgetting.errors import ConfigError, ModelError, unknown_name

_GATED = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_TWO_LAYERS = ("mlp.fc1", "mlp.fc2")
_FOUR_H = ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
_GPT = ("mlp.c_fc", "mlp.c_proj")
_BERT = ("intermediate.dense", "output.dense")
_DINO = (*_TWO_LAYERS, "mlp.weights_in", "mlp.weights_out")

MLP_LAYERS: dict[str, tuple[str, ...]] = {
    "llama": _GATED,
    "mistral": _GATED,
    "qwen2": _GATED,
    "qwen3": _GATED,
    "gemma": _GATED,
    "gemma2": _GATED,
    "gemma3": _GATED,
    "gemma3_text": _GATED,
    "smollm3": _GATED,
    "olmo2": _GATED,
    "phi": _TWO_LAYERS,
    "phi3": ("mlp.gate_up_proj", "mlp.down_proj"),
    "gpt2": _GPT,
    "gpt_neo": _GPT,
    "gpt_neox": _FOUR_H,
    "bloom": _FOUR_H,
    "falcon": _FOUR_H,
    "opt": ("fc1", "fc2"),
    "mpt": ("ffn.up_proj", "ffn.down_proj"),
    "bert": _BERT,
    "roberta": _BERT,
    "vit": (*_TWO_LAYERS, *_BERT),
    "deit": (*_TWO_LAYERS, *_BERT),
    "beit": (*_TWO_LAYERS, *_BERT),
    "swin": (*_TWO_LAYERS, *_BERT),
    "dinov2": _DINO,
    "dinov2_with_registers": _DINO,
    "clip": _TWO_LAYERS,
    "clip_vision_model": _TWO_LAYERS,
    "siglip": _TWO_LAYERS,
    "siglip_vision_model": _TWO_LAYERS,
    "timm": _TWO_LAYERS,
    "timm_wrapper": _TWO_LAYERS,
}
"""MLP layers by model family. A name counts directly behind the number of a block, as in ``layers.3.mlp.fc1``, so
that ``output.dense`` of a block is not taken for the ``attention.output.dense`` of the same block. Two names for the
same layer are two releases of transformers."""

_Q_K_V_O = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_Q_K_V_OUT = (*_Q_K_V_O[:3], "self_attn.out_proj")
_ONE_MATRIX = ("self_attention.query_key_value", "self_attention.dense")
_BERT_ATTENTION = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
_VISION = ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj")
_VIT_ATTENTION = (
    *_VISION,
    "attention.attention.query",
    "attention.attention.key",
    "attention.attention.value",
    "attention.output.dense",
)

ATTENTION_LAYERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2"), _Q_K_V_O),
    **dict.fromkeys(("gemma3", "gemma3_text", "smollm3", "olmo2"), _Q_K_V_O),
    **dict.fromkeys(("opt", "clip", "clip_vision_model", "siglip", "siglip_vision_model"), _Q_K_V_OUT),
    **dict.fromkeys(("bloom", "falcon"), _ONE_MATRIX),
    **dict.fromkeys(("bert", "roberta"), _BERT_ATTENTION),
    **dict.fromkeys(("vit", "deit", "beit", "dinov2", "dinov2_with_registers"), _VIT_ATTENTION),
    **dict.fromkeys(("timm", "timm_wrapper"), ("attn.qkv", "attn.proj")),
    "phi": (*_Q_K_V_O[:3], "self_attn.dense"),
    "phi3": ("self_attn.qkv_proj", "self_attn.o_proj"),
    "gpt2": ("attn.c_attn", "attn.c_proj"),
    "gpt_neo": tuple(f"attn.attention.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")),
    "gpt_neox": ("attention.query_key_value", "attention.dense"),
    "mpt": ("attn.Wqkv", "attn.out_proj"),
    "swin": (*_VISION, *_BERT_ATTENTION),
}
"""Linear layers of the attention, its output included, by model family; the names are meant as in `MLP_LAYERS`."""

TARGET_GROUPS: dict[str, tuple[dict[str, tuple[str, ...]], ...]] = {
    "mlp": (MLP_LAYERS,),
    "attention": (ATTENTION_LAYERS,),
    "mlp_and_attention": (MLP_LAYERS, ATTENTION_LAYERS),
}
"""Groups of layers that `target_modules` may name, and the tables that they are in."""

_MOST_NAMES_SHOWN = 12


def group_target_modules(model: nn.Module, group: str = "mlp") -> list[str]:
    """Full names of the MLP's or the attention's linear layers, for ``target_modules``.

    Only blocks whose MLP is in `MLP_LAYERS` count, so that of a model for text and images both groups are in the same
    part.

    Args:
        model: A model of a family in `MLP_LAYERS`, with or without adapters.
        group: Key of `TARGET_GROUPS`.

    Returns:
        The names in the order of the model; every one is a Linear or Conv1D.

    Raises:
        ConfigError: If there is no such group.
        ModelError: If the family is unknown or the model has no such layers. The message lists the linear layers.
    """
    if group not in TARGET_GROUPS:
        raise ConfigError(unknown_name("group of layers", group, TARGET_GROUPS))
    family = _family_of(model)
    if family not in MLP_LAYERS:
        raise ModelError(
            f"Unknown model family '{family}': where its MLP and its attention are, is not known."
            f"{_experts_hint(model)} `forget list families` shows the known ones. Set target_modules to some of its "
            f"linear layers: {describe_layers(list_linear_layers(model))}."
        )
    wanted = tuple(name for table in TARGET_GROUPS[group] for name in table[family])
    blocks = set(_blocks_of(model, MLP_LAYERS[family]).values())
    names = [name for name, block in _blocks_of(model, wanted).items() if block in blocks]
    if not names:
        raise ModelError(
            f"No layer of the family '{family}' is named {', '.join(wanted)}.{_experts_hint(model)} Set "
            f"target_modules to some of its linear layers: {describe_layers(list_linear_layers(model))}."
        )
    return names


def _blocks_of(model: nn.Module, endings: Iterable[str]) -> dict[str, str]:
    """Linear layers that are named so directly behind the number of a block, and the name of that block."""
    rule = re.compile(rf"((?:.*\.)?\d+)\.(?:{'|'.join(re.escape(ending) for ending in endings)})")
    matches = {name: rule.fullmatch(name) for name in list_linear_layers(model)}
    return {name: match.group(1) for name, match in matches.items() if match}


def block_number(name: str, pattern: str = r"[^.]+") -> int | None:
    """Number of the block that a layer is in: the first number in its name that stands behind a list's name.

    Args:
        name: Full name of a layer, with or without what PEFT puts before it. Of Swin, the stages are counted.
        pattern: Regular expression of the list's name; any by default.

    Returns:
        The number, from 0; None for a layer that is in no block, such as the head.

    Example:
        >>> block_number("vit.layers.11.attention.q_proj"), block_number("classifier")
        (11, None)
    """
    match = re.match(rf"(?:.*?\.)??(?:{pattern})\.(\d+)\.", name)
    return int(match.group(1)) if match else None


def list_linear_layers(model: nn.Module) -> list[str]:
    """Names of all Linear and Conv1D layers; a layer that has an adapter counts as the layer it was.

    Args:
        model: Any model; the names of a ``PeftModel`` are those of the model in it.

    Returns:
        The names in the order of the model.

    Example:
        >>> list_linear_layers(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
        ['0']
    """
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    adapted = [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    inside = tuple(f"{name}." for name in adapted)
    names = []
    for name, module in model.named_modules():
        base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        if isinstance(base, (nn.Linear, Conv1D)) and not (inside and name.startswith(inside)):
            names.append(name)
    return names


def describe_layers(names: Iterable[str]) -> str:
    """Names in short: the number of a block becomes N, and a long list is cut.

    Args:
        names: Full names of layers.

    Returns:
        The distinct names, quoted, with commas between them.

    Example:
        >>> describe_layers(["layers.0.fc1", "layers.1.fc1"])
        "'layers.N.fc1'"
    """
    short = list(dict.fromkeys(re.sub(r"(^|\.)\d+\.", r"\1N.", name) for name in names))
    if not short:
        return "there are none"
    more = f" and {len(short) - _MOST_NAMES_SHOWN} more" if len(short) > _MOST_NAMES_SHOWN else ""
    return ", ".join(f"'{name}'" for name in short[:_MOST_NAMES_SHOWN]) + more


def closest_layers(target: str, names: Iterable[str]) -> list[str]:
    """Endings of layer names that look most like a name which matches none.

    Args:
        target: The name that matches no layer.
        names: Full names of the layers there are.

    Returns:
        At most four endings with as many parts as ``target``, best first.

    Example:
        >>> closest_layers("mlp.fc9", ["layers.0.mlp.fc1", "layers.0.mlp.fc2", "layers.0.attn.qkv"])
        ['mlp.fc2', 'mlp.fc1']
    """
    num_parts = target.count(".") + 1
    endings = sorted({".".join(name.split(".")[-num_parts:]) for name in names})
    return difflib.get_close_matches(target, endings, n=4, cutoff=0.5)


def _family_of(model: nn.Module) -> str:
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    config = getattr(model, "config", None)
    family = getattr(config, "model_type", None)
    if family is None and hasattr(model, "pretrained_cfg"):
        return "timm"
    return type(model).__name__ if not family else str(family)


def _experts_hint(model: nn.Module) -> str:
    """Sentence about experts whose weights are one parameter of three axes, which no linear layer holds."""
    fused = [name for name, parameter in model.named_parameters() if "experts" in name and parameter.ndim == 3]
    if not fused:
        return ""
    return f" Its experts are fused parameters ({describe_layers(fused)}), not linear layers, and cannot be adapted."
