"""Weight clipping: the entries of A and B after every update."""

import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model

from reference.adapter_twins import clipped_entries
from stable_forgetting.adapters import BoundedLoraConfig, adapter_statistics
from stable_forgetting.config import TrainingConfig
from stable_forgetting.errors import ConfigError
from stable_forgetting.models.tasks import ImageTask, LanguageTask
from stable_forgetting.objectives import build_objective
from stable_forgetting.training import Sets, Validation, train
from tiny_models import FakeTokenizer, image_set, language_set, tiny_image_model, tiny_language_model

LIMIT = 0.015625
"""A power of two, so that it is the same number in every precision."""
TASK = LanguageTask(FakeTokenizer())
OBJECTIVE = build_objective("gradient_difference")


def adapted_model():
    config = BoundedLoraConfig(init_seed=0, bound="identity", omega=1.0, scale=1.0)
    return get_peft_model(tiny_language_model(), config)


def train_adapter(output_dir, model=None, resume=False, **changes):
    """Train on six forget and ten retain examples; returns the matrices by name, and the outcome."""
    model = model or adapted_model()
    base = {"steps": 6, "learning_rate": 1e-2, "forget_batch_size": 3, "retain_batch_size": 2, "save_every": 2}
    outcome = train(
        model,
        TASK,
        OBJECTIVE,
        Sets(language_set("forget", 6, 1), language_set("retain", 10, 2)),
        settings=TrainingConfig(**base | changes),
        output_dir=output_dir,
        validation=Validation(lambda model: {"largest": largest(factors(model))}, {"largest": False}),
        resume=resume,
    )
    return factors(model), outcome


def factors(model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if "bounded_lora" in name}


def largest(found: dict[str, torch.Tensor]) -> float:
    return max(value.abs().max().item() for value in found.values())


@pytest.mark.parametrize("accumulation", [1, 2])
def test_one_update_is_that_without_clipping_with_its_entries_clipped(tmp_path, accumulation):
    changes = {"steps": 1, "warmup_share": 0.0, "gradient_accumulation": accumulation}
    plain, _ = train_adapter(tmp_path / "plain", **changes)
    clipped, _ = train_adapter(tmp_path / "clipped", max_weight=0.005, **changes)
    assert all(matrix.any() for matrix in plain.values())  # B starts at 0
    for name, matrix in plain.items():
        assert clipped[name].tolist() == clipped_entries(matrix, 0.005), name
        assert not torch.equal(clipped[name], matrix), name


def test_after_every_update_all_entries_are_within_the_limit(tmp_path):
    assert largest(factors(adapted_model())) > 10 * LIMIT  # the random start of A
    found, outcome = train_adapter(tmp_path, max_weight=LIMIT, evaluate_every=1, gradient_accumulation=2)
    assert [step.validation["largest"] for step in outcome.history] == [LIMIT] * 6
    assert all((matrix.abs() < LIMIT).any() for matrix in found.values())
    model = adapted_model()
    model.load_state_dict(found, strict=False)
    assert 0 < adapter_statistics(model).largest_entry <= 4 * LIMIT**2


def test_a_limit_above_all_entries_changes_no_bit(tmp_path):
    plain, _ = train_adapter(tmp_path / "plain")
    limit = 1.5 * largest(plain)
    clipped, _ = train_adapter(tmp_path / "clipped", max_weight=limit)
    assert all(torch.equal(matrix, clipped[name]) for name, matrix in plain.items())


def test_a_resumed_training_ends_with_the_same_bits(tmp_path):
    whole, _ = train_adapter(tmp_path / "whole", max_weight=LIMIT)
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "killed" / "checkpoint-4")
    resumed, _ = train_adapter(tmp_path / "killed", max_weight=LIMIT, resume=True)
    assert all(torch.equal(matrix, resumed[name]) for name, matrix in whole.items())


def test_modules_that_are_trained_whole_are_not_clipped(tmp_path):
    config = BoundedLoraConfig(init_seed=0, modules_to_save=["classifier"])
    model = get_peft_model(tiny_image_model(), config)
    head = model.get_base_model().classifier.modules_to_save["default"].weight
    head.data.fill_(0.5)
    train(
        model,
        ImageTask(processor=None),
        OBJECTIVE,
        Sets(image_set("forget", 6, 1), image_set("retain", 8, 2)),
        settings=TrainingConfig(steps=2, max_weight=LIMIT),
        output_dir=tmp_path,
    )
    assert largest(factors(model)) == LIMIT
    assert head.min() > 0.4


def test_a_model_without_an_adapter_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"training\.max_weight is 1, but the model has no adapter"):
        train_adapter(tmp_path, model=tiny_language_model(), max_weight=1.0)


def test_an_adapter_of_another_kind_is_refused(tmp_path):
    """Nothing of it would be clipped."""
    model = get_peft_model(tiny_language_model(), LoraConfig(target_modules=["up_proj"]))
    with pytest.raises(ConfigError, match=r"training\.max_weight is 1, but the model has no adapter"):
        train_adapter(tmp_path, model=model, max_weight=1.0)
