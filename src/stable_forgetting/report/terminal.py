"""The report's tables for the command line, from the same summary as the page."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from stable_forgetting.records import RunRecord
from stable_forgetting.report.summary import GroupSummary, MethodSummary, summarize
from stable_forgetting.report.tables import TextCell, comparison_table, results_table

_STYLES = {"better": "green", "worse": "red", "missing": "dim", "": ""}
_ARROWS = {"better": " ▲", "worse": " ▼"}


def render_table(records: Sequence[RunRecord]) -> list[Table]:
    """Tables of the records: before, after and retain model of one run, or a comparison for each problem.

    Raises:
        ValueError: There are no records.
    """
    return [_group_table(group) for group in summarize(records).groups]


def _group_table(group: GroupSummary) -> Table:
    return _results(group.methods[0]) if len(group.methods) == 1 else _comparison(group)


def _results(method: MethodSummary) -> Table:
    if not method.rows:
        table = Table("status", "reason", title=Text(method.name))
        table.add_row(method.status, Text(method.note or "No reason was recorded."))
        return table
    data = results_table(method, "")
    table = Table("metric", "base", "unlearned", "retain", "gap to retain", "change", "n", title=Text(method.name))
    for title, lines in data.sections:
        table.add_section()
        table.add_row(Text(title, style="bold"))
        for line in lines:
            label = Text.assemble(line.label, ("\n" + line.direction, "dim"))
            cells = (line.base, line.unlearned, line.retain, line.gap, line.change)
            table.add_row(label, *(_text(cell) for cell in cells), line.count)
    table.caption = _caption(data.notes)
    return table


def _comparison(group: GroupSummary) -> Table:
    """Models in columns: a terminal has more room for metrics below each other."""
    data = comparison_table(group, {}, "")
    table = Table("metric", title=Text(f"One problem, base model {group.base_identity or 'unknown'}"))
    shown = [line for line in (*data.references, *data.methods) if line.failure is None]
    for line in shown:
        table.add_column(Text.assemble(line.name, ("\n" + line.small if line in data.methods else "", "dim")))
    for place, (_, label, direction) in enumerate(data.columns):
        name = Text.assemble(label, ("\n" + direction, "dim"))
        table.add_row(name, *(_text(line.cells[place]) for line in shown))
    failures = [f"{line.name} failed: {line.failure}" for line in data.methods if line.failure is not None]
    table.caption = _caption(data.notes, failures)
    return table


def _text(cell: TextCell) -> Text:
    note = f" [{cell.note}]" if cell.note is not None else ""
    style = f"{_STYLES[cell.mark]} {'bold' if cell.leads else ''}".strip()
    small = (f"\n{cell.small}", "dim") if cell.small else ""
    return Text.assemble((f"{cell.text}{_ARROWS.get(cell.mark, '')}{note}", style), small)


def _caption(notes: Sequence[str], failures: Sequence[str] = ()) -> Text | None:
    lines = [*failures, *(f"[{place}] {note}" for place, note in enumerate(notes, start=1))]
    return Text("\n".join(lines)) if lines else None
