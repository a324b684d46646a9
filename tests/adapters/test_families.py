"""The table of families against a tiny random model of every one."""

import copy
import re

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers.pytorch_utils import Conv1D

from stable_forgetting.adapters import (
    ATTENTION_LAYERS,
    MLP_LAYERS,
    BoundedLoraConfig,
    BoundedLoraLinear,
    block_number,
    certificate,
    group_target_modules,
    list_linear_layers,
)
from stable_forgetting.adapters.families import closest_layers, describe_layers
from stable_forgetting.errors import ConfigError, ModelError

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # in PEFT
WORDS = {"vocab_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BLOCKS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**WORDS, **BLOCKS, "intermediate_size": 32, "num_key_value_heads": 2, "head_dim": 8}
SHORT_NAMES = {**WORDS, "n_layer": 2, "n_head": 2}
VISION = {**BLOCKS, "intermediate_size": 32, "image_size": 16, "patch_size": 8}
BOTH = {"text_config": TEXT, "vision_config": VISION}
SWIN_IMAGE = {"image_size": 16, "patch_size": 2, "window_size": 2}

SIZES = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3"), TEXT),
    **dict.fromkeys(("olmo2", "phi", "phi3", "gpt_neox", "bert", "roberta"), TEXT),
    **dict.fromkeys(("vit", "deit", "beit", "dinov2", "dinov2_with_registers"), VISION),
    **dict.fromkeys(("clip_vision_model", "siglip_vision_model"), VISION),
    **dict.fromkeys(("clip", "siglip", "gemma3"), BOTH),
    "gpt2": {**SHORT_NAMES, "n_embd": 16},
    "gpt_neo": {**WORDS, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "attention_types": [[["global"], 2]]},
    "bloom": {**SHORT_NAMES, "hidden_size": 16},
    "falcon": {**WORDS, **BLOCKS},
    "mpt": {**WORDS, "d_model": 16, "n_layers": 2, "n_heads": 2, "expansion_ratio": 2},
    "opt": {**WORDS, **BLOCKS, "ffn_dim": 32, "word_embed_proj_dim": 16, "max_position_embeddings": 16},
    "swin": {
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "image_size": 16,
        "patch_size": 2,
        "window_size": 2,
    },
}

DOWNSAMPLING = {"encoder.layers.0.downsample.reduction"}
"""Of Swin: between two stages, neither in the MLP nor in the attention of a block."""

ATTENTION_PARTS = ("attn", "attention", "q_proj", "k_proj", "v_proj", "o_proj", "qkv", "out_proj", "query", "key")


def make_model(family, **changes):
    config = AutoConfig.for_model(family, **{**SIZES.get(family, TEXT), **changes})
    return AutoModel.from_config(config)


def stand_in_for_timm():
    """The names of a timm vision transformer, without the package."""

    def block():
        attention = nn.ModuleDict({"qkv": nn.Linear(4, 12), "proj": nn.Linear(4, 4)})
        mlp = nn.ModuleDict({"fc1": nn.Linear(4, 8), "fc2": nn.Linear(8, 4)})
        return nn.ModuleDict({"attn": attention, "mlp": mlp})

    model = nn.Module()
    model.blocks = nn.ModuleList([block(), block()])
    model.head = nn.Linear(4, 2)
    model.pretrained_cfg = {"architecture": "vit_tiny"}
    return model


def test_every_family_is_tested():
    assert set(MLP_LAYERS) - set(SIZES) == {"timm", "timm_wrapper"}
    assert set(ATTENTION_LAYERS) == set(MLP_LAYERS)


@pytest.mark.parametrize("family", SIZES)
def test_targets_are_the_mlp_and_nothing_else(family):
    model = make_model(family)
    names = group_target_modules(model)
    modules = dict(model.named_modules())
    for name in names:
        module = modules[name]
        assert isinstance(module, (nn.Linear, Conv1D))
        assert len(set(module.weight.shape)) == 2, f"{name} is square, so it is not in the MLP"
        assert not any(part in name for part in ATTENTION_PARTS)
    num_blocks = 4 if family in ("clip", "siglip") else 2
    assert len(names) >= 2 * num_blocks
    assert len(names) % num_blocks == 0


@pytest.mark.parametrize("family", SIZES)
def test_attention_is_the_rest_of_the_same_blocks(family):
    model = make_model(family)
    mlp, attention = (set(group_target_modules(model, group)) for group in ("mlp", "attention"))
    blocks = tuple({re.match(r".*?\d+\.(?:blocks\.\d+\.)?", name).group() for name in mlp})
    assert attention == {name for name in list_linear_layers(model) if name.startswith(blocks)} - mlp - DOWNSAMPLING
    both = group_target_modules(model, "mlp_and_attention")
    assert set(both) == mlp | attention
    assert both == [name for name in list_linear_layers(model) if name in set(both)]


OLDER_NAMES = {
    "attention.attention.query": "vit",
    "attention.attention.key": "deit",
    "attention.attention.value": "beit",
    "attention.output.dense": "dinov2",
    "attention.self.query": "swin",
}


@pytest.mark.parametrize(("name", "family"), OLDER_NAMES.items())
def test_names_of_older_releases_are_known(name, family):
    assert name in ATTENTION_LAYERS[family]


@pytest.mark.parametrize("family", ["gpt2", "vit", "bert", "opt"])
def test_attached_adapter_adapts_exactly_these_layers(family):
    model = make_model(family)
    names = group_target_modules(model)
    adapted = get_peft_model(model, BoundedLoraConfig()).get_base_model()
    assert [n for n, m in adapted.named_modules() if isinstance(m, BoundedLoraLinear)] == names
    assert group_target_modules(adapted) == names


def test_many_layers_are_targeted_exactly_too():
    model = make_model("bert", num_hidden_layers=12)
    names = group_target_modules(model)
    adapted = get_peft_model(model, BoundedLoraConfig(layers_to_transform=list(range(11)))).get_base_model()
    found = [n for n, m in adapted.named_modules() if isinstance(m, BoundedLoraLinear)]
    assert found == [n for n in names if ".11." not in n]


@pytest.mark.parametrize("group", ["attention", "mlp_and_attention"])
@pytest.mark.parametrize("family", ["vit", "dinov2", "llama", "gpt2"])
def test_an_adapter_of_the_attention_is_certified_saved_loaded_and_merged(family, group, tmp_path):
    torch.manual_seed(0)
    base = make_model(family).eval()
    names = group_target_modules(base, group)
    model = get_peft_model(copy.deepcopy(base), BoundedLoraConfig(target_modules=group, omega=20.0, scale=0.05)).eval()
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data.normal_(std=0.3)
    layers = certificate(model)
    assert {layer.name for layer in layers} == set(names)
    assert all(layer.holds and layer.largest_entry > 0.04 for layer in layers)
    changed = outputs(model)
    assert not torch.allclose(changed, outputs(base), atol=1e-3)
    model.save_pretrained(tmp_path)
    assert torch.equal(outputs(PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()), changed)
    torch.testing.assert_close(outputs(model.merge_and_unload()), changed, rtol=1e-4, atol=1e-5)


def outputs(model):
    with torch.no_grad():
        if "pixel_values" in str(model.main_input_name):
            return model(pixel_values=torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16))[0]
        return model(input_ids=torch.arange(3, 9).reshape(2, 3))[0]


def test_an_unknown_group_is_refused():
    with pytest.raises(ConfigError, match=r"Unknown group of layers 'atention'\. Did you mean 'attention'"):
        group_target_modules(make_model("vit"), "atention")


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("layers.10.mlp.fc1", 10),
        ("base_model.model.vit.encoder.layer.3.attention.attention.query", 3),
        ("encoder.layers.2.blocks.1.attention.k_proj", 2),
        ("transformer.h.0.attn.c_attn", 0),
        ("vit.layer_norm1.weight", None),
        ("classifier", None),
    ],
)
def test_number_of_a_layers_block(name, number):
    assert block_number(name) == number


def test_timm_names():
    expected = ["blocks.0.mlp.fc1", "blocks.0.mlp.fc2", "blocks.1.mlp.fc1", "blocks.1.mlp.fc2"]
    assert group_target_modules(stand_in_for_timm()) == expected
    attention = ["blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.1.attn.qkv", "blocks.1.attn.proj"]
    assert group_target_modules(stand_in_for_timm(), "attention") == attention


def test_fused_experts_are_refused_with_their_name():
    with pytest.raises(ModelError, match=r"Its experts are fused parameters \('layers\.N\.mlp\.experts\.gate_up_proj'"):
        group_target_modules(make_model("mixtral"))


def test_unknown_family_lists_the_linear_layers():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with pytest.raises(ModelError, match=r"Unknown model family 'Sequential'.* layers: '0', '2'\."):
        group_target_modules(model)


def test_known_family_without_its_layers_is_refused():
    model = stand_in_for_timm()
    model.blocks = nn.ModuleList()
    with pytest.raises(ModelError, match=r"No layer of the family 'timm' is named mlp\.fc1, mlp\.fc2\..* 'head'"):
        group_target_modules(model)


def test_adapted_layers_keep_their_names():
    model = make_model("llama")
    names = list_linear_layers(model)
    assert len(names) == 14
    adapted = get_peft_model(model, BoundedLoraConfig())
    assert list_linear_layers(adapted) == list_linear_layers(adapted.get_base_model()) == names


def test_names_in_short():
    names = [f"layers.{i}.mlp.fc{j}" for i in range(3) for j in range(20)]
    text = describe_layers(names)
    assert text.startswith("'layers.N.mlp.fc0', ")
    assert text.endswith("'layers.N.mlp.fc11' and 8 more")
    assert describe_layers([]) == "there are none"
    assert closest_layers("fc9", ["a.fc1", "b.fc1", "b.qkv"]) == ["fc1"]
