"""The models that a class deletion is given: of what kind they are, and whether their labels are those of the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stable_forgetting.bench.image_table import ImageTable
from stable_forgetting.config import ModelConfig
from stable_forgetting.config.benchmark_options import ClassDeletionOptions
from stable_forgetting.config.settings import parse_section
from stable_forgetting.errors import ConfigError
from stable_forgetting.models.load import ModelSource, load_without_weights
from stable_forgetting.runs.label_names import compare_label_names, label_names, numbers_by_name, plain_name

_HOW_IT_IS_READ = ("image_size", "revision", "trust_remote_code")


def model_config(options: ClassDeletionOptions, name: str) -> Any:
    """The config of a model, from its folder or the hub; no weights are read.

    Args:
        options: How models are read.
        name: The model.

    Raises:
        ConfigError: How it is to be read is not allowed.
        ModelError: It cannot be found, or its config or image processor cannot be read.
    """
    given = {part: options.set[f"model.{part}"] for part in _HOW_IT_IS_READ if f"model.{part}" in options.set}
    how = parse_section(ModelConfig, {"name": name, **given}, source="the changes of model")
    source = ModelSource(
        name,
        "image",
        image_size=how.image_size,
        revision=how.revision if name == options.model else None,
        trust_remote_code=how.trust_remote_code,
    )
    return load_without_weights(source).model.config


def check_classifier(name: str, config: Any, table: ImageTable) -> list[str]:
    """Check that a model that is measured as it is counts the classes as the data do.

    Args:
        name: The model, for messages.
        config: Its config, which may name its labels.
        table: The data, which may name theirs.

    Returns:
        What cannot be known from the names, one sentence each.

    Raises:
        ConfigError: A class has another number in the model than in the data.
    """
    return compare_label_names(name, config, table.class_labels(), f"'{table.path}'")


def check_pretrained(name: str, config: Any, table: ImageTable) -> list[str]:
    """Check that a model that base and retain model are made of was not taught the classes of the data already.

    Args:
        name: The model, for messages.
        config: Its config, which may name its labels.
        table: The data, which may name theirs.

    Returns:
        What cannot be known from the names, one sentence each.

    Raises:
        ConfigError: Its classes are those of the data, so that its head, which knows them all, would be kept.
    """
    own, asked = numbers_by_name(label_names(config)), table.class_labels()
    keeps_head = int(config.num_labels) == table.num_classes
    knows_all = bool(asked) and all(plain_name(shown) in own for shown in asked)
    if knows_all and keeps_head:
        raise ConfigError(
            f"The model '{name}' is a classifier of the classes in '{table.path}' already ({_few(asked)}), so a retain "
            "model made of it would have seen what is to be forgotten. Say --finetuned, if you have one with "
            "--retain-model, or give the model that it was made of."
        )
    if knows_all:
        return [
            f"The model '{name}' has labels of the names of all classes ({_few(asked)}). If it was taught them, the "
            "retain model, which is made of it, has seen what is to be forgotten."
        ]
    classifies = any("ImageClassification" in architecture for architecture in config.architectures or ())
    if keeps_head and classifies:
        which = "of other names than the data's" if own and asked else "whose names cannot be compared"
        return [
            f"The model '{name}' has a head for {table.num_classes} classes {which}, which is kept and taught on. If "
            "it knows these classes already, the retain model, which is made of it, has seen what is to be forgotten: "
            "say --finetuned then."
        ]
    return []


def _few(names: Mapping[str, int]) -> str:
    return ", ".join([*names][:3]) + (" ..." if len(names) > 3 else "")
