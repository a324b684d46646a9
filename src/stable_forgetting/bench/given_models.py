"""The models that a class deletion is given: of what kind they are, and whether their labels are those of the data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from stable_forgetting.bench.image_table import ImageTable
from stable_forgetting.config.benchmark_options import ClassDeletionOptions
from stable_forgetting.errors import ConfigError
from stable_forgetting.models.load import ModelSource, load_without_weights

_NO_NAME = re.compile(r"LABEL_\d+")
"""What transformers calls a class that has no name."""


def model_config(options: ClassDeletionOptions, name: str) -> Any:
    """The config of a model, from its folder or the hub; no weights are read.

    Args:
        options: How models are read.
        name: The model.

    Raises:
        ModelError: It cannot be found, or its config or image processor cannot be read.
    """
    source = ModelSource(
        name,
        "image",
        image_size=options.set.get("model.image_size"),
        revision=options.set.get("model.revision") if name == options.model else None,
        trust_remote_code=bool(options.set.get("model.trust_remote_code")),
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
    by_number = _label_names(config)
    own, asked = _numbers(by_number), table.class_labels()
    if not own or not asked:
        return []
    for shown, label in asked.items():
        found = own.get(_plain(shown), [label])
        if label not in found:
            raise ConfigError(
                f"The class '{shown}' is number {label} in '{table.path}' and {found[0]} in the model '{name}', so its "
                "predictions would be taken for other classes. Give data with the model's numbers (in a folder they "
                "count the names in alphabetical order), or a model with those of the data."
            )
    other = [(shown, label) for shown, label in asked.items() if _plain(shown) not in own]
    if not other:
        return []
    shown, label = other[0]
    return [
        f"The model '{name}' has other names for {len(other)} of {len(asked)} classes (first: number {label} is "
        f"'{by_number.get(label, 'none')}', in the data '{shown}'). If these are other classes, what is measured of "
        "them means nothing."
    ]


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
    own, asked = _numbers(_label_names(config)), table.class_labels()
    keeps_head = int(config.num_labels) == table.num_classes
    knows_all = bool(asked) and all(_plain(shown) in own for shown in asked)
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
    if keeps_head and not own and classifies:
        return [
            f"The model '{name}' has a head for {table.num_classes} classes without names, which is kept and taught "
            "on. If it knows these classes already, say --finetuned."
        ]
    return []


def _label_names(config: Any) -> dict[int, str]:
    """Names of a model's labels by number; none if they are only numbered."""
    found = {int(number): str(name) for number, name in (config.id2label or {}).items()}
    return {} if all(_NO_NAME.fullmatch(name) for name in found.values()) else found


def _numbers(names: Mapping[int, str]) -> dict[str, list[int]]:
    """Numbers by plain name: two classes may have the same, as the cranes of ImageNet."""
    found: dict[str, list[int]] = {}
    for number, name in names.items():
        found.setdefault(_plain(name), []).append(number)
    return found


def _plain(name: str) -> str:
    """A name as it is compared: `Maple tree` and `maple_tree` are the same."""
    return re.sub(r"[\W_]+", " ", name.lower()).strip()


def _few(names: Mapping[str, int]) -> str:
    return ", ".join([*names][:3]) + (" ..." if len(names) > 3 else "")
