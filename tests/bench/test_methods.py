"""Methods of a benchmark: all combinations, or those that are named."""

import pytest

from stable_forgetting.bench.methods import method_changes
from stable_forgetting.config.benchmark_options import parse_benchmark
from stable_forgetting.errors import ConfigError


def methods(**given):
    return method_changes(parse_benchmark("tofu", {"model": "m", **given}))


def test_every_objective_with_every_bound_rate_and_seed():
    found = methods(objectives="npo,ascent", bounds="sine,clip", learning_rates="1e-4,1e-3", seeds="0,1")
    assert len(found) == 16
    changes = found["npo-clip-lr1e-4-seed1"]
    assert changes["objective.name"] == "npo"
    assert changes["adapter.bound"] == "clip"
    assert changes["training.learning_rate"] == 1e-4
    assert changes["training.seed"] == changes["adapter.seed"] == 1


def test_named_methods_with_their_own_rates():
    found = methods(methods="gradient_difference:sine:1e-3,npo:identity:3e-4,ascent:weight_clipping", seeds="0,1")
    assert list(found) == [
        f"{name}-seed{seed}"
        for name in ("gradient_difference-sine", "npo-identity", "ascent-weight_clipping")
        for seed in (0, 1)
    ]
    assert found["gradient_difference-sine-seed0"]["training.learning_rate"] == 1e-3
    assert found["npo-identity-seed0"]["training.learning_rate"] == 3e-4
    assert "training.learning_rate" not in found["ascent-weight_clipping-seed0"]
    assert found["ascent-weight_clipping-seed0"]["training.max_weight"] == 0.1


def test_a_rate_is_in_the_name_of_a_method_that_is_named_with_several():
    found = methods(methods="npo:sine:1e-3,npo:sine:1e-4,npo:sine,npo:identity:3e-4")
    rates = {name: changes.get("training.learning_rate") for name, changes in found.items()}
    assert rates == {
        "npo-sine-lr1e-3-seed0": 1e-3,
        "npo-sine-lr1e-4-seed0": 1e-4,
        "npo-sine-seed0": None,
        "npo-identity-seed0": 3e-4,
    }


def test_named_methods_over_common_rates():
    found = methods(methods="gradient_difference:sine,npo:identity", learning_rates="1e-4,1e-3")
    assert list(found) == [
        f"{name}-lr{rate}-seed0" for name in ("gradient_difference-sine", "npo-identity") for rate in ("1e-4", "1e-3")
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"methods": "npo"}, "'npo' is not of the form OBJECTIVE:BOUND"),
        ({"methods": "npo:sine:fast"}, "'npo:sine:fast' is not of the form"),
        ({"methods": "npo:sine:-1"}, "with a rate above 0"),
        ({"methods": "npo:sine:nan"}, "with a rate above 0"),
        ({"methods": "npo:sin"}, "Did you mean 'sine'"),
        ({"methods": "npo:sine,npo:sine"}, "named twice"),
        ({"methods": "npo:sine:1e-3,npo:sine:0.001"}, "named twice"),
        ({"learning_rates": "1e-3,1e-3"}, "named twice"),
        ({"methods": "npo:sine:1e-3", "learning_rates": "1e-4"}, "a learning rate of its own"),
        ({"methods": "npo:sine", "bounds": "clip"}, "bounds would count for nothing"),
        ({"methods": "npo:sine:1e-3", "set": {"training.learning_rate": 1}}, "--learning-rates or --methods"),
        ({"targets": "mlp,attention", "set": {"adapter.target_modules": "x"}}, "Use --targets"),
    ],
)
def test_methods_that_are_not_allowed(given, message):
    with pytest.raises(ConfigError, match=message):
        methods(**given)
