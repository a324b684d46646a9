"""Models in 4 and 8 bits: how they are read, their identity, and what is refused."""

import importlib.util

import pytest
import torch

from stable_forgetting import processes
from stable_forgetting.adapters.base_weight import quantization_of
from stable_forgetting.config import parse_config
from stable_forgetting.errors import ConfigError, ModelError
from stable_forgetting.models.load import (
    ModelSource,
    load_model,
    load_without_weights,
    model_sha256,
    save_model,
    weights_sha256,
)
from stable_forgetting.runs.models import configured_source, other_source
from tiny_problem import TinyProblem, make_language_problem

pytest.importorskip("bitsandbytes", reason="needs the extra 'quantized'")
every_width = pytest.mark.parametrize("quantization", ["4bit", "8bit"])


@pytest.fixture(scope="module")
def problem(tmp_path_factory) -> TinyProblem:
    return make_language_problem(tmp_path_factory.mktemp("language"))


def load(problem, quantization, dtype="float32"):
    return load_model(ModelSource(str(problem.model), "language", dtype=dtype, quantization=quantization))


def inner_layers(model):
    return [
        module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and "layers" in name
    ]


@every_width
def test_linear_layers_are_quantised_and_the_head_is_not(problem, quantization):
    model = load(problem, quantization, "bfloat16").model
    assert not model.training
    assert {quantization_of(layer) for layer in inner_layers(model)} == {quantization}
    assert quantization_of(model.lm_head) is None
    assert model.lm_head.weight.dtype == torch.bfloat16


def test_four_bits_are_nf4_with_quantised_scales_and_compute_in_the_type_asked_for(problem):
    for dtype in ("float32", "bfloat16"):
        for layer in inner_layers(load(problem, "4bit", dtype).model):
            state = layer.weight.quant_state
            assert (state.quant_type, state.nested, layer.compute_dtype) == ("nf4", True, getattr(torch, dtype))


@every_width
def test_codes_and_scales_count_for_the_hash_and_using_the_model_does_not_change_it(problem, quantization):
    loaded = load(problem, quantization)
    first = model_sha256(loaded.model)
    assert first != model_sha256(load(problem, None).model)
    assert first == model_sha256(load(problem, quantization).model)
    for layer in inner_layers(loaded.model):
        layer.support_avx512bf16_for_cpu = getattr(layer, "support_avx512bf16_for_cpu", False)
        assert not layer.support_avx512bf16_for_cpu, "would be repacked by its first forward pass on some CPUs"
    with torch.no_grad():
        loaded.model(input_ids=torch.arange(6)[None])
    assert model_sha256(loaded.model) == first
    layer = inner_layers(loaded.model)[0]
    layer.weight.data.view(-1)[-1] += 1
    changed = model_sha256(loaded.model)
    layer.weight.data.view(-1)[-1] -= 1
    assert changed != first == model_sha256(loaded.model)
    scales = layer.weight.quant_state.absmax if quantization == "4bit" else layer.state.SCB
    scales.view(-1)[-1] += 1
    assert model_sha256(loaded.model) != first


@every_width
def test_a_model_that_was_saved_quantised_is_the_same_again(problem, quantization, tmp_path):
    loaded = load(problem, quantization)
    save_model(loaded, tmp_path / "model")
    again = load_model(ModelSource(str(tmp_path / "model"), "language"))
    assert weights_sha256(again.model) == weights_sha256(loaded.model)


def test_models_that_cannot_be_quantised_are_refused():
    with pytest.raises(ConfigError, match="built-in model 'builtin:people' cannot be quantised to 4bit"):
        load_model(ModelSource("builtin:people", "language", quantization="4bit"))
    with pytest.raises(ConfigError, match="GGUF model"):
        load_without_weights(ModelSource("folder", "language", gguf_file="model.gguf", quantization="8bit"))


def test_missing_bitsandbytes_names_the_extra(problem, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find_spec(name))
    with pytest.raises(ModelError, match=r"pip install 'stable-forgetting\[quantized\]'"):
        load(problem, "4bit")
    with pytest.raises(ModelError, match="which is not installed"):
        load_without_weights(ModelSource(str(problem.model), "language", quantization="4bit"))


def test_the_setting_reaches_every_model_of_a_run(problem):
    config = problem.config(model__quantization="8bit")
    assert configured_source(config, None).quantization == "8bit"
    assert other_source(config, "elsewhere").quantization == "8bit"
    assert configured_source(problem.config(), None).quantization is None


@pytest.mark.parametrize("change", [{"merge": True}, {"model__finetune": {"epochs": 1}}])
def test_finetuning_and_merging_rounded_weights_are_refused_before_the_run(problem, change):
    with pytest.raises(ConfigError, match="neither finetuned nor merged"):
        parse_config(problem.changed(model__quantization="4bit", **change))
    parse_config(problem.changed(**change))


def test_quantised_weights_are_not_divided_between_processes(problem, monkeypatch):
    monkeypatch.setattr(processes, "shards_models", lambda: True)
    with pytest.raises(ConfigError, match=r"4bit.*FSDP.*ddp\.yaml"):
        load(problem, "4bit")
