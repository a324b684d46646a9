"""The main table of a comparison of image classifiers: how far each method is from the retain model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from stable_forgetting.intervals import difference
from stable_forgetting.records import finetuning_phase
from stable_forgetting.report import wording
from stable_forgetting.report.summary import Cell, GroupSummary, MethodSummary, MetricRow
from stable_forgetting.report.tables import ComparisonLine, Notes, TextCell, text_cell

GAP_METRICS = ("forget_accuracy", "forget_test_accuracy", "retain_accuracy", "retain_test_accuracy")

HEADINGS = (
    ("forget_accuracy", "Forget, training images"),
    ("forget_test_accuracy", "Forget, test images"),
    ("retain_accuracy", "Retain, training images"),
    ("retain_test_accuracy", "Retain, test images"),
    ("tow", "Tug of war"),
)
"""Metric and heading of each column but the last one, which has the time."""


@dataclass(frozen=True)
class GapTable:
    """Methods by their gaps to the retain model."""

    anchor: str
    headings: tuple[tuple[str, str], ...]
    bases: tuple[ComparisonLine, ...]
    """One line, or one for each method that has a base model of its own."""
    methods: tuple[ComparisonLine, ...]
    notes: tuple[str, ...]


def gap_table(group: GroupSummary, anchors: Mapping[str, str], anchor: str) -> GapTable | None:
    """Gaps of accuracy in percentage points, tug of war, and what the unlearning cost.

    Args:
        group: The methods.
        anchors: Id of each method's part of the page, by its name.
        anchor: Start of the ids of the footnotes.

    Returns:
        None for language models, and where no method has a gap to a retain model.
    """
    measured = [method for method in group.methods if any(_has_gap(method, name) for name in GAP_METRICS)]
    if group.task != "image" or not measured:
        return None
    notes = Notes()
    bases = tuple(_base_lines(measured, notes))
    methods = tuple(_line(method, anchors.get(method.name), notes) for method in measured)
    return GapTable(f"{anchor}-gaps", HEADINGS, bases, methods, tuple(notes.reasons))


def _has_gap(method: MethodSummary, name: str) -> bool:
    row = method.row(name)
    return row is not None and row.gap.estimate is not None


def _line(method: MethodSummary, anchor: str | None, notes: Notes) -> ComparisonLine:
    small = f"mean of {len(method.records)} seeds" if len(method.records) > 1 else ""
    cells = [_gap_cell(_row(method, name).gap, notes) for name in GAP_METRICS]
    cells.append(text_cell(_row(method, "tow").unlearned, notes))
    return ComparisonLine(method.name, small, anchor, (*cells, _time_cell(method)))


def _base_lines(methods: Sequence[MethodSummary], notes: Notes) -> Iterable[ComparisonLine]:
    """The base model before unlearning, one line for each set of values that differs."""
    found: dict[tuple[TextCell, ...], list[str]] = {}
    for method in methods:
        found.setdefault(tuple(_base_cells(method, notes)), []).append(method.name)
    for cells, names in found.items():
        small = "before unlearning" if len(found) == 1 else f"before unlearning with {', '.join(names)}"
        yield ComparisonLine("Base model", small, None, cells)


def _base_cells(method: MethodSummary, notes: Notes) -> Iterable[TextCell]:
    for name in GAP_METRICS:
        row = _row(method, name)
        if row.base.estimate is None or row.retain.estimate is None:
            yield text_cell(Cell(None, row.base.reason or row.retain.reason), notes)
        else:
            gap = difference(row.base.estimate, row.retain.estimate)
            yield _gap_cell(Cell(replace(gap, spread=row.base.estimate.spread)), notes)
    yield text_cell(_row(method, "tow").base, notes)
    yield TextCell("–")


def _row(method: MethodSummary, name: str) -> MetricRow:
    missing = Cell(None, "Not measured in this run.")
    return method.row(name) or MetricRow(name, "retain", missing, missing, missing, missing, "not judged")


def _gap_cell(gap: Cell, notes: Notes) -> TextCell:
    if gap.estimate is None:
        return text_cell(gap, notes)
    parts = (wording.uncertainty_in_points(gap.estimate), wording.gap_words(gap.estimate))
    return TextCell(wording.points(gap.estimate.value), ", ".join(part for part in parts if part))


def _time_cell(method: MethodSummary) -> TextCell:
    """Seconds of unlearning beside those in which the retain model was made, if it was made by finetuning."""
    taken = [record.timings["unlearning"] for record in method.records if "unlearning" in record.timings]
    if not taken:
        return TextCell("–")
    phase = finetuning_phase("retain")
    retraining = [record.timings[phase] for record in method.records if phase in record.timings]
    seconds = fmean(taken)
    share = f"{seconds / fmean(retraining):.1%} of {wording.seconds(fmean(retraining))}" if retraining else ""
    return TextCell(wording.seconds(seconds), share)
