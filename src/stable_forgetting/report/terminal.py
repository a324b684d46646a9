"""The report's tables for the command line: the same summary as the page, in the width of a terminal.

Values without intervals and metrics by their code names; the page has the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.text import Text

from stable_forgetting.intervals import Estimate, Judgement
from stable_forgetting.records import Direction, RunRecord
from stable_forgetting.report.blocks import BlockTable, Column
from stable_forgetting.report.gaps import GAP_METRICS
from stable_forgetting.report.requests import (
    METRIC,
    Requests,
    find_requests,
    gap_over_runs,
    mean_score,
    request_name,
    score,
)
from stable_forgetting.report.summary import Cell, GroupSummary, MethodSummary, ReferenceRow, summarize
from stable_forgetting.report.wording import points, uncertainty_in_points

_STYLES: dict[Judgement, str] = {"better": "green", "worse": "red", "unclear": "", "not judged": ""}
_ARROWS: dict[Judgement, str] = {"better": "▲", "worse": "▼", "unclear": "", "not judged": ""}
_DIRECTIONS: dict[Direction, str] = {"higher": "higher", "lower": "lower", "retain": "near retain"}
_LEGEND = "▲ ▼ clearly better or worse than the base model; intervals: see the report"


def render_table(records: Sequence[RunRecord]) -> list[BlockTable]:
    """Tables of the records: before, after and retain model of one run, or a comparison for each problem.

    Methods over several requests come last, for each model two tables: tug of war by request, and gaps over all runs.

    Raises:
        ValueError: There are no records.
    """
    groups = summarize(records).groups
    several = len(groups) > 1
    tables = [_group_table(group, among_others=several) for group in groups]
    return [*tables, *(table for found in find_requests(groups) for table in (_scores(found), _gaps(found)))]


def _group_table(group: GroupSummary, *, among_others: bool) -> BlockTable:
    if len(group.methods) == 1:
        return _results(group.methods[0])
    problem = f"{group.task}, {request_name(group)}" if among_others and group.task == "image" else group.task
    base = f"base model {(group.base_identity or 'unknown')[:12]}"
    return _comparison(group, f"{problem}, {base if group.num_bases < 2 else 'base models that earlier runs left'}")


def _scores(requests: Requests) -> BlockTable:
    rows = []
    for row in requests.rows:
        cells = [score(method) for method in row.methods]
        rows.append((Text(row.name), [_value(cell) for cell in (*cells, mean_score(row))]))
    columns = [Column(_lines(name)) for name in (*requests.names, "mean")]
    return BlockTable(f"{METRIC} by request, {requests.model}", "model", columns, rows)


def _gaps(requests: Requests) -> BlockTable:
    rows = []
    for row in requests.rows:
        found = [gap_over_runs(row, metric).estimate for metric in GAP_METRICS]
        rows.append((Text(row.name), [*(_points(gap) for gap in found), Text(str(row.num_runs))]))
    columns = [Column(name.replace("_", "\n")) for name in (*GAP_METRICS, "runs")]
    title = f"gap to the retain model in points over all requests, {requests.model}"
    return BlockTable(title, "model", columns, rows)


def _points(gap: Estimate | None) -> Text:
    if gap is None:
        return Text("–", style="dim")
    return Text(f"{points(gap.value)} {uncertainty_in_points(gap)}".strip())


def _results(method: MethodSummary) -> BlockTable:
    if not method.rows:
        reason = Text(method.note or "No reason was recorded.")
        return BlockTable(method.name, "reason", [Column("status")], [(reason, [Text(method.status)])])
    rows = []
    reasons: dict[str, list[str]] = {}
    for row in method.rows:
        if row.unlearned.estimate is None:
            reasons.setdefault(row.unlearned.reason or "no reason was recorded", []).append(row.name)
            continue
        count = "" if row.unlearned.estimate.count is None else str(row.unlearned.estimate.count)
        values = [_value(row.base), _value(row.unlearned, row.change), _value(row.retain)]
        rows.append((Text(row.name), [*values, Text(_DIRECTIONS[row.direction]), Text(count)]))
    columns = [Column(name, right=False) for name in ("base", "unlearned", "retain", "better", "n")]
    caption = _caption(f"{', '.join(names)}: not available, {reason}" for reason, names in reasons.items())
    return BlockTable(method.name, "metric", columns, rows, caption)


def _comparison(group: GroupSummary, title: str) -> BlockTable:
    """Models below each other, key metrics beside each other."""
    lines = [(_role(row, group), dict(zip(group.columns, row.cells, strict=True))) for row in group.references]
    methods = [method for method in group.methods if method.rows]
    names = [name for name in group.columns if any(_cell(method, name).estimate for method in methods)]
    rows = [(label, [_value(known[name]) for name in names]) for label, known in lines]
    for method in methods:
        cells = [_value(_cell(method, name), _change(method, name)) for name in names]
        rows.append((Text(_label(method)), cells))
    failures = (f"{method.name} failed: {method.note}" for method in group.methods if not method.rows)
    columns = [Column(_short(name).replace("_", "\n")) for name in names]
    return BlockTable(title, "model", columns, rows, _caption(failures))


def _short(name: str) -> str:
    return name.replace("probability", "prob.").replace("rouge_l_recall", "rouge").replace("perplexity", "perpl.")


def _lines(name: str) -> str:
    """The names of deleted classes below each other."""
    return name.replace(", ", ",\n").replace(" and ", "\nand ")


def _role(row: ReferenceRow, group: GroupSummary) -> Text:
    several = len([other for other in group.references if other.role == row.role]) > 1
    return Text(f"{row.role} model of {', '.join(row.methods)}" if several else f"{row.role} model")


def _label(method: MethodSummary) -> str:
    return f"{method.name} ({len(method.records)} seeds)" if len(method.records) > 1 else method.name


def _cell(method: MethodSummary, name: str) -> Cell:
    row = method.row(name)
    return Cell(None) if row is None else row.unlearned


def _change(method: MethodSummary, name: str) -> Judgement:
    row = method.row(name)
    return "not judged" if row is None else row.change


def _value(cell: Cell, change: Judgement = "not judged") -> Text:
    if cell.estimate is None:
        return Text("–", style="dim")
    spread = "" if cell.estimate.spread is None else f"±{cell.estimate.spread:.3f}"
    number = f"{cell.estimate.value:.3g}".replace("e-0", "e-")
    return Text(f"{number}{spread}{_ARROWS[change]}", style=_STYLES[change])


def _caption(lines: Iterable[str]) -> Text:
    return Text("\n".join([*lines, _LEGEND]))
