"""What a run would do and need, found out before anything is trained and without loading weights."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageClassification

from stable_forgetting.adapters import BoundedLoraConfig, attach
from stable_forgetting.config import DataConfig, RunConfig
from stable_forgetting.errors import ConfigError, ModelError, StableForgettingError
from stable_forgetting.models.load import LoadedModel, ModelSource, load_without_weights
from stable_forgetting.models.tasks import LanguageTask
from stable_forgetting.objectives import Objective, build_objective
from stable_forgetting.runs.adapter import bounded_config
from stable_forgetting.runs.fits import all_answers, check_positions, check_tokens
from stable_forgetting.runs.label_names import check_label_names
from stable_forgetting.runs.memory import Devices, Estimate, estimate
from stable_forgetting.runs.models import configured_source, other_source
from stable_forgetting.runs.retain_log import check_retain_log, logged_retain_values
from stable_forgetting.runs.sets import Sets, load_set_rows, make_sets, num_classes, process_with
from stable_forgetting.runs.teaching import check_teaching
from stable_forgetting.runs.validation import check_validation, wrong_metrics

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

OTHER_MODELS = ("base_model", "retain_model", "pretrained_model")
"""Settings that name further models."""

_WEIGHTS = ("*.safetensors", "*.gguf", "*.bin", "*.pt", "*.pth", "*.ckpt", "adapter_config.json")
"""Files of which a folder has at least one, unless it holds nothing but a model's config."""


@dataclass
class Check:
    """What was found.

    Args:
        problems: One sentence each; none means that the run can start.
        sets: Number of examples of each set.
        layers: Adapted layers.
        num_trainable: Parameters of the adapter.
        num_base: Parameters of the model.
        memory: Estimated memory of the unlearning; None if the examples cannot be used.
        notes: What was not or cannot be checked, one sentence each.
    """

    problems: list[str] = field(default_factory=list)
    sets: dict[str, int] = field(default_factory=dict)
    layers: list[str] = field(default_factory=list)
    num_trainable: int = 0
    num_base: int = 0
    memory: Estimate | None = None
    notes: list[str] = field(default_factory=list)


def check_config(config: RunConfig, devices: Devices | None = None) -> Check:
    """Find all problems at once: a part is tried even if another one failed.

    Args:
        config: The config. Its model may be a folder with a `config.json` and nothing else; then the adapter and the
            memory are found out as for any other, and a note says what could not be checked.
        devices: The GPUs whose memory is estimated; one by default.
    """
    found = Check()
    adapter = _attempt(found, lambda: bounded_config(config.adapter))
    objective = _attempt(found, lambda: configured_objective(config))
    found.problems = _wrong_names(config)
    rows = _attempt(found, lambda: load_set_rows(config.data))
    classes = num_classes(rows, config.data) if rows and config.task == "image" else None
    source = configured_source(config, classes)
    sets, loaded, model = None, None, None
    if is_config_alone(source):
        model = _attempt(found, lambda: layers_of_config(source))
        found.notes.append(f"'{source.name}' holds a model's config alone: examples not checked, and a run needs more.")
    else:
        loaded = _attempt(found, lambda: load_without_weights(source))
    _attempt(found, lambda: logged_retain_values(config))
    for setting in OTHER_MODELS:
        _attempt(found, partial(check_other_model, config, setting, loaded))
    if rows is not None and loaded is not None:
        sets = _attempt(
            found, lambda: make_sets(rows, loaded.task, config.data, classes=num_outputs(loaded, config.data))
        )
    if loaded is not None:
        model = loaded.model
    if sets is not None and loaded is not None:
        _attempt(found, lambda: check_texts(loaded, sets, config))
        _attempt(found, lambda: check_validation(sets, config))
        _attempt(found, lambda: check_retain_log(config, sets, loaded.task))
        _attempt(found, lambda: check_pixel_values(config, sets, loaded))
        found.notes += _attempt(found, lambda: check_label_names(config, sets, loaded)) or []
        found.sets = {name: len(examples) for name, examples in sets.by_name.items()}
    if model is not None:
        _attempt(found, lambda: check_teaching(model, config.model.finetune or []))
    if model is not None and adapter is not None:
        _attempt(found, lambda: _describe_adapter(found, model, adapter))
    is_known = sets is not None or is_config_alone(source)  # what examples need is not guessed where some are wrong
    if found.layers and objective is not None and is_known:
        found.memory = _attempt(found, lambda: estimate(model, sets, config, objective, devices or Devices()))
    return found


def is_config_alone(source: ModelSource) -> bool:
    """Whether a model's name is a folder with its config, but without weights of any kind."""
    folder = Path(source.name).expanduser()
    if source.is_builtin or not (folder / "config.json").is_file():
        return False
    return not any(path for pattern in _WEIGHTS for path in folder.glob(pattern))


def layers_of_config(source: ModelSource) -> Any:
    """The layers that a folder's `config.json` describes, without content (on the meta device).

    Raises:
        ModelError: The config cannot be read, or is for another kind of model.
    """
    models = AutoModelForCausalLM if source.kind == "language" else AutoModelForImageClassification
    try:
        config = AutoConfig.from_pretrained(Path(source.name).expanduser(), trust_remote_code=source.trust_remote_code)
        with torch.device("meta"):
            return models.from_config(config, trust_remote_code=source.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"The model config in '{source.name}' cannot be read: {reason} Check its config.json."
        ) from error


def check_names(config: RunConfig) -> None:
    """Check all names and values of a config that a table or the adapter decides on; needs no file.

    Raises:
        ConfigError: Names all problems at once.
    """
    problems = _wrong_names(config)
    if problems:
        raise ConfigError(" ".join(problems))


def without_content(model: Any, config: RunConfig) -> PeftModel:
    """The model's layers with the adapter of the config, without their content (on the meta device).

    Raises:
        ModelError: A target module matches no layer, or the MLP layers of the model's family are not known.
    """
    with torch.device("meta"):
        layers = type(model)(model.config)
    return attach(layers, bounded_config(config.adapter))


def num_outputs(loaded: LoadedModel, data: DataConfig) -> int | None:
    """Number of classes that labels may have: the classifier's, or fewer if configured; None for a language model."""
    if isinstance(loaded.task, LanguageTask):
        return None
    outputs = int(loaded.model.config.num_labels)
    return outputs if data.num_classes is None else min(outputs, data.num_classes)


def check_texts(loaded: LoadedModel, sets: Sets, config: RunConfig) -> None:
    """Check that a language model has embeddings for all tokens, and positions for the longest example and answer.

    Raises:
        ConfigError: It has not.
    """
    texts = all_answers(sets.by_name.values())
    check_positions(loaded.model, texts, setting="data.max_length")
    if isinstance(loaded.task, LanguageTask):
        check_tokens(loaded.model, texts, pad_token_id=int(loaded.task.tokenizer.pad_token_id))
    positions = getattr(loaded.model.config, "max_position_embeddings", None)
    if positions is None:
        return
    prompt = max((text.num_prompt_tokens for text in texts if text.end_token is not None), default=0)
    if texts and config.evaluation.generate and prompt + config.evaluation.max_new_tokens > positions:
        raise ConfigError(
            f"The longest prompt has {prompt} tokens and evaluation.max_new_tokens is "
            f"{config.evaluation.max_new_tokens}, but the model has {positions} positions. Lower max_new_tokens."
        )


def check_other_models(config: RunConfig, sets: Sets, loaded: LoadedModel) -> None:
    """Check what `check_other_model` checks of every model that the config names, and the log of a retain model.

    Label names that are others than those of the data are warned of.

    Raises:
        ModelError: A model cannot be found, or its config cannot be read.
        ConfigError: The tokens or classes of a model are others or have other numbers, or it sees other pixel values.
        DataError: The log is missing, no such log, or of other examples.
    """
    check_retain_log(config, sets, loaded.task)
    for setting in OTHER_MODELS:
        check_other_model(config, setting, loaded)
    check_pixel_values(config, sets, loaded)
    for note in check_label_names(config, sets, loaded):
        logger.warning(note)


def check_other_model(config: RunConfig, setting: str, loaded: LoadedModel | None) -> None:
    """Check that another model than the configured one is there, and says something about the same labels.

    Args:
        config: The config.
        setting: One of `OTHER_MODELS`. Nothing is checked if the config leaves it out.
        loaded: The configured model, with or without its weights; None if it is not known.

    Raises:
        ModelError: The other model cannot be found, or its config cannot be read.
        ConfigError: Its tokens or classes are others.
    """
    name = getattr(config, setting)
    if name is None:
        return
    other = load_without_weights(other_source(config, name))
    if loaded is None:
        return
    if isinstance(loaded.task, LanguageTask) and isinstance(other.task, LanguageTask):
        same, what = other.task.tokenizer.get_vocab() == loaded.task.tokenizer.get_vocab(), "tokenizer"
    else:
        same, what = other.model.config.num_labels == loaded.model.config.num_labels, "number of classes"
    if not same:
        raise ConfigError(
            f"{setting} is '{name}', which has another {what} than '{loaded.source}', so its likelihoods are of other "
            f"labels. Give a model with the same {what}."
        )


def check_pixel_values(config: RunConfig, sets: Sets, loaded: LoadedModel) -> None:
    """Check that the image processors of all models make the same of the images, which are scaled once for all.

    Raises:
        ConfigError: One does not.
    """
    if config.task != "image":
        return
    images = [part[0].pixels for part in (sets.forget, sets.retain)]
    expected = torch.cat([process_with(loaded.task)([image]).flatten() for image in images])
    for setting in OTHER_MODELS:
        name = getattr(config, setting)
        if name is None:
            continue
        process = process_with(load_without_weights(other_source(config, name)).task)
        found = torch.cat([process([image]).flatten() for image in images])
        if found.shape != expected.shape or not torch.allclose(found, expected, atol=1e-5):
            raise ConfigError(
                f"{setting} is '{name}', whose image processor makes other pixel values than that of '{loaded.source}' "
                "(another size, mean or deviation), while all models of a run are shown the same. Give a model with "
                "the same preprocessor_config.json, or one that was finetuned from the same model."
            )


def _wrong_names(config: RunConfig) -> list[str]:
    found = Check()
    _attempt(found, lambda: configured_objective(config))
    _attempt(found, lambda: bounded_config(config.adapter))
    return found.problems + wrong_metrics(config.training, config.task)


def configured_objective(config: RunConfig) -> Objective:
    """The objective of a config.

    Raises:
        ConfigError: Its name or a value is not allowed.
    """
    chosen = config.objective
    return build_objective(
        chosen.name,
        retain=chosen.retain,
        forget_weight=chosen.forget_weight,
        retain_weight=chosen.retain_weight,
        beta=chosen.beta,
        limit=chosen.limit,
        unseen_weight=chosen.unseen_weight,
    )


def _attempt(found: Check, action: Callable[[], Result]) -> Result | None:
    try:
        return action()
    except StableForgettingError as error:
        if str(error) not in found.problems:
            found.problems.append(str(error))
        return None


def _describe_adapter(found: Check, model: Any, adapter: BoundedLoraConfig) -> None:
    found.num_base = sum(parameter.numel() for parameter in model.parameters())
    adapted = attach(model, adapter)
    found.layers = sorted(adapted.peft_config["default"].resolved_scales)
    found.num_trainable = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
