"""What is wrong with settings, in sentences: pydantic's errors with the names that a user knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from stable_forgetting.errors import ConfigError, unknown_name


def refusal(error: ValidationError, kind: type[BaseModel], source: str) -> ConfigError:
    """All problems of a section in one message.

    Args:
        error: What pydantic raised.
        kind: The section.
        source: Where the settings came from, in words.
    """
    found = [_describe(problem, kind) for problem in error.errors()]
    count = "is a problem" if len(found) == 1 else f"are {len(found)} problems"
    return ConfigError(f"There {count} in {source}: {'; '.join(found)}.")


def _describe(problem: Mapping[str, Any], kind: type[BaseModel]) -> str:
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        section = _section_at(kind, [str(part) for part in problem["loc"][:-1]])
        return f"{place}: " + unknown_name("setting", str(problem["loc"][-1]), section).rstrip(".")
    message = problem["msg"].removeprefix("Value error, ")
    if not place:
        return str(message)
    if problem["type"] == "missing":
        return f"{place}: this setting is required"
    if problem["type"] == "value_error" and isinstance(problem["input"], Mapping):
        return f"{place}: {message}"  # about a section as a whole, whose settings are named in the message
    return f"{place} = {problem['input']!r}: {message[0].lower()}{message[1:]}"


def _section_at(section: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Names of the settings in the section that a path leads to."""
    for part in path:
        if part not in section.model_fields:
            continue
        inner = _model_in(section.model_fields[part].annotation)
        section = inner or section
    return list(section.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_model_in(argument) for argument in get_args(annotation))
    return next((found for found in inner if found is not None), None)
