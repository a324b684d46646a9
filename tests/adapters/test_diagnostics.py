"""The certificate of the bound and the measures of a change, against loops over entries."""

import math

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from reference.adapter_twins import naive_change_facts, naive_delta
from stable_forgetting.adapters import (
    BOUNDS,
    BoundedLoraConfig,
    BoundedLoraLinear,
    adapter_statistics,
    certificate,
    effective_rank,
    functional,
    rounding_steps,
)
from stable_forgetting.adapters import diagnostics as diagnostics_module
from stable_forgetting.errors import ConfigError, ModelError

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
every_bound = pytest.mark.parametrize("bound", BOUNDS)


def make_model(bound="sine", omega=3.0, size=1.0, **options):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4))
    model = get_peft_model(base, BoundedLoraConfig(bound=bound, omega=omega, target_modules=["0", "2"], **options))
    for layer in layers_of(model):
        nn.init.normal_(layer.bounded_lora_B["default"], std=size)
    return model


def layers_of(model):
    return [module for module in model.modules() if isinstance(module, BoundedLoraLinear)]


def slow_facts(layer, bound, omega=3.0):
    scale = layer.bounded_lora_settings["default"].scale
    a, b = layer.bounded_lora_A["default"].detach(), layer.bounded_lora_B["default"].detach()
    delta = naive_delta(a, b, bound=bound, omega=omega, scale=scale)
    return naive_change_facts(delta, None if bound == "identity" else scale), scale


@every_bound
@pytest.mark.parametrize("block_bytes", [1, 2**20])
def test_certificate_agrees_with_loops(bound, block_bytes, monkeypatch):
    monkeypatch.setattr(functional, "CACHE_BLOCK_BYTES", block_bytes)
    model = make_model(bound)
    certificates = certificate(model)
    assert [c.name for c in certificates] == ["0", "2"]
    for layer, found in zip(layers_of(model), certificates, strict=True):
        (largest, norm, _), scale = slow_facts(layer, bound)
        assert found.largest_entry == pytest.approx(largest, rel=1e-5)
        assert found.frobenius_norm == pytest.approx(norm, rel=1e-5)
        assert (found.adapter, found.bound, found.rank, found.omega, found.scale) == ("default", bound, 4, 3.0, scale)
        if bound == "identity":
            assert found.entry_limit is None
            assert found.frobenius_limit is None
            assert not found.holds
        else:
            assert found.entry_limit == scale
            assert found.frobenius_limit == pytest.approx(scale * math.sqrt(layer.in_features * layer.out_features))
            assert found.holds


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_merged", [False, True])
def test_changes_below_half_a_step_of_the_weights_type_are_counted(dtype, is_merged, monkeypatch):
    monkeypatch.setattr(functional, "CACHE_BLOCK_BYTES", 100)
    torch.manual_seed(0)
    base = nn.Sequential(Conv1D(300, 40), nn.Linear(300, 4)).to(dtype)
    nn.init.normal_(base[0].weight, std=0.02)
    model = get_peft_model(base, BoundedLoraConfig(bound="identity", omega=1.0, scale=1.0, target_modules=["0", "1"]))
    assert [c.unchanged_share for c in certificate(model)] == [1, 1]
    for layer in layers_of(model):
        nn.init.normal_(layer.bounded_lora_B["default"], std=2e-4)
    weight = base[0].base_layer.weight
    changed = weight.detach().float() + layers_of(model)[0].get_delta_weight("default")
    expected = (changed.to(dtype) == weight).float().mean().item()
    if is_merged:
        model.merge_adapter()
    found = certificate(model)[0].unchanged_share
    assert found == pytest.approx(expected)
    assert (found > 0.1) == (dtype == torch.bfloat16)


@pytest.mark.parametrize("bound", [name for name, bound in BOUNDS.items() if bound.limit is not None])
def test_bound_holds_for_weights_of_any_size(bound):
    for size in (1e-6, 1.0, 1e4, 1e20):
        assert all(c.holds for c in certificate(make_model(bound, omega=100.0, size=size)))


def test_certificate_does_not_hold_beyond_the_limit_or_for_undefined_entries(monkeypatch):
    model = make_model("clip", size=100.0)
    assert all(c.holds for c in certificate(model))
    monkeypatch.setattr(diagnostics_module, "_entry_limit", lambda change: 0.999 * change.scale)
    assert not any(c.holds for c in certificate(model))
    monkeypatch.undo()
    layers_of(model)[0].bounded_lora_B["default"].data[0, 0] = float("nan")
    assert [c.holds for c in certificate(model)] == [False, True]


@every_bound
def test_statistics_agree_with_loops_over_all_layers(bound):
    model = make_model(bound, size=2.0)
    facts = [slow_facts(layer, bound) for layer in layers_of(model)]
    sizes = [layer.in_features * layer.out_features for layer in layers_of(model)]
    found = adapter_statistics(model)
    assert found.largest_entry == pytest.approx(max(f[0] for f, _ in facts), rel=1e-5)
    assert found.frobenius_norm == pytest.approx(math.hypot(*(f[1] for f, _ in facts)), rel=1e-5)
    if bound == "identity":
        assert found.limit is None
        assert found.largest_share is None
        assert found.saturated_share is None
    else:
        assert found.limit == max(scale for _, scale in facts)
        share = sum(f[2] * n for (f, _), n in zip(facts, sizes, strict=True)) / sum(sizes)
        assert found.saturated_share == pytest.approx(share)
        assert found.largest_share == pytest.approx(max(f[0] / scale for f, scale in facts), rel=1e-5)


def test_the_share_is_that_of_the_layers_own_limit():
    """The first layer has the larger limit and no change, the second is at its limit."""
    model = make_model("clip", size=1e6)
    nn.init.zeros_(layers_of(model)[0].bounded_lora_B["default"])
    found = adapter_statistics(model)
    assert found.largest_entry < 0.9 * found.limit
    assert found.largest_share == pytest.approx(1.0)


def test_saturated_share_of_a_large_clipped_change_is_one_and_of_a_fresh_one_zero():
    assert adapter_statistics(make_model("clip", size=1e6)).saturated_share == pytest.approx(1.0, abs=0.02)
    fresh = adapter_statistics(make_model("clip", size=0.0))
    assert (fresh.saturated_share, fresh.largest_entry, fresh.frobenius_norm) == (0.0, 0.0, 0.0)


def test_every_active_adapter_has_its_certificate():
    model = make_model("sine")
    model.add_adapter("second", BoundedLoraConfig(bound="identity", target_modules=["2"]))
    assert len(certificate(model)) == 2
    model.base_model.set_adapter(["default", "second"])
    assert [(c.name, c.adapter) for c in certificate(model)] == [("0", "default"), ("2", "default"), ("2", "second")]
    assert adapter_statistics(model).limit is None


def test_model_without_adapters_is_refused():
    for measure in (certificate, adapter_statistics):
        with pytest.raises(ModelError, match="no active bounded adapter"):
            measure(nn.Linear(2, 2))


def test_effective_rank_of_known_matrices():
    assert effective_rank(torch.eye(5)) == pytest.approx(5.0)
    assert effective_rank(torch.ones(4, 3)) == pytest.approx(1.0, abs=1e-3)
    assert effective_rank(torch.zeros(2, 2)) == 0.0
    shares = torch.tensor([0.75, 0.25])
    expected = math.exp(-(shares * shares.log()).sum())
    assert effective_rank(torch.diag(shares * 8)) == pytest.approx(expected, rel=1e-5)


def test_sine_of_high_frequency_has_a_higher_effective_rank_than_lora():
    torch.manual_seed(0)
    a, b = torch.randn(2, 40), torch.randn(30, 2)
    ranks = [effective_rank(naive_delta(a, b, bound=n, omega=50.0, scale=1.0)) for n in ("sine", "identity")]
    assert ranks[0] > 10 > 2.01 > ranks[1]


def test_rounding_steps_by_hand():
    weight = torch.tensor([[127.0, -3.0], [0.0, 1.27], [0.0, 0.0]])
    delta = torch.tensor([[0.5, 0.2], [-0.02, 0.001], [9.0, 9.0]])
    found = rounding_steps(weight, delta, bits=8)
    assert found.largest == pytest.approx(2.0, rel=1e-5)
    assert found.share_above_half == 0.5
    assert found.root_mean_square == pytest.approx(math.sqrt((0.25 + 0.04 + 4 + 0.01) / 4), rel=1e-5)
    assert rounding_steps(weight, delta, bits=4).largest == pytest.approx(2.0 * 7 / 127, rel=1e-5)


@pytest.mark.parametrize(
    ("weight", "bits", "message"),
    [
        (torch.ones(2, 3), 1, "bits is 1"),
        (torch.ones(3, 2), 8, r"shape \(3, 2\)"),
        (torch.zeros(2, 3), 8, "Every row of the weight is zero"),
    ],
)
def test_rounding_steps_refuses_what_has_no_step(weight, bits, message):
    with pytest.raises(ConfigError, match=message):
        rounding_steps(weight, torch.ones(2, 3), bits=bits)
