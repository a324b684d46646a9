"""Whether classifiers that are measured as they are count the classes as the data do, as far as names tell."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from stable_forgetting.config import RunConfig
from stable_forgetting.errors import ConfigError
from stable_forgetting.models.load import LoadedModel, load_without_weights
from stable_forgetting.runs.models import other_source
from stable_forgetting.runs.outcomes import class_names
from stable_forgetting.runs.sets import Sets

_NO_NAME = re.compile(r"LABEL_\d+")
"""What transformers calls a class that has no name."""


def check_label_names(config: RunConfig, sets: Sets, loaded: LoadedModel) -> list[str]:
    """Compare the label names of a run's given classifiers with those of the data, else with the base model's.

    A model that is finetuned first is not compared: it is taught the numbers of the data.

    Args:
        config: The run's config.
        sets: The example sets, whose images may have class names.
        loaded: The configured model, with or without its weights.

    Returns:
        What cannot be known from the names, one sentence each.

    Raises:
        ConfigError: A class has another number in one of them.
    """
    if config.task != "image":
        return []
    names = [name for name in (config.base_model, config.retain_model) if name is not None]
    given = {name: load_without_weights(other_source(config, name)).model.config for name in names}
    if config.base_model is None and config.model.finetune is None:
        given = {config.model.name: loaded.model.config, **given}
    asked, whose = _clear_numbers(class_names(sets)), "the data"
    if not asked and given:
        base = next(iter(given))
        asked, whose = _clear_numbers(label_names(given[base])), f"the model '{base}'"
    return [note for name, own in given.items() for note in compare_label_names(name, own, asked, whose)]


def compare_label_names(name: str, config: Any, asked: Mapping[str, int], whose: str) -> list[str]:
    """Compare the names of one classifier's labels with those that it is asked for.

    Args:
        name: The model, for messages.
        config: Its config, which may name its labels.
        asked: Number by the name of the class; empty: not known.
        whose: What the numbers are of, for messages.

    Returns:
        What cannot be known from the names, one sentence each.

    Raises:
        ConfigError: A class has another number in the model.
    """
    by_number = label_names(config)
    own = numbers_by_name(by_number)
    if not own or not asked:
        return []
    for shown, label in asked.items():
        found = own.get(plain_name(shown), [label])
        if label not in found:
            raise ConfigError(
                f"The class '{shown}' is number {label} in {whose} and {found[0]} in the model '{name}', so its "
                "predictions would be taken for other classes. Give data with the model's numbers (in a folder they "
                "count the names in alphabetical order), or a model with those of the data."
            )
    other = [(shown, label) for shown, label in asked.items() if plain_name(shown) not in own]
    if not other:
        return []
    shown, label = other[0]
    return [
        f"The model '{name}' has other names for {len(other)} of {len(asked)} classes (first: number {label} is "
        f"'{by_number.get(label, 'none')}', in {whose} '{shown}'). If these are other classes, what is measured of "
        "them means nothing."
    ]


def label_names(config: Any) -> dict[int, str]:
    """Names of a model's labels by number; none if they are only numbered."""
    found = {int(number): str(name) for number, name in (config.id2label or {}).items()}
    return {} if all(_NO_NAME.fullmatch(name) for name in found.values()) else found


def numbers_by_name(names: Mapping[int, str]) -> dict[str, list[int]]:
    """Numbers by plain name: two classes may have the same, as the cranes of ImageNet."""
    found: dict[str, list[int]] = {}
    for number, name in names.items():
        found.setdefault(plain_name(name), []).append(number)
    return found


def plain_name(name: str) -> str:
    """A name as it is compared: `Maple tree` and `maple_tree` are the same."""
    return re.sub(r"[\W_]+", " ", name.lower()).strip()


def _clear_numbers(names: Mapping[int, str]) -> dict[str, int]:
    """Number by name, of names that only one class has."""
    values = list(names.values())
    return {name: number for number, name in names.items() if values.count(name) == 1}
