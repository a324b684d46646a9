"""Requests of a class deletion: what is to be forgotten, as rules over the columns of the data."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stable_forgetting.bench.image_table import ImageTable
from stable_forgetting.config.benchmark_options import ClassDeletionOptions
from stable_forgetting.data.row_places import random_places
from stable_forgetting.data.rules import select_rows
from stable_forgetting.errors import ConfigError, DataError

_LONGEST_NAME = 100
"""Bytes of a request's name: folders may have 255, and the method comes behind it."""


@dataclass(frozen=True)
class Request:
    """One demand to forget.

    Args:
        name: In the names of its runs.
        forget: Rule of the images to be forgotten.
        alike: Rule of what is of the same classes as what is forgotten; None: everything is.
        deletes_classes: Whether whole classes go, so that none of their images stays.
        deleted_before: Rules of what earlier requests of a sequence deleted: these images are in no set.
    """

    name: str
    forget: str
    alike: str | None
    deletes_classes: bool = True
    deleted_before: tuple[str, ...] = ()


def class_requests(options: ClassDeletionOptions, table: ImageTable) -> list[Request]:
    """The requests of whole classes, in order; none if single images are to be forgotten.

    Args:
        options: What is to be forgotten.
        table: The images.

    Raises:
        ConfigError: A class is named twice.
        DataError: A class or a superclass is not in the data.
    """
    if options.names_images:
        return []
    column = table.columns["class_name"]
    names = options.forget or ()
    values = table.class_values(names)
    if options.superclass is not None:
        names, values = options.superclass, table.superclass_values(options.superclass)
        column = table.columns["superclass"]
    if len({slug(name) for name in names}) < len(names):
        raise ConfigError(f"'{','.join(names)}' names something twice, or in a way that runs cannot be told apart by.")
    if options.together:
        return [_deletion(slug("+".join(names)), among(column, values))]
    requests = [_deletion(slug(name), among(column, [value])) for name, value in zip(names, values, strict=True)]
    if not options.sequence:
        return requests
    return [
        replace(
            request,
            name=f"{number}-{request.name}",
            deleted_before=tuple(earlier.forget for earlier in requests[: number - 1]),
        )
        for number, request in enumerate(requests, 1)
    ]


def listed_rows(options: ClassDeletionOptions, table: ImageTable) -> list[int]:
    """Numbers of the rows that a file lists, if one is given.

    Args:
        options: What is to be forgotten.
        table: The images.

    Raises:
        DataError: There is no such file, it is no list of numbers, or a row is not in the data.
    """
    if options.images is None:
        return []
    path = Path(options.images)
    if not path.is_file():
        raise DataError(f"No file at '{path}'. Give a text file with one row number of a training image per line.")
    try:
        numbers = [int(line) for line in path.read_text(encoding="utf-8").split()]
    except ValueError as error:
        raise DataError(f"'{path}' is no list of row numbers ({error}). Give one whole number per line.") from error
    wrong = [number for number in numbers if not 0 <= number < len(table.rows)]
    if wrong or not numbers:
        found = f"row {wrong[0]}" if wrong else "no number"
        raise DataError(f"'{path}' has {found}. Give numbers from 0 to {len(table.rows) - 1}, rows of training images.")
    return numbers


def image_request(
    options: ClassDeletionOptions, table: ImageTable, asked: Sequence[int], trained_on: str | None
) -> Request:
    """The request of single images, whose classes stay.

    Args:
        options: What is to be forgotten.
        table: The images.
        asked: Numbers of the rows that a file lists; none: as many as are to be drawn at random.
        trained_on: Rule of the training images that models are taught; None: all of them.

    Raises:
        DataError: Fewer images are taught than are to be drawn, or rows cannot be named.
    """
    if options.images is not None:
        label = table.columns["label"]
        without = [number for number in asked if table.rows[number].get(label) is None]
        if without:
            raise DataError(
                f"'{options.images}' lists row {without[0]}, which has no {label} in '{table.path}'. Give images that "
                "have one."
            )
        classes = sorted({table.rows[number][label] for number in asked})
        name, forget = slug(Path(options.images).stem), table.among_rows(asked)
        return Request(name, forget, alike=among(label, classes), deletes_classes=False)
    assert options.random is not None
    return _random_request(options.random, table, trained_on)


def all_of(*rules: str | None) -> str | None:
    """One rule that is true where all given ones are; None says nothing."""
    given = [rule for rule in rules if rule is not None]
    if len(given) < 2:
        return given[0] if given else None
    return " and ".join(f"({rule})" for rule in given)


def none_of(rules: Sequence[str]) -> str | None:
    """One rule that is true where no given one is; None if there are none."""
    return f"not ({any_of(rules)})" if rules else None


def any_of(rules: Sequence[str]) -> str:
    """One rule that is true where any given one is."""
    return rules[0] if len(rules) == 1 else " or ".join(f"({rule})" for rule in rules)


def among(column: str, values: Sequence[Any]) -> str:
    """Rule: the column has one of the values."""
    return f"{column} == {values[0]!r}" if len(values) == 1 else f"{column} in {list(values)!r}"


def slug(name: str) -> str:
    """A name that can be one of a folder, without the hyphens that stand between the parts of a run's name."""
    found = re.sub(r"[^\w.+]+", "_", name).strip("._") or "class"
    if len(found.encode()) <= _LONGEST_NAME:
        return found
    begin = found.encode()[: _LONGEST_NAME // 2].decode(errors="ignore")
    return f"{begin}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _deletion(name: str, rule: str) -> Request:
    return Request(name, forget=rule, alike=rule)


def _random_request(count: int, table: ImageTable, trained_on: str | None) -> Request:
    """So many of the training images that are taught: those that come first in a random order of all."""
    places = [{**row, "place": place} for row, place in zip(table.rows, random_places(table.rows, 0), strict=True)]
    taught = replace(table.rows, rows=places)
    taught = taught if trained_on is None else select_rows(taught, trained_on)
    found = sorted(row["place"] for row in taught)
    if count >= len(found):
        raise DataError(
            f"{count} random images are to be forgotten, but only {len(found)} are taught, of which some must stay. "
            "Give a smaller number with --random."
        )
    forget = f"random_place(0) < {found[count]}"
    return Request(f"random-{count}", forget, alike=None, deletes_classes=False)
