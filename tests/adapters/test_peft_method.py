"""The adapter as a PEFT method on a tiny Llama: attach, train, save, load, merge, switch off."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import FalconConfig, FalconForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from reference.adapter_twins import naive_delta
from stable_forgetting.adapters import (
    BOUNDS,
    PEFT_TYPE,
    BoundedLoraConfig,
    BoundedLoraLinear,
    list_linear_layers,
    register,
)
from stable_forgetting.adapters.layer_checks import check_layer
from stable_forgetting.errors import ConfigError, ModelError
from tiny_models import tiny_language_model

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # in PEFT
TOKENS = torch.arange(24).reshape(2, 12)
every_bound = pytest.mark.parametrize("bound", BOUNDS)


def make_llama(seed=0, dtype=torch.float32, **options):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=32, max_position_embeddings=32, bos_token_id=1, eos_token_id=2, **sizes, **options)
    return LlamaForCausalLM(config).to(dtype).eval()


def make_gpt2(seed=0):
    torch.manual_seed(seed)
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=32, n_positions=32, bos_token_id=1, eos_token_id=2)
    return GPT2LMHeadModel(config).eval()


def attach(model=None, **options):
    return get_peft_model(make_llama() if model is None else model, BoundedLoraConfig(**options))


def randomize(model, adapter="default", size=0.05, seed=1):
    """Give B random values, so that the adapter does something."""
    generator = torch.Generator().manual_seed(seed)
    for layer in adapted_layers(model):
        if adapter in layer.bounded_lora_B:
            parameter = layer.bounded_lora_B[adapter]
            parameter.data = size * torch.randn(parameter.shape, generator=generator).to(parameter)
    return model


def adapted_layers(model):
    return [module for module in model.modules() if isinstance(module, BoundedLoraLinear)]


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def base_weights(model):
    return [layer.base_layer.weight.detach().clone() for layer in adapted_layers(model)]


@every_bound
@pytest.mark.parametrize("make", [make_llama, make_gpt2])
def test_fresh_adapter_changes_nothing_bit_for_bit(bound, make):
    expected = logits(make())
    assert torch.equal(logits(attach(make(), bound=bound)), expected)


def test_mlp_layers_are_the_default_target_and_only_adapters_train():
    model = attach()
    targets = {name for name in list_linear_layers(model) if ".mlp." in name}
    assert set(model.peft_config["default"].resolved_scales) == targets
    assert len(adapted_layers(model)) == len(targets) == 6
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 12
    assert all("bounded_lora_A.default" in name or "bounded_lora_B.default" in name for name in trained)


@every_bound
def test_output_and_gradients_agree_with_an_ordinary_layer_of_the_changed_weight(bound):
    base = make_llama()
    model = randomize(attach(copy.deepcopy(base), bound=bound, omega=20.0, scale=0.2))
    leaves = []
    for layer, name in zip(adapted_layers(model), model.peft_config["default"].resolved_scales, strict=True):
        a, b = (p["default"].detach().clone().requires_grad_() for p in (layer.bounded_lora_A, layer.bounded_lora_B))
        leaves += [a, b]
        linear = base.get_submodule(name)
        weight = linear.weight.detach() + naive_delta(a, b, bound=bound, omega=20.0, scale=0.2)
        linear.forward = lambda x, weight=weight: nn.functional.linear(x, weight)
    expected, actual = base(input_ids=TOKENS, labels=TOKENS), model(input_ids=TOKENS, labels=TOKENS)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-4, atol=1e-5)
    expected.loss.backward()
    actual.loss.backward()
    for layer, a, b in zip(adapted_layers(model), leaves[0::2], leaves[1::2], strict=True):
        torch.testing.assert_close(layer.bounded_lora_A["default"].grad, a.grad, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(layer.bounded_lora_B["default"].grad, b.grad, rtol=1e-3, atol=1e-5)


def test_identity_bound_is_pefts_lora():
    ours = randomize(attach(bound="identity", omega=1.0, scale=2.0))
    theirs = get_peft_model(
        make_llama(), LoraConfig(r=4, lora_alpha=8, target_modules=["gate_proj", "up_proj", "down_proj"])
    )
    names = list(ours.peft_config["default"].resolved_scales)
    for name, layer in zip(names, adapted_layers(ours), strict=True):
        twin = theirs.get_base_model().get_submodule(name)
        twin.lora_A["default"].weight.data = layer.bounded_lora_A["default"].data.clone()
        twin.lora_B["default"].weight.data = layer.bounded_lora_B["default"].data.clone()
    torch.testing.assert_close(logits(ours), logits(theirs))


@every_bound
@pytest.mark.parametrize("make", [make_llama, make_gpt2])
def test_merged_equals_unmerged_and_unmerging_restores_every_bit(bound, make):
    model = randomize(attach(make(), bound=bound))
    weights, unmerged = base_weights(model), logits(model)
    assert (unmerged - logits(make())).abs().max() > 1e-3
    model.merge_adapter()
    torch.testing.assert_close(logits(model), unmerged, rtol=0, atol=1e-5)
    assert not any(torch.equal(a, b) for a, b in zip(base_weights(model), weights, strict=True))
    model.unmerge_adapter()
    assert all(torch.equal(a, b) for a, b in zip(base_weights(model), weights, strict=True))
    assert torch.equal(logits(model), unmerged)


@pytest.mark.parametrize("safe_merge", [False, True])
def test_merge_and_unload_gives_the_plain_model(safe_merge):
    model = randomize(attach())
    expected = logits(model)
    merged = model.merge_and_unload(safe_merge=safe_merge)
    assert type(merged) is LlamaForCausalLM
    assert not adapted_layers(merged)
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-5)


def test_safe_merge_refuses_broken_weights_and_leaves_the_base():
    model = randomize(attach())
    weights = base_weights(model)
    adapted_layers(model)[0].bounded_lora_B["default"].data[0, 0] = float("nan")
    with pytest.raises(ModelError, match="infinite or undefined"):
        model.merge_adapter(safe_merge=True)
    assert all(torch.equal(a, b) for a, b in zip(base_weights(model), weights, strict=True))


def test_unload_gives_the_base_model_back():
    expected = logits(make_llama())
    assert torch.equal(logits(randomize(attach()).unload()), expected)


@pytest.mark.parametrize("merge_first", [False, True])
def test_disabled_adapter_is_the_base_model_bit_for_bit(merge_first):
    model = randomize(attach())
    if merge_first:
        model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(make_llama()))
    assert not torch.equal(logits(model), logits(make_llama()))


def test_unmerging_what_is_not_merged_warns():
    with pytest.warns(UserWarning, match="nothing to do"):
        adapted_layers(attach())[0].unmerge()


@pytest.mark.parametrize("bounds", [("sine", "tanh"), ("sine", "identity"), ("identity", "identity")])
def test_active_adapters_add_their_changes_and_merge_one_after_the_other(bounds):
    model = randomize(attach(bound=bounds[0]))
    model.add_adapter("second", BoundedLoraConfig(r=2, bound=bounds[1], omega=3.0, scale=0.1))
    randomize(model, "second", size=0.5, seed=2)
    alone = logits(model)
    model.base_model.set_adapter(["default", "second"])
    both = logits(model)
    assert (both - alone).abs().max() > 1e-4
    layer = adapted_layers(model)[0]
    x = torch.randn(3, layer.in_features)
    weight = layer.base_layer.weight + layer.get_delta_weight("default") + layer.get_delta_weight("second")
    torch.testing.assert_close(layer(x), x @ weight.T, rtol=1e-4, atol=1e-5)

    weights = base_weights(model)
    model.merge_adapter(["default"])
    with pytest.warns(UserWarning, match="additionally merging second"):
        model.merge_adapter(["second"])
    torch.testing.assert_close(logits(model), both, rtol=0, atol=1e-5)
    model.unmerge_adapter()
    assert all(torch.equal(a, b) for a, b in zip(base_weights(model), weights, strict=True))


def test_adapters_that_pefts_lora_mixes_are_refused():
    model = get_peft_model(tiny_language_model(), BoundedLoraConfig(), adapter_name="one")
    model.add_adapter("two", BoundedLoraConfig(target_modules=["up_proj"]))
    tokens = torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(ModelError, match=r"adapter_names is given, .* Call set_adapter\(NAME\)"):
        model(tokens, adapter_names=["one", "two"])
    with pytest.raises(ModelError, match="Activate several adapters together"):
        model.add_weighted_adapter(["one", "two"], [1.0, 1.0], "both")
    assert model(tokens).logits.shape == (2, 3, 40)


@pytest.mark.parametrize("bound", ["sine", "identity"])
def test_offloaded_weights_are_refused_until_the_adapter_is_merged(bound):
    model = get_peft_model(tiny_language_model(), BoundedLoraConfig(bound=bound)).eval()
    tokens = torch.ones(1, 3, dtype=torch.long)
    expected = model(tokens).logits
    cpu_offload(model, execution_device=torch.device("cpu"))
    with pytest.raises(ModelError, match="Weights of an adapted layer are offloaded"):
        model(tokens)
    merged = get_peft_model(tiny_language_model(), BoundedLoraConfig(bound=bound)).eval().merge_and_unload()
    cpu_offload(merged, execution_device=torch.device("cpu"))
    assert torch.equal(merged(tokens).logits, expected)


def test_plain_lora_goes_over_offloaded_base_weights():
    model = get_peft_model(tiny_language_model(), BoundedLoraConfig(bound="identity")).eval()
    tokens = torch.ones(1, 3, dtype=torch.long)
    expected = model(tokens).logits
    for layer in (module for module in model.modules() if isinstance(module, BoundedLoraLinear)):
        cpu_offload(layer.base_layer, execution_device=torch.device("cpu"))
        assert layer.base_layer.weight.device.type == "meta"
    assert torch.equal(model(tokens).logits, expected)


def test_set_and_delete_adapter():
    model = randomize(attach())
    first = logits(model)
    model.add_adapter("second", BoundedLoraConfig(init_seed=3))
    assert torch.equal(logits(model), first)
    model.set_adapter("second")
    assert torch.equal(logits(model), logits(make_llama()))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(name.endswith(".second") for name in trained)
    model.set_adapter("default")
    model.delete_adapter("second")
    assert all(set(layer.bounded_lora_settings) == {"default"} for layer in adapted_layers(model))
    assert torch.equal(logits(model), first)


@every_bound
def test_saved_and_loaded_adapter_gives_the_same_output(bound, tmp_path):
    model = randomize(attach(bound=bound, omega=30.0))
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(make_llama(), str(tmp_path))
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.peft_config["default"].resolved_scales == model.peft_config["default"].resolved_scales
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    trainable = PeftModel.from_pretrained(make_llama(), str(tmp_path), is_trainable=True)
    assert sum(parameter.requires_grad for parameter in trainable.parameters()) == 12
    second = attach(bound="tanh")
    second.load_adapter(str(tmp_path), "again")
    second.set_adapter("again")
    assert torch.equal(logits(second), logits(model))


def test_models_of_transformers_load_and_add_adapters_themselves(tmp_path):
    model = randomize(attach())
    model.save_pretrained(str(tmp_path))
    base = make_llama()
    base.load_adapter(str(tmp_path))
    assert torch.equal(logits(base), logits(model))
    fresh = make_llama()
    fresh.add_adapter(BoundedLoraConfig())
    assert len(adapted_layers(fresh)) == 6
    assert model.get_model_status().peft_types == {"default": "BOUNDED_LORA"}


def test_saved_config_has_its_own_type_and_equal_configs_give_equal_files(tmp_path):
    for folder in ("one", "two"):
        attach().save_pretrained(str(tmp_path / folder))
    texts = [(tmp_path / folder / "adapter_config.json").read_text() for folder in ("one", "two")]
    assert texts[0] == texts[1]
    assert json.loads(texts[0])["peft_type"] == "BOUNDED_LORA"


def test_saved_scale_is_used_and_never_recomputed(tmp_path):
    model = randomize(attach())
    model.save_pretrained(str(tmp_path))
    path = tmp_path / "adapter_config.json"
    saved = json.loads(path.read_text())
    saved["resolved_scales"] = dict.fromkeys(saved["resolved_scales"], 0.5)
    path.write_text(json.dumps(saved))
    loaded = PeftModel.from_pretrained(make_llama(), str(tmp_path))
    assert {layer.bounded_lora_settings["default"].scale for layer in adapted_layers(loaded)} == {0.5}

    saved["resolved_scales"].pop("model.layers.1.mlp.up_proj")
    path.write_text(json.dumps(saved))
    with pytest.raises(ModelError, match=r"no scale is saved for 'model\.layers\.N\.mlp\.up_proj'"):
        PeftModel.from_pretrained(make_llama(), str(tmp_path))


def test_process_without_the_package_fails_to_load(tmp_path):
    attach(nn.Sequential(nn.Linear(4, 4)), target_modules=["0"]).save_pretrained(str(tmp_path))
    code = (
        "from peft import PeftModel; from torch import nn\n"
        "base = nn.Sequential(nn.Linear(4, 4)); print('base is there')\n"
        f"PeftModel.from_pretrained(base, {str(tmp_path)!r}); print('loaded')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "base is there" in result.stdout
    assert "loaded" not in result.stdout
    assert result.returncode != 0
    assert "BOUNDED_LORA" in result.stderr


def test_scale_defaults_and_the_callers_config_is_left_alone():
    config = BoundedLoraConfig(r=2, target_modules=["up_proj", "down_proj"], layers_to_transform=[1])
    before = copy.deepcopy(config)
    model = get_peft_model(make_llama(), config)
    scales = model.peft_config["default"].resolved_scales
    expected = {"model.layers.1.mlp.up_proj": 16**-0.5, "model.layers.1.mlp.down_proj": 24**-0.5}
    assert scales == pytest.approx(expected)
    assert (config.resolved_scales, config.target_modules) == (before.resolved_scales, before.target_modules)
    halved = attach(lora_alpha=1.0, r=2, target_modules=["up_proj"])
    assert set(halved.peft_config["default"].resolved_scales.values()) == {0.5 * 16**-0.5}
    fixed = attach(scale=0.3)
    assert set(fixed.peft_config["default"].resolved_scales.values()) == {0.3}


@pytest.mark.parametrize(
    ("options", "num_layers"),
    [
        ({}, 3),
        ({"layers_pattern": "layers"}, 3),
        ({"layers_pattern": ["h", "layers"]}, 3),
        ({"target_modules": "attention"}, 4),
        ({"target_modules": "mlp_and_attention"}, 7),
        ({"target_modules": ["q_proj", "v_proj"]}, 2),
        ({"target_modules": r".*\.(q|v)_proj"}, 2),
        ({"target_modules": "all-linear"}, 7),
        ({"target_modules": "all-linear", "exclude_modules": ["q_proj"]}, 6),
    ],
)
def test_chosen_blocks_of_every_kind_of_targets(options, num_layers):
    model = attach(layers_to_transform=[1], **options)
    scales = model.peft_config["default"].resolved_scales
    assert {name.split(".")[2] for name in scales} == {"1"}
    assert len(scales) == len(adapted_layers(model)) == num_layers
    with pytest.raises(ModelError, match=r"no block 7: the model has 2 blocks, 0 to 1\. Choose other blocks\."):
        attach(layers_to_transform=[0, 7], **options)


def test_blocks_that_hold_no_target_are_refused():
    with pytest.raises(ModelError, match=r"No target layer is in the blocks \[0\], only: 'model\.layers\.N\.mlp"):
        attach(layers_to_transform=0, target_modules=["layers.1.mlp.up_proj"])
    with pytest.raises(ModelError, match="There is no block 1: the model has no numbered blocks"):
        attach(layers_to_transform=1, layers_pattern="blocks")


def test_init_seed_fixes_the_start_whatever_else_was_drawn():
    def start(seed, draws):
        torch.manual_seed(draws)
        return [layer.bounded_lora_A["default"] for layer in adapted_layers(attach(init_seed=seed))]

    one, two, other = start(5, 1), start(5, 2), start(6, 1)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(one[0], one[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_base_keeps_adapters_in_float32(dtype, tmp_path):
    model = attach(make_llama(dtype=dtype))
    assert torch.equal(logits(model), logits(make_llama(dtype=dtype)))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    randomize(model)
    unmerged = logits(model)
    assert unmerged.dtype == dtype
    model.save_pretrained(str(tmp_path))
    assert torch.equal(logits(PeftModel.from_pretrained(make_llama(dtype=dtype), str(tmp_path))), unmerged)
    weights = base_weights(model)
    model.merge_adapter()
    assert torch.equal(logits(model), unmerged)
    model.unmerge_adapter()
    assert all(torch.equal(a, b) for a, b in zip(base_weights(model), weights, strict=True))


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("enable_first", [False, True])
def test_gradient_checkpointing_does_not_stop_training(use_reentrant, enable_first):
    base = make_llama()
    base.requires_grad_(False)
    options = {"use_reentrant": use_reentrant}
    if enable_first:
        base.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    model = attach(base, init_seed=1)
    if not enable_first:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    plain = attach(make_llama(), init_seed=1)
    for each in (model, plain):
        randomize(each).train()
        each(input_ids=TOKENS, labels=TOKENS).loss.backward()
    for layer, twin in zip(adapted_layers(model), adapted_layers(plain), strict=True):
        for name in ("bounded_lora_A", "bounded_lora_B"):
            gradient = getattr(layer, name)["default"].grad
            assert gradient is not None
            assert gradient.abs().max() > 0
            torch.testing.assert_close(gradient, getattr(twin, name)["default"].grad, rtol=1e-4, atol=1e-7)


def test_training_lowers_the_loss_and_leaves_the_base_alone():
    model = attach(init_seed=0)
    weights = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(15):
        loss = model(input_ids=TOKENS, labels=TOKENS).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.1
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters() if not p.requires_grad)


def test_registering_again_changes_nothing():
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    before = PEFT_TYPE_TO_TUNER_MAPPING[PEFT_TYPE]
    register()
    assert PEFT_TYPE_TO_TUNER_MAPPING[PEFT_TYPE] is before


def test_an_output_layer_with_the_embeddings_weight_is_refused():
    """Merged, its adapter would change the embeddings, too; a weight of its own is adapted and merged as any other."""
    model = make_llama(tie_word_embeddings=True)
    with pytest.raises(ModelError, match=r"'lm_head' shares its weight with 'model.embed_tokens'"):
        attach(model, target_modules=["lm_head"])
    assert not adapted_layers(model)
    assert len(adapted_layers(attach(make_llama(tie_word_embeddings=False), target_modules=["lm_head"]))) == 1


def test_a_layer_written_otherwise_that_does_the_same_is_adapted():
    config = FalconConfig(vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    model = attach(FalconForCausalLM(config).eval())
    ids = torch.arange(8).view(1, 8)
    for layer in adapted_layers(model):
        nn.init.normal_(layer.bounded_lora_B["default"], std=0.1)
    with torch.no_grad():
        adapted = model(input_ids=ids).logits
        with model.disable_adapter():
            assert not torch.allclose(model(input_ids=ids).logits, adapted, atol=1e-3)
        merged = model.merge_and_unload()(input_ids=ids).logits
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-5)


def test_regular_expression_and_all_linear_targets():
    assert len(adapted_layers(attach(target_modules=r".*mlp\.(up|down)_proj"))) == 4
    assert len(adapted_layers(attach(target_modules="all-linear"))) == 14
    assert len(adapted_layers(attach(exclude_modules=["down_proj"]))) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, "The rank r is 0, a whole number of at least 1"),
        ({"r": True}, "The rank r is True"),
        ({"bound": "sinus"}, r"Unknown bound 'sinus'\. Did you mean 'sine'"),
        ({"omega": 0}, "omega is 0, a number other than 0"),
        ({"omega": float("nan")}, "omega is nan"),
        ({"omega": float("inf")}, "omega is inf"),
        ({"scale": 0.0}, r"scale is 0\.0, a number above 0"),
        ({"scale": -1}, "scale is -1"),
        ({"lora_alpha": float("inf")}, "lora_alpha is inf"),
        ({"scale": 1.0, "lora_alpha": 2}, "Give one of them"),
        ({"layers_pattern": "layers"}, "Give both or neither"),
        ({"target_modules": "("}, r"target_modules is '\(', which is no regular expression: missing \), unterminated"),
        ({"exclude_modules": "*"}, r"exclude_modules is '\*', which is no regular expression: nothing to repeat"),
        ({"r": -1, "omega": 0}, "rank r is -1.* omega is 0"),
        ({"bound": ["sine"]}, r"Unknown bound '\['sine'\]'"),
        ({"target_modules": 5}, "target_modules is 5. Give names of layers"),
        ({"exclude_modules": [0]}, r"exclude_modules is \[0\]. Give names of layers"),
        ({"omega": 1e39}, r"omega is 1e\+39, a number other than 0 that float32 can hold"),
    ],
)
def test_wrong_options_are_refused_together(options, message):
    with pytest.raises(ConfigError, match=message):
        BoundedLoraConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["mlp.fc9"]}, r"No layer matches \['mlp\.fc9'\]\. Linear layers: "),
        ({"target_modules": ["mlp.upproj", "down_proj"]}, "closest: 'mlp.up_proj'"),
        ({"target_modules": "nothing.*"}, "No layer is left to adapt"),
        ({"target_modules": ["up_proj"], "layers_to_transform": [9]}, "There is no block 9: the model has 2 blocks"),
        ({"exclude_modules": ["up_proj", "gate_proj", "down_proj"]}, "No layer is left to adapt"),
        ({"target_modules": ["embed_tokens"]}, "is a Embedding, only Linear and Conv1D"),
    ],
)
def test_targets_that_cannot_be_adapted_are_refused_and_the_model_stays(options, message):
    model = make_llama()
    with pytest.raises(ModelError, match=message):
        attach(model, **options)
    assert not adapted_layers(model)


class OwnForward(nn.Linear):
    """Does as a Linear layer does, but who knows."""

    def forward(self, x):
        return super().forward(x)


def test_quantized_foreign_and_parametrized_layers_are_refused():
    model = nn.Sequential(OwnForward(4, 4), nn.Linear(4, 4))
    with pytest.raises(ModelError, match="OwnForward, which has a forward pass of its own"):
        attach(model, target_modules=["0"])
    whole_numbers = nn.Linear(4, 4)
    whole_numbers.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ModelError, match=r"weights of type torch.int8: a quantised layer"):
        attach(nn.Sequential(whole_numbers), target_modules=["0"])
    nn.utils.parametrizations.weight_norm(model[1])
    with pytest.raises(ModelError, match="parametri"):
        attach(model, target_modules=["1"])
    lora = get_peft_model(nn.Sequential(nn.Linear(4, 4)), LoraConfig(target_modules=["0"])).get_base_model()
    with pytest.raises(ModelError, match="adapter of another method"):
        check_layer("0", lora[0])


def test_options_may_be_numbers_of_numpy(tmp_path):
    model = attach(r=np.int64(2), scale=np.float32(0.5), omega=np.float64(30))
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (saved["r"], saved["scale"], saved["omega"]) == (2, 0.5, 30.0)
