"""The two tables of the report as cells of text, shared by the page and the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from stable_forgetting.intervals import Judgement
from stable_forgetting.records import Direction, ModelRole
from stable_forgetting.report import wording
from stable_forgetting.report.glossary import GROUP_TITLES, MetricGroup, define
from stable_forgetting.report.summary import Cell, GroupSummary, MethodSummary, MetricRow, ReferenceRow


@dataclass(frozen=True)
class TextCell:
    """One cell: its text, a smaller line under it, and the number of its footnote."""

    text: str
    small: str = ""
    mark: str = ""
    """`better` or `worse` where a difference is larger than its interval, `missing` without a value, else empty."""
    note: int | None = None
    leads: bool = False


@dataclass(frozen=True)
class ResultsLine:
    """One metric of one method."""

    label: str
    name: str
    direction: str
    base: TextCell
    unlearned: TextCell
    retain: TextCell
    gap: TextCell
    change: TextCell
    count: str


@dataclass(frozen=True)
class ResultsTable:
    """Before, after and retain model, by kind of metric."""

    anchor: str
    sections: tuple[tuple[str, tuple[ResultsLine, ...]], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ComparisonLine:
    """One model or method of a comparison."""

    name: str
    small: str
    anchor: str | None
    cells: tuple[TextCell, ...]
    failure: str | None = None


@dataclass(frozen=True)
class ComparisonTable:
    """Methods on one problem beside base and retain model."""

    anchor: str
    columns: tuple[tuple[str, str, str], ...]
    """Name, label and direction of each column."""
    references: tuple[ComparisonLine, ...]
    methods: tuple[ComparisonLine, ...]
    notes: tuple[str, ...]


@dataclass
class Notes:
    """Footnotes of a table; the same reason gets the same number."""

    reasons: list[str] = field(default_factory=list)

    def number(self, reason: str | None) -> int | None:
        """Number of the footnote with that reason; None without a reason."""
        if reason is None:
            return None
        if reason not in self.reasons:
            self.reasons.append(reason)
        return self.reasons.index(reason) + 1


def results_table(method: MethodSummary, anchor: str) -> ResultsTable:
    """Table of one method.

    Args:
        method: The method.
        anchor: Start of the ids of its footnotes.
    """
    notes = Notes()
    sections: dict[MetricGroup, list[ResultsLine]] = {}
    for row in method.rows:
        sections.setdefault(define(row.name).group, []).append(_results_line(row, notes))
    ordered = tuple((GROUP_TITLES[group], tuple(sections[group])) for group in GROUP_TITLES if group in sections)
    return ResultsTable(f"{anchor}-results", ordered, tuple(notes.reasons))


def comparison_table(group: GroupSummary, anchors: Mapping[str, str], anchor: str) -> ComparisonTable:
    """Table of a comparison.

    Args:
        group: The methods and their base and retain models.
        anchors: Id of each method's part of the page, by its name.
        anchor: Start of the ids of the footnotes.
    """
    notes = Notes()
    references = tuple(_reference_line(row, group, notes) for row in group.references)
    methods = tuple(_method_line(method, group, anchors.get(method.name), notes) for method in group.methods)
    columns = tuple((name, define(name).label, _direction_of(group, name)) for name in group.columns)
    return ComparisonTable(f"{anchor}-comparison", columns, references, methods, tuple(notes.reasons))


def _results_line(row: MetricRow, notes: Notes) -> ResultsLine:
    gap = text_cell(row.gap, notes) if row.unlearned.estimate and row.retain.estimate else TextCell("–")
    if row.gap.estimate is not None:
        gap = TextCell(wording.signed(row.gap.estimate.value), wording.gap_words(row.gap.estimate))
    details = _details(row)
    return ResultsLine(
        label=define(row.name).label,
        name=row.name,
        direction=wording.direction(row.direction),
        base=text_cell(row.base, notes, details.get("base", "")),
        unlearned=text_cell(row.unlearned, notes, details.get("unlearned", "")),
        retain=text_cell(row.retain, notes, details.get("retain", "")),
        gap=gap,
        change=TextCell(wording.judgement(row.change, row.direction), mark=_mark(row.change)),
        count=_count(row),
    )


def _details(row: MetricRow) -> dict[ModelRole, str]:
    """Further numbers of each model in words; counts have a column of their own."""
    words: dict[ModelRole, list[str]] = {}
    for role, name, value in row.details:
        if name != "n" and not name.startswith("num_"):
            words.setdefault(role, []).append(f"{name.replace('log10_p', 'log₁₀ p')} {wording.number(value)}")
    return {role: ", ".join(parts) for role, parts in words.items()}


def text_cell(cell: Cell, notes: Notes, more: str = "") -> TextCell:
    """A measurement with its interval or spread, or the footnote that says why there is none."""
    note = notes.number(cell.reason)
    if cell.estimate is None:
        return TextCell(wording.NOT_AVAILABLE, mark="missing", note=note)
    small = "; ".join(part for part in (wording.uncertainty(cell.estimate), more) if part)
    return TextCell(wording.number(cell.estimate.value), small, note=note)


def _mark(change: Judgement) -> str:
    return change if change in ("better", "worse") else ""


def _count(row: MetricRow) -> str:
    cells = (row.unlearned, row.base, row.retain)
    counts = [cell.estimate.count for cell in cells if cell.estimate is not None and cell.estimate.count is not None]
    return f"{counts[0]:,}" if counts else "–"


def _direction_of(group: GroupSummary, column: str) -> str:
    directions: Iterable[Direction] = (row.direction for m in group.methods if (row := m.row(column)) is not None)
    found = next(iter(directions), None)
    return "not measured" if found is None else wording.direction(found)


def _reference_line(row: ReferenceRow, group: GroupSummary, notes: Notes) -> ComparisonLine:
    several = len([other for other in group.references if other.role == row.role]) > 1
    small = f"for {', '.join(row.methods)}" if several else row.source
    cells = tuple(text_cell(cell, notes) for cell in row.cells)
    return ComparisonLine(wording.ROLE_WORDS[row.role], small, None, cells)


def _method_line(method: MethodSummary, group: GroupSummary, anchor: str | None, notes: Notes) -> ComparisonLine:
    num_stopped = sum(record.status == "stopped" for record in method.records)
    small = f"mean of {len(method.records)} seeds" if len(method.records) > 1 else ""
    if method.status == "failed" and not method.rows:
        return ComparisonLine(method.name, "failed", anchor, (), method.note or "No error was recorded.")
    if num_stopped:
        small = f"{small}, {num_stopped} stopped early" if small else "stopped early"
    cells = tuple(_method_cell(method, column, group, notes) for column in group.columns)
    return ComparisonLine(method.name, small, anchor, cells)


def _method_cell(method: MethodSummary, column: str, group: GroupSummary, notes: Notes) -> TextCell:
    row = method.row(column)
    if row is None:
        return text_cell(Cell(None, "Not measured in this run."), notes)
    shown = text_cell(row.unlearned, notes)
    leads = method.name in group.leaders[column]
    return TextCell(shown.text, shown.small, shown.mark or _mark(row.change), shown.note, leads)
