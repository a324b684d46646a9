import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import training_step
    finally:
        sys.path.remove(str(BENCHMARKS))
    return training_step


def test_variants_that_are_compared_compute_the_same_step(bench):
    base, _ = bench.load_base(quick=True)
    batch = bench.make_batch(bench.Size(2, 8), base.config.vocab_size)
    losses, gradients = {}, {}
    for variant in bench.VARIANTS:
        _, forward, trained = bench.make_step(base, batch, variant)
        losses[variant] = forward()
        losses[variant].backward()
        gradients[variant] = [parameter.grad for parameter in trained]
    for adapter in ("bounded", "LoRA of PEFT", "naive sine"):
        at_labels, everywhere = f"{adapter}, label logits", f"{adapter}, all logits"
        torch.testing.assert_close(losses[at_labels], losses[everywhere])
        torch.testing.assert_close(gradients[at_labels], gradients[everywhere])
    torch.testing.assert_close(losses["bounded, label logits"], losses["naive sine, label logits"])
    torch.testing.assert_close(gradients["bounded, label logits"], gradients["naive sine, label logits"])
    assert len(gradients["bounded, label logits"]) == len(gradients["LoRA of PEFT, label logits"]) == 2 * 3 * 2
    assert not torch.equal(losses["bounded, label logits"], losses["frozen model, label logits"])
    assert all(parameter.grad is None for parameter in base.parameters())


def test_floor_counts_the_third_product_only_for_elementwise_changes(bench):
    seconds = {"forward and dx": 4.0, "dy.T @ x": 2.0, "head, label logits": 1.0, "head, all logits": 1.5}
    turn = {f"products: {name}": (value, 0.0) for name, value in seconds.items()}
    floors = {variant: bench.floor_of(turn, variant) for variant in bench.VARIANTS}
    assert floors["bounded, label logits"] == 7.0
    assert floors["naive sine, all logits"] == 7.5
    assert floors["LoRA of PEFT, label logits"] == floors["frozen model, label logits"] == 5.0
