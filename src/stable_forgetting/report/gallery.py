"""Examples and what each model makes of them: one by one for a run, as a grid for a comparison of image classifiers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from stable_forgetting.records import ExampleOutcome, ModelRole, RunRecord
from stable_forgetting.report import wording
from stable_forgetting.report.summary import ROLES, GroupSummary, MethodSummary

RIGHT, WRONG = "✓", "✗"


@dataclass(frozen=True)
class Output:
    """What one model makes of an example."""

    model: str
    text: str
    note: str
    """Whether it is the expected output, in words; empty where there is nothing to say."""


@dataclass(frozen=True)
class Example:
    """One example and what each model makes of it."""

    prompt: str
    expected: str
    outputs: tuple[Output, ...]
    image: str | None
    """Address of the image's bytes, inside the page."""


@dataclass(frozen=True)
class ExampleSet:
    """The shown examples of one set."""

    name: str
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class GridRow:
    """One image under all models."""

    image: str
    expected: str
    cells: tuple[tuple[str, str], ...]
    """Mark and predicted class of each model; both empty where a model has none."""


@dataclass(frozen=True)
class Grid:
    """Images as rows, models as columns."""

    columns: tuple[tuple[str, str | None], ...]
    """Model, and the id of its part of the page."""
    sections: tuple[tuple[str, tuple[GridRow, ...]], ...]
    """Name of the set and its images."""


def example_sets(record: RunRecord) -> Iterable[ExampleSet]:
    """The examples of one run, by set."""
    for name in dict.fromkeys(example.set_name for example in record.examples):
        chosen = [example for example in record.examples if example.set_name == name]
        yield ExampleSet(name, tuple(_example(example, record.class_names) for example in chosen))


def example_grid(group: GroupSummary, anchors: Mapping[str, str]) -> Grid | None:
    """The images of all methods beside each other; None for language, and for less than two methods with images.

    Of several seeds the first one is shown, and base and retain model as the first method with that image has them;
    the base model is left out where each method has its own.

    Args:
        group: The methods.
        anchors: Id of each method's part of the page, by its name.
    """
    shown = [method for method in group.methods if any(entry.image_png for entry in method.records[0].examples)]
    if group.task != "image" or len(shown) < 2:
        return None
    tables = [_by_image(method) for method in shown]
    references: tuple[ModelRole, ...] = ("base", "retain") if group.num_bases < 2 else ("retain",)
    sections: dict[str, list[GridRow]] = {}
    for set_name, image, expected in dict.fromkeys(key for table in tables for key in table):
        found = [table.get((set_name, image, expected)) for table in tables]
        first = next(entry for entry in found if entry is not None)
        names = shown[0].records[0].class_names
        cells = [_cell(first, role, names) for role in references]
        cells += [_cell(entry, "unlearned", names) for entry in found]
        row = GridRow(_address(image), _class_words(expected, names), tuple(cells))
        sections.setdefault(set_name, []).append(row)
    columns = [(wording.ROLE_WORDS[role], None) for role in references]
    linked = [(method.name, anchors.get(method.name)) for method in shown]
    return Grid((*columns, *linked), tuple((name, tuple(rows)) for name, rows in sections.items()))


def _by_image(method: MethodSummary) -> dict[tuple[str, str, str], ExampleOutcome]:
    examples = method.records[0].examples
    return {(entry.set_name, entry.image_png, entry.expected): entry for entry in examples if entry.image_png}


def _example(example: ExampleOutcome, names: Mapping[int, str]) -> Example:
    is_image = example.image_png is not None
    words = {RIGHT: f"{RIGHT} right", WRONG: f"{WRONG} wrong"} if is_image else {RIGHT: "as expected", WRONG: ""}
    outputs = tuple(
        Output(
            wording.ROLE_WORDS[role],
            _class_words(example.outputs[role], names) if is_image else example.outputs[role],
            words[_mark(example, role)],
        )
        for role in ROLES
        if role in example.outputs
    )
    expected = _class_words(example.expected, names) if is_image else example.expected
    return Example(example.prompt, expected, outputs, _address(example.image_png) if example.image_png else None)


def _cell(example: ExampleOutcome | None, role: ModelRole, names: Mapping[int, str]) -> tuple[str, str]:
    if example is None or role not in example.outputs:
        return "", ""
    return _mark(example, role), _class_words(example.outputs[role], names)


def _mark(example: ExampleOutcome, role: ModelRole) -> str:
    expected = example.expected if example.image_png is None else _class_number(example.expected)
    return RIGHT if example.outputs[role].strip() == expected.strip() else WRONG


def _class_number(text: str) -> str:
    """The number of a class as text; the first records had its name in brackets behind it."""
    return text.partition(" (")[0]


def _class_words(text: str, names: Mapping[int, str]) -> str:
    return wording.class_name(names, int(text)) if text.isdecimal() else text


def _address(image_png: str) -> str:
    return f"data:image/png;base64,{image_png}"
