"""Settings as a user gives them: read from a file, changed one by one, checked, and what is wrong with them said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from stable_forgetting.config.options import RunConfig
from stable_forgetting.config.refusals import refusal
from stable_forgetting.config.section import Section
from stable_forgetting.errors import ConfigError

S = TypeVar("S", bound=Section)


class _Loader(yaml.SafeLoader):
    """Reads YAML, and refuses a mapping that has a key twice, of which PyYAML would take the last one."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line, name = key.start_mark.line + 1, (key.tag, key.value)
            if name in lines:
                raise yaml.YAMLError(f"the key '{key.value}' is given in line {lines[name]} and again in line {line}")
            lines[name] = line
        return node


def _parsed(text: str) -> Any:
    try:
        return copied(yaml.load(text, _Loader))
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply, or in itself") from None


def copied(settings: Any) -> Any:
    """The same settings, with nothing in two places: a change of what YAML has by an alias changes one of them.

    Example:
        >>> section = {"limit": 5}
        >>> found = copied({"retain": section, "test": section})
        >>> found["retain"]["limit"] = 3
        >>> found
        {'retain': {'limit': 3}, 'test': {'limit': 5}}
    """
    if isinstance(settings, Mapping):
        return {name: copied(value) for name, value in settings.items()}
    return [copied(value) for value in settings] if isinstance(settings, list | tuple) else settings


def read_yaml(path: Path) -> dict[str, Any]:
    """Read settings from a YAML file.

    Raises:
        ConfigError: The file is missing, no YAML, has a key twice, or holds no settings.
    """
    if not path.is_file():
        raise ConfigError(f"No config file at '{path}'. Give the path of a YAML file; configs/ has examples.")
    try:
        given = _parsed(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = " ".join(str(error).split())
        raise ConfigError(f"The config '{path}' is not valid YAML: {place}. Correct the line named there.") from error
    if not isinstance(given, dict):
        found = "nothing" if given is None else f"a {type(given).__name__}"
        raise ConfigError(f"The config '{path}' holds {found}, not settings. See configs/ for examples.")
    return given


def load_config(path: Path, changes: Sequence[tuple[str, Any]] = ()) -> tuple[RunConfig, dict[str, Any]]:
    """Read a run's config from a YAML file.

    Args:
        path: The file.
        changes: Settings that replace the file's: path such as ``training.learning_rate``, and value.

    Returns:
        The config, and the settings as given.

    Raises:
        ConfigError: The file is missing or no YAML, or settings are not allowed; all problems in one message.
    """
    given = read_yaml(path)
    if "methods" in given:
        raise ConfigError(f"The config '{path}' compares several methods. Use `forget compare {path}`.")
    for place, value in changes:
        apply_change(given, place, value)
    return parse_config(given, source=f"the config '{path}'"), given


def parse_config(given: Mapping[str, Any], *, source: str = "the config") -> RunConfig:
    """Check the settings of a run and fill in the defaults.

    Raises:
        ConfigError: Names all problems at once.
    """
    return parse_section(RunConfig, given, source=source)


def parse_section(kind: type[S], given: Mapping[str, Any], *, source: str) -> S:
    """Check the settings of a section and fill in the defaults.

    Args:
        kind: The section.
        given: The settings.
        source: Where they came from, in words.

    Raises:
        ConfigError: Names all problems at once.
    """
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise refusal(error, kind, source) from error


def parse_change(change: str) -> tuple[str, Any]:
    """Read a change such as ``training.learning_rate=3e-4``; the value is YAML.

    Raises:
        ConfigError: It is not of that form.
    """
    path, equals, text = change.partition("=")
    if not equals or not path.strip():
        raise ConfigError(f"The change '{change}' is not of the form section.setting=value.")
    try:
        return path.strip(), _parsed(text)
    except yaml.YAMLError as error:
        place = " ".join(str(error).split())
        raise ConfigError(
            f"The value of the change '{change}' is not valid YAML: {place}. Correct it, or put it in quotes."
        ) from error


def apply_change(settings: dict[str, Any], path: str, value: Any) -> None:
    """Set one setting, in place; sections that are missing are made.

    A section by its name alone, such as ``training``, keeps the settings that the value does not name, and so do those
    within it; a path such as ``model.finetune`` gets the value as it is.

    Raises:
        ConfigError: The path leads through something that is no section.

    Example:
        >>> settings = {"training": {"epochs": 5}}
        >>> apply_change(settings, "training.learning_rate", 0.1)
        >>> apply_change(settings, "training", {"seed": 1})
        >>> settings
        {'training': {'epochs': 5, 'learning_rate': 0.1, 'seed': 1}}
    """
    *parents, name = path.split(".")
    section = settings
    for parent in parents:
        inner = section.get(parent)
        if inner is None:
            inner = section[parent] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"The setting '{path}' goes through '{parent}', which is {inner!r} and not a section.")
        section = inner
    if parents:
        section[name] = value
    else:
        _merge(section, {name: value})


def _merge(section: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for name, value in changes.items():
        inner = section.get(name)
        if isinstance(value, Mapping) and isinstance(inner, dict):
            _merge(inner, value)
        else:
            section[name] = value


def flat_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Each setting by its path; a section without settings is one itself.

    Example:
        >>> flat_settings({"training": {"steps": 5, "stop": []}, "name": "run"})
        {'training.steps': 5, 'training.stop': [], 'name': 'run'}
    """
    found: dict[str, Any] = {}
    for name, value in settings.items():
        inner = flat_settings(value) if isinstance(value, Mapping) else {}
        found |= {f"{name}.{path}": setting for path, setting in inner.items()} or {name: value}
    return found
