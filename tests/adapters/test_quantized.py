"""Bounded adapters over the 4-bit and 8-bit layers of bitsandbytes, against the whole dequantised weight."""

import copy
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from reference.adapter_twins import naive_linear
from stable_forgetting.adapters import (
    BoundedLoraConfig,
    LowRankChange,
    base_weight,
    bounded_linear,
    certificate,
    get_bound,
)
from stable_forgetting.adapters.base_weight import (
    check_quantized,
    keep_quantized_layout,
    quantization_of,
    quantized_weight,
    reads_rows_right,
)
from stable_forgetting.adapters.diagnostics import adapter_statistics
from stable_forgetting.adapters.functional import effective_rows
from stable_forgetting.adapters.layer import BoundedLoraLinear
from stable_forgetting.adapters.rounding import rounding_steps
from stable_forgetting.errors import ConfigError, ModelError

bnb = pytest.importorskip("bitsandbytes", reason="needs the extra 'quantized'")
bnb_functional = pytest.importorskip("bitsandbytes.functional")

# PEFT asks transformers 5 in the old words.
pytestmark = pytest.mark.filterwarnings("ignore:`.*gradient_checkpointing.*` is deprecated:FutureWarning")
TOKENS = torch.arange(24).reshape(2, 12)
FOUR_BIT = {f"{kind}{'-double' if nested else ''}": (kind, nested) for kind in ("nf4", "fp4") for nested in (0, 1)}
every_kind = pytest.mark.parametrize("kind", [*FOUR_BIT, "int8"])


def four_bit(num_in, num_out, kind="nf4", nested=1, dtype=torch.float32, bias=True, storage=torch.uint8, blocksize=64):
    generator = torch.Generator().manual_seed(3)
    layer = bnb.nn.Linear4bit(num_in, num_out, bias=bias, compute_dtype=dtype, quant_storage=storage)
    weight = torch.randn(num_out, num_in, generator=generator).to(dtype)
    layer.weight = bnb.nn.Params4bit(
        weight,
        compress_statistics=bool(nested),
        quant_type=kind,
        quant_storage=storage,
        blocksize=blocksize,
        module=layer,
    )
    return layer.to("cpu").requires_grad_(False)


def eight_bit(num_in, num_out, **options):
    layer = bnb.nn.Linear8bitLt(num_in, num_out, has_fp16_weights=False, threshold=6.0, **options)
    layer.weight.data = torch.randn(num_out, num_in, generator=torch.Generator().manual_seed(3))
    return layer.to("cpu").requires_grad_(False)


def make_layer(kind, num_in=128, num_out=40, **options):
    return eight_bit(num_in, num_out) if kind == "int8" else four_bit(num_in, num_out, *FOUR_BIT[kind], **options)


def dense_weight(layer):
    """The whole weight, entry by entry: bitsandbytes' own kernel for AVX-512 is wrong for rows of broken blocks."""
    if isinstance(layer, bnb.nn.Linear4bit):
        state = layer.weight.quant_state
        scales = state.absmax
        if state.nested:
            scales = bnb_functional.dequantize_blockwise(scales, state.state2) + state.offset
        codes = layer.weight.data.cpu().reshape(-1).view(torch.uint8)
        entries = torch.stack([codes >> 4, codes & 15], dim=1).reshape(-1)[: state.shape.numel()].long()
        each = scales.cpu().float().repeat_interleave(state.blocksize)[: state.shape.numel()]
        return (state.code.cpu()[entries] * each).reshape(state.shape).to(layer.weight.device)
    scales = layer.weight.SCB if layer.state.SCB is None else layer.state.SCB
    return bnb_functional.int8_vectorwise_dequant(layer.weight.data, scales)


def make_change(num_in, num_out, rank=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, num_in, generator=generator).requires_grad_()
    b = torch.randn(num_out, rank, generator=generator).requires_grad_()
    return LowRankChange(a, b, get_bound("sine"), 1.5, 0.3)


def naive_output(x, layer, *changes):
    adapters = [(c.lora_a, c.lora_b, c.bound.name, c.omega, c.scale) for c in changes]
    return naive_linear(x, dense_weight(layer), layer.bias, adapters)


def gradients_of(output, leaves):
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return torch.autograd.grad((output * weights).sum(), leaves)


@every_kind
@pytest.mark.parametrize("width", [96, 7, 64, 33])
def test_any_rows_are_those_of_the_whole_weight(kind, width):
    layer = make_layer(kind, num_in=width)
    weight = quantized_weight(layer, torch.float32)
    rows, whole = weight.read(weight.stored), dense_weight(layer)
    assert tuple(rows.shape) == (40, width)
    for part in (slice(0, 40), slice(0, 1), slice(5, 6), slice(39, 40), slice(3, 29), slice(None)):
        got = rows[part]
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, whole[part], rtol=1e-6, atol=0)
        if kind != "int8":
            assert torch.equal(got, whole[part])


@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("blocksize", [64, 1024])
def test_storage_type_and_blocksize_make_no_difference(storage, blocksize):
    layer = four_bit(128, 40, storage=storage, blocksize=blocksize)
    weight = quantized_weight(layer, torch.float32)
    assert torch.equal(weight.read(weight.stored)[11:17], dense_weight(layer)[11:17])


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from([*FOUR_BIT, "int8"]),
    tokens=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    num_in=st.integers(1, 70),
    num_out=st.integers(1, 20),
    num_changes=st.integers(1, 2),
    max_block_bytes=st.sampled_from([1, 3000, 2**20]),
)
def test_product_and_gradients_agree_with_the_slow_twin(kind, tokens, num_in, num_out, num_changes, max_block_bytes):
    layer = make_layer(kind, num_in=num_in, num_out=num_out)
    layer.bias.requires_grad_()
    x = torch.randn(*tokens, num_in, generator=torch.Generator().manual_seed(1)).requires_grad_()
    changes = [make_change(num_in, num_out, seed=seed) for seed in range(num_changes)]
    leaves = [x, layer.bias, *(factor for change in changes for factor in (change.lora_a, change.lora_b))]
    weight = quantized_weight(layer, x.dtype)
    fast = bounded_linear(x, weight, layer.bias, changes, max_block_bytes=max_block_bytes)
    slow = naive_output(x, layer, *changes)
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradients_of(fast, leaves), gradients_of(slow, leaves), rtol=1e-4, atol=1e-3)


@every_kind
def test_only_codes_input_and_factors_are_kept_between_the_passes(kind):
    layer = make_layer(kind)
    x = torch.randn(10, 128, requires_grad=True)
    change = make_change(128, 40)
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        bounded_linear(x, quantized_weight(layer, x.dtype), layer.bias, [change])
    code_bytes = 128 * 40 // (1 if kind == "int8" else 2)
    assert sum(saved.values()) == code_bytes + 4 * (x.numel() + change.lora_a.numel() + change.lora_b.numel())
    assert layer.weight.data_ptr() in saved


class CountedRows:
    """Notes how many rows are read at a time."""

    def __init__(self, rows):
        self.rows, self.shape, self.heights = rows, rows.shape, []

    def __getitem__(self, part):
        dense = self.rows[part]
        self.heights.append(dense.shape[0])
        return dense


def test_no_pass_reads_more_rows_at_once_than_the_blocks_allow():
    layer = four_bit(64, 4096)
    weight = quantized_weight(layer, torch.float32)
    opened = []

    def read(stored):
        opened.append(CountedRows(weight.read(stored)))
        return opened[-1]

    counted = type(weight)(weight.stored, read, weight.dtype)
    x = torch.randn(2, 64, requires_grad=True)
    budget = 2**18
    bounded_linear(x, counted, None, [make_change(64, 4096)], max_block_bytes=budget).sum().backward()
    backward = opened[1].heights
    assert sum(backward) == 4096
    assert 4 * max(backward) * 64 * 4 <= budget // 2
    assert len(opened) == 2


@pytest.mark.parametrize("kind", FOUR_BIT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fresh_adapter_has_the_bits_of_the_four_bit_layer(kind, dtype):
    layer = make_layer(kind, dtype=dtype)
    for input_dtype in {dtype, torch.float32}:
        x = torch.randn(2, 5, 128).to(input_dtype)
        expected = layer(x)
        adapted = attach(nn.Sequential(copy.deepcopy(layer)), target_modules=["0"])
        output = adapted(x)
        assert output.dtype == input_dtype
        assert torch.equal(output, expected)


def test_a_compute_type_that_is_not_given_is_that_of_the_input():
    layer = four_bit(128, 40)
    layer.compute_dtype, layer.compute_type_is_set = None, False
    x = torch.randn(3, 128, dtype=torch.bfloat16)
    adapted = attach(nn.Sequential(copy.deepcopy(layer)), target_modules=["0"])
    assert torch.equal(adapted(x), layer(x))


def test_autocast_computes_like_the_four_bit_layer():
    layer = four_bit(128, 40, bias=False)
    adapted = attach(nn.Sequential(copy.deepcopy(layer)), target_modules=["0"])
    x = torch.randn(3, 128)
    with torch.autocast("cpu", torch.bfloat16):
        expected, output = layer(x), adapted(x)
    assert output.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(output, expected, rtol=2e-2, atol=5e-2)


def test_eight_bit_layer_without_adapter_is_its_own_and_with_one_dequantised():
    """The layer's own product rounds the input to 8 bits too; training it on a CPU does not."""
    layer = eight_bit(128, 40)
    x = torch.randn(7, 128)
    adapted = attach(nn.Sequential(copy.deepcopy(layer)), target_modules=["0"]).eval()
    exact = F.linear(x, dense_weight(layer), layer.bias)
    torch.testing.assert_close(adapted(x), exact, rtol=1e-5, atol=1e-5)
    own = layer.eval()(x)
    with adapted.disable_adapter():
        assert torch.equal(adapted(x), own)
    assert 0 < (own - exact).norm() < 0.02 * exact.norm()
    torch.testing.assert_close(layer.train()(x), adapted(x), rtol=1e-5, atol=1e-5)


def attach(model, **options):
    return get_peft_model(model, BoundedLoraConfig(**options))


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory):
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=32, max_position_embeddings=32, bos_token_id=1, eos_token_id=2, **sizes)
    folder = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def load_llama(folder, bits=4):
    if bits == 8:
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.float32)
    keep_quantized_layout(model)  # as `load_model` does: CPUs with AVX512-BF16 would repack it in its first pass
    return model


def randomize(model):
    generator = torch.Generator().manual_seed(1)
    for layer in adapted_layers(model):
        parameter = layer.bounded_lora_B["default"]
        parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def adapted_layers(model):
    return [module for module in model.modules() if isinstance(module, BoundedLoraLinear)]


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


@pytest.mark.parametrize("bits", [4, 8])
def test_model_agrees_with_one_of_the_dequantised_weights(llama_folder, bits):
    model = randomize(attach(load_llama(llama_folder, bits), init_seed=0)).eval()
    plain = AutoModelForCausalLM.from_pretrained(llama_folder)
    for name, module in load_llama(llama_folder, bits).named_modules():
        if quantization_of(module) and "mlp" in name:
            plain.get_submodule(name).weight.data = dense_weight(module)
    for name, module in load_llama(llama_folder, bits).named_modules():
        if quantization_of(module) and "mlp" not in name:
            parent, _, child = name.rpartition(".")
            setattr(plain.get_submodule(parent), child, module)
    plain = randomize(attach(plain, init_seed=0)).eval()
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
def test_detached_and_disabled_adapters_give_the_base_model(llama_folder, bits):
    expected = logits(load_llama(llama_folder, bits))
    model = randomize(attach(load_llama(llama_folder, bits)))
    assert not torch.equal(logits(model), expected)
    with model.disable_adapter():
        assert torch.equal(logits(model), expected)
    assert torch.equal(logits(model.unload()), expected)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("prepare", ["nothing", "checkpointing", "kbit", "kbit not reentrant"])
def test_training_lowers_the_loss_and_leaves_the_base_alone(llama_folder, bits, prepare):
    model = load_llama(llama_folder, bits)
    if prepare.startswith("kbit"):
        kwargs = {"use_reentrant": prepare == "kbit"}
        model = prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs=kwargs)
    model = attach(model, init_seed=0)
    if prepare == "checkpointing":
        model.enable_input_require_grads()
        model.get_base_model().activation_checkpointing_enable()
    codes = [layer.base_layer.weight.detach().clone() for layer in adapted_layers(model)]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(trainable) == 2 * len(adapted_layers(model)) == 12
    optimizer = torch.optim.SGD(trainable, lr=0.02)
    losses = []
    for _ in range(8):
        loss = model.train()(input_ids=TOKENS, labels=TOKENS).loss
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        assert all(layer.bounded_lora_B["default"].grad.abs().max() > 0 for layer in adapted_layers(model))
        optimizer.step()
    assert losses[-1] < losses[0]
    assert all(
        torch.equal(layer.base_layer.weight, before) for layer, before in zip(adapted_layers(model), codes, strict=True)
    )


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("merge", ["merge_and_unload", "merge_adapter", "layer"])
def test_merging_is_refused_and_the_change_stays(llama_folder, bits, merge):
    model = randomize(attach(load_llama(llama_folder, bits)))
    before = logits(model)
    with pytest.raises(ModelError, match="without quantisation"):
        adapted_layers(model)[0].merge() if merge == "layer" else getattr(model, merge)()
    assert torch.equal(logits(model), before)
    assert not any(layer.merged for layer in adapted_layers(model))


def test_a_model_with_some_quantised_layers_is_not_merged_by_half():
    model = attach(nn.Sequential(nn.Linear(128, 128), four_bit(128, 40)), target_modules=["0", "1"])
    before = model.base_model.model[0].base_layer.weight.clone()
    with pytest.raises(ModelError, match="Layer '1' has 4bit weights"):
        model.merge_adapter()
    assert not model.base_model.model[0].merged
    assert torch.equal(model.base_model.model[0].base_layer.weight, before)


def test_the_saved_adapter_merges_into_the_model_without_quantisation(llama_folder, tmp_path):
    trained = randomize(attach(load_llama(llama_folder)))
    trained.save_pretrained(tmp_path)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama_folder), tmp_path)
    for ours, theirs in zip(adapted_layers(plain), adapted_layers(trained), strict=True):
        assert torch.equal(ours.get_delta_weight("default"), theirs.get_delta_weight("default"))
    expected = logits(plain)
    torch.testing.assert_close(logits(plain.merge_and_unload()), expected, rtol=1e-4, atol=1e-5)
    again = PeftModel.from_pretrained(load_llama(llama_folder), tmp_path)
    assert torch.equal(logits(again), logits(trained))


def test_diagnostics_measure_the_change_whatever_holds_the_weight(llama_folder):
    trained = randomize(attach(load_llama(llama_folder), init_seed=0))
    plain = randomize(attach(AutoModelForCausalLM.from_pretrained(llama_folder), init_seed=0))
    of_floats = certificate(plain)
    assert all(layer.unchanged_share is not None for layer in of_floats)
    assert certificate(trained) == [replace(layer, unchanged_share=None) for layer in of_floats]
    assert all(layer.holds for layer in certificate(trained))
    assert adapter_statistics(trained) == adapter_statistics(plain)
    layer = adapted_layers(trained)[0]
    delta = layer.get_delta_weight("default")
    with pytest.raises(ConfigError, match="get_base_weight"):
        rounding_steps(layer.base_layer.weight, delta, bits=4)
    dense = dense_weight(layer.base_layer)
    assert torch.equal(layer.get_base_weight(), dense)
    assert rounding_steps(layer.get_base_weight(), delta, bits=4) == rounding_steps(dense, delta, bits=4)
    ordinary = adapted_layers(plain)[0]
    assert ordinary.get_base_weight() is ordinary.base_layer.weight


def test_effective_rows_of_a_quantised_weight_are_the_sum():
    layer, change = four_bit(128, 40), make_change(128, 40)
    weight = quantized_weight(layer, torch.float32)
    result = effective_rows(weight.read(weight.stored), [change], dtype=torch.float32)
    torch.testing.assert_close(result, dense_weight(layer) + change.delta().detach())


def test_layers_without_codes_are_refused():
    with pytest.raises(ModelError, match="not quantised yet"):
        check_quantized("0", bnb.nn.Linear4bit(64, 32))
    with pytest.raises(ModelError, match="not quantised yet"):
        attach(nn.Sequential(bnb.nn.Linear8bitLt(64, 32, has_fp16_weights=False)), target_modules=["0"])
    with pytest.raises(ModelError, match="has_fp16_weights=True"):
        attach(nn.Sequential(bnb.nn.Linear8bitLt(64, 32)), target_modules=["0"])


def test_weights_that_were_repacked_for_inference_are_refused_and_adapted_layers_are_never_repacked():
    layer = four_bit(64, 32)
    layer.support_avx512bf16_for_cpu = True
    adapted = attach(nn.Sequential(copy.deepcopy(layer)), target_modules=["0"]).eval()
    codes = adapted.base_model.model[0].base_layer.weight.clone()
    with torch.no_grad(), adapted.disable_adapter():
        adapted(torch.randn(2, 64))
    assert torch.equal(adapted.base_model.model[0].base_layer.weight, codes)
    layer.weight.data, layer.weight.quant_state = bnb_functional._convert_weight_packed_for_cpu(
        layer.weight.data, layer.weight.quant_state
    )
    with pytest.raises(ModelError, match="repacked by bitsandbytes"):
        attach(nn.Sequential(layer), target_modules=["0"])


WITHOUT = """
import sys
sys.modules["bitsandbytes"] = None
import torch
from peft import get_peft_model
from stable_forgetting.adapters import BoundedLoraConfig
model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), BoundedLoraConfig(target_modules=["0"]))
model(torch.randn(2, 4)).sum().backward()
model.merge_and_unload()
print("works")
"""


@pytest.mark.slow
def test_adapters_work_without_bitsandbytes():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "works"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")
@every_kind
def test_layers_on_a_gpu_agree_with_the_slow_twin(kind):
    layer, change = make_layer(kind).cuda(), make_change(128, 40)
    x = torch.randn(5, 128).cuda().requires_grad_()
    change = LowRankChange(change.lora_a.detach().cuda(), change.lora_b.detach().cuda(), change.bound, 1.5, 0.3)
    leaves = [x, change.lora_a.requires_grad_(), change.lora_b.requires_grad_()]
    fast = bounded_linear(x, quantized_weight(layer, x.dtype), layer.bias, [change], max_block_bytes=4000)
    slow = naive_output(x, layer, change)
    torch.testing.assert_close(fast, slow, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(gradients_of(fast, leaves), gradients_of(slow, leaves), rtol=1e-3, atol=1e-2)


def test_a_layer_that_bitsandbytes_computes_wrongly_here_is_refused(monkeypatch):
    """Its kernel for AVX-512 takes wrong scales where rows are broken blocks; other processors have another kernel."""
    layer = four_bit(96, 40)
    own = bnb_functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).reshape(40, 96)
    assert reads_rows_right(96, 64) == torch.allclose(own.float(), dense_weight(layer), rtol=1e-5)
    assert reads_rows_right(128, 64)
    monkeypatch.setattr(base_weight, "reads_rows_right", lambda *_: False)
    with pytest.raises(ModelError, match=r"'up' has rows of 96 weights, which are no whole blocks of 64: .* wrongly"):
        check_quantized("up", layer)
