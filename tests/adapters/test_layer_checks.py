"""Layers of real families that an adapter must not be on, and models whose layers it must not miss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPForImageClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    MambaConfig,
    MambaForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from stable_forgetting import BoundedLoraConfig, load_adapter
from stable_forgetting.adapters import BoundedLoraLinear
from stable_forgetting.errors import ModelError
from tiny_models import tiny_language_model

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def attach(model: Any, **options: Any) -> Any:
    return get_peft_model(model, BoundedLoraConfig(**options))


def num_adapted(model: nn.Module) -> int:
    return sum(isinstance(module, BoundedLoraLinear) for module in model.modules())


def make_clip() -> Any:
    config = CLIPConfig(vision_config={**SMALL, "image_size": 8, "patch_size": 4}, num_labels=3)
    return CLIPForImageClassification(config).eval()


def make_convnext() -> Any:
    config = ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=16, num_labels=3)
    return ConvNextForImageClassification(config).eval()


@pytest.mark.parametrize(
    ("make", "options", "size"),
    [
        (make_clip, {}, 8),
        (make_clip, {"target_modules": "all-linear"}, 8),
        (make_convnext, {"target_modules": "all-linear"}, 16),
        (make_convnext, {"target_modules": ["pwconv1", "pwconv2"]}, 16),
    ],
)
def test_an_adapter_of_a_model_without_tables_of_embeddings_is_saved_and_loaded(
    make: Any, options: dict[str, Any], size: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    base, images = make(), torch.randn(2, 3, size, size)
    weights = {name: value.clone() for name, value in base.state_dict().items()}
    model = attach(base, **options)
    for module in model.modules():
        if isinstance(module, BoundedLoraLinear):
            nn.init.normal_(module.bounded_lora_B["default"], std=0.1)
    model.save_pretrained(tmp_path)
    fresh = make()
    fresh.load_state_dict(weights)
    with torch.no_grad():
        adapted = model(pixel_values=images).logits
        assert not torch.allclose(adapted, fresh(pixel_values=images).logits)
        assert torch.equal(load_adapter(fresh, tmp_path)(pixel_values=images).logits, adapted)


@pytest.mark.parametrize("targets", ["all-linear", ["gate_proj"]])
def test_layers_that_share_a_weight_are_refused_before_anything_is_wrapped(targets: Any) -> None:
    model = tiny_language_model()
    first, second = (layer.mlp for layer in model.model.layers)
    second.gate_proj.weight = first.gate_proj.weight
    with pytest.raises(ModelError, match=r"layers\.0\.mlp\.gate_proj' shares its weight with 'model\.layers\.1\.mlp"):
        attach(model, target_modules=targets)
    assert num_adapted(model) == 0
    assert num_adapted(attach(model, target_modules=["up_proj"])) == 2


def test_one_layer_in_two_blocks_is_refused() -> None:
    model = tiny_language_model()
    first, second = (layer.mlp for layer in model.model.layers)
    second.gate_proj = first.gate_proj
    with pytest.raises(ModelError, match="shares its weight with"):
        attach(model)


def test_a_block_that_stands_twice_is_adapted_in_both_places() -> None:
    model = tiny_language_model()
    model.model.layers[1].mlp = model.model.layers[0].mlp
    ids = torch.arange(1, 9).view(1, 8)
    adapted = attach(model)
    assert num_adapted(adapted) == 3
    for module in adapted.modules():
        if isinstance(module, BoundedLoraLinear):
            nn.init.normal_(module.bounded_lora_B["default"], std=0.1)
    with torch.no_grad():
        before = adapted(input_ids=ids).logits
        torch.testing.assert_close(adapted.merge_and_unload()(input_ids=ids).logits, before, rtol=1e-4, atol=1e-5)


def test_a_layer_that_is_read_and_never_called_is_refused() -> None:
    model = SiglipVisionModel(SiglipVisionConfig(**SMALL, image_size=8, patch_size=4))
    with pytest.raises(ModelError, match=r"head\.attention\.out_proj' belongs to an nn\.MultiheadAttention"):
        attach(model, target_modules="all-linear")
    assert num_adapted(model) == 0
    assert num_adapted(attach(model, target_modules="all-linear", exclude_modules=[r"head.attention.out_proj"])) > 0


def test_what_mambas_kernels_read_is_refused() -> None:
    config = MambaConfig(vocab_size=20, hidden_size=16, state_size=4, num_hidden_layers=1)
    model = MambaForCausalLM(config)
    for name in ("x_proj", "dt_proj", "out_proj"):
        with pytest.raises(ModelError, match=rf"{name}' of a mamba model is read by its kernels"):
            attach(model, target_modules=[name])
    assert num_adapted(attach(model, target_modules=["in_proj"])) == 1
