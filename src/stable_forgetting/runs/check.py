"""What a run would do and need, found out before anything is trained and without loading weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from peft import get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from stable_forgetting.adapters import BoundedLoraConfig
from stable_forgetting.config import DataConfig, RunConfig
from stable_forgetting.data.examples import LanguageExample
from stable_forgetting.errors import ConfigError, StableForgettingError, unknown_name
from stable_forgetting.evaluation import VALIDATION_NAMES
from stable_forgetting.models.load import LoadedModel, load_without_weights
from stable_forgetting.models.tasks import LanguageTask
from stable_forgetting.objectives import build_objective
from stable_forgetting.runs.models import configured_source, other_source
from stable_forgetting.runs.sets import Sets, load_set_rows, make_sets, num_classes

Result = TypeVar("Result")

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass
class Check:
    """What was found.

    Args:
        problems: One sentence each; none means that the run can start.
        sets: Number of examples of each set.
        layers: Adapted layers.
        num_trainable: Parameters of the adapter.
        num_base: Parameters of the model.
        memory_bytes: Estimated memory of the unlearning by part.
    """

    problems: list[str] = field(default_factory=list)
    sets: dict[str, int] = field(default_factory=dict)
    layers: list[str] = field(default_factory=list)
    num_trainable: int = 0
    num_base: int = 0
    memory_bytes: dict[str, int] = field(default_factory=dict)


def check_config(config: RunConfig) -> Check:
    """Find all problems at once: a part is tried even if another one failed."""
    found = Check()
    adapter = _attempt(found, lambda: adapter_config(config))
    found.problems = _wrong_names(config)
    rows = _attempt(found, lambda: load_set_rows(config.data))
    classes = num_classes(rows, config.data) if rows and config.task == "image" else None
    loaded = _attempt(found, lambda: load_without_weights(configured_source(config, classes)))
    _attempt(found, lambda: check_retain_model(config))
    sets = None
    if rows is not None and loaded is not None:
        sets = _attempt(
            found, lambda: make_sets(rows, loaded.task, config.data, classes=num_outputs(loaded, config.data))
        )
    if sets is not None and loaded is not None:
        _attempt(found, lambda: check_lengths(loaded.model, sets, config))
        found.sets = {name: len(examples) for name, examples in sets.by_name.items()}
    if loaded is not None and adapter is not None:
        _attempt(found, lambda: _describe_adapter(found, loaded, adapter))
    if loaded is not None and sets is not None and found.layers:
        found.memory_bytes = estimate_memory(loaded.model, sets, config, num_trainable=found.num_trainable)
    return found


def check_names(config: RunConfig) -> None:
    """Check all names and values of a config that a table or the adapter decides on; needs no file.

    Raises:
        ConfigError: Names all problems at once.
    """
    problems = _wrong_names(config)
    if problems:
        raise ConfigError(" ".join(problems))


def check_targets(model: Any, config: RunConfig) -> None:
    """Check that the adapter fits the model, on a copy of its layers without their content.

    Raises:
        ModelError: A target module matches no layer, or the MLP layers of the model's family are not known.
    """
    with torch.device("meta"):
        layers = type(model)(model.config)
    get_peft_model(layers, adapter_config(config))


def num_outputs(loaded: LoadedModel, data: DataConfig) -> int | None:
    """Number of classes that labels may have: the classifier's, or fewer if configured; None for a language model."""
    if isinstance(loaded.task, LanguageTask):
        return None
    outputs = int(loaded.model.config.num_labels)
    return outputs if data.num_classes is None else min(outputs, data.num_classes)


def check_lengths(model: Any, sets: Sets, config: RunConfig) -> None:
    """Check that the longest example and the longest answer fit into the model's positions.

    Raises:
        ConfigError: They do not.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    examples = [example for part in sets.by_name.values() for example in part if isinstance(example, LanguageExample)]
    if positions is None or not examples:
        return
    longest = max(len(example.input_ids) for example in examples)
    if longest > positions:
        raise ConfigError(
            f"The longest example has {longest} tokens, but the model has {positions} positions. "
            f"Set data.max_length to at most {positions}."
        )
    prompt = max((example.num_prompt_tokens for example in examples if example.end_token is not None), default=0)
    if config.evaluation.generate and prompt + config.evaluation.max_new_tokens > positions:
        raise ConfigError(
            f"The longest prompt has {prompt} tokens and evaluation.max_new_tokens is "
            f"{config.evaluation.max_new_tokens}, but the model has {positions} positions. Lower max_new_tokens."
        )


def check_retain_model(config: RunConfig) -> None:
    """Check that the retain model is there, if the config names one; its weights are not read.

    Raises:
        ModelError: It cannot be found, or its config cannot be read.
    """
    if config.retain_model is not None:
        load_without_weights(other_source(config, config.retain_model))


def _wrong_names(config: RunConfig) -> list[str]:
    chosen, found = config.objective, Check()
    _attempt(found, lambda: build_objective(chosen.name, retain=chosen.retain, beta=chosen.beta))
    _attempt(found, lambda: adapter_config(config))
    known = VALIDATION_NAMES[config.task]
    used = [rule.metric for rule in config.training.stop]
    used += [config.training.best_metric] if config.training.best_metric else []
    return found.problems + [unknown_name("validation metric", name, known) for name in used if name not in known]


def adapter_config(config: RunConfig) -> BoundedLoraConfig:
    """The run's adapter in PEFT's words."""
    chosen = config.adapter
    return BoundedLoraConfig(
        r=chosen.rank,
        bound=chosen.bound,
        omega=chosen.omega,
        scale=chosen.scale,
        target_modules=chosen.target_modules,
        init_seed=chosen.seed,
    )


def _attempt(found: Check, action: Callable[[], Result]) -> Result | None:
    try:
        return action()
    except StableForgettingError as error:
        found.problems.append(str(error))
        return None


def _describe_adapter(found: Check, loaded: LoadedModel, adapter: BoundedLoraConfig) -> None:
    found.num_base = sum(parameter.numel() for parameter in loaded.model.parameters())
    adapted = get_peft_model(loaded.model, adapter)
    found.layers = sorted(adapted.peft_config["default"].resolved_scales)
    found.num_trainable = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)


def estimate_memory(model: Any, sets: Sets, config: RunConfig, *, num_trainable: int) -> dict[str, int]:
    """Estimated memory of the unlearning on one device, in bytes by part.

    The base weights; the adapter in float32 with its gradient and AdamW's two moments; the input of every linear layer,
    kept for the backward pass, and as much again for attention, norms and elementwise functions; and three copies of
    the logits at the label positions.
    """
    width = _BYTES[config.model.dtype]
    training = config.training
    examples = [*sets.forget, *sets.retain]
    rows = training.forget_batch_size + training.retain_batch_size
    positions, labels = 1, 1
    if isinstance(examples[0], LanguageExample):
        positions = max(len(example.input_ids) for example in examples)
        labels = max(example.num_labels for example in examples)
    else:
        positions = _num_patches(model)
    inputs = sum(_num_inputs(module) for module in model.modules())
    classes: int = getattr(model.config, "vocab_size", None) or model.config.num_labels
    base = sum(parameter.numel() for parameter in model.parameters()) - num_trainable
    return {
        "base weights": base * width,
        "adapter, gradient and optimizer": num_trainable * 4 * 4,
        "activations": 2 * inputs * positions * rows * width,
        "logits": 3 * rows * labels * classes * 4,
    }


def _num_inputs(module: nn.Module) -> int:
    """Length of a linear layer's input; 0 for other modules."""
    if isinstance(module, nn.Linear):
        return module.in_features
    return int(module.weight.shape[0]) if isinstance(module, Conv1D) else 0


def _num_patches(model: Any) -> int:
    config = model.config
    size, patch = getattr(config, "image_size", 224), getattr(config, "patch_size", 16)
    return int((size // patch) ** 2 + 1)
