"""The report's tables for the command line: the same summary as the page, in the width of a terminal.

Values without intervals and metrics by their code names; the page has the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from stable_forgetting.intervals import Estimate, Judgement
from stable_forgetting.records import Direction, RunRecord
from stable_forgetting.report.gaps import GAP_METRICS
from stable_forgetting.report.replicates import unusual_protocol
from stable_forgetting.report.requests import (
    METRIC,
    Requests,
    find_requests,
    gap_over_runs,
    mean_score,
    request_name,
    score,
)
from stable_forgetting.report.summary import Cell, GroupSummary, MethodSummary, MetricRow, ReferenceRow, summarize
from stable_forgetting.report.wide_table import WideTable
from stable_forgetting.report.wording import points, uncertainty_in_points

_STYLES: dict[Judgement, str] = {"better": "green", "worse": "red", "unclear": "", "not judged": ""}
_ARROWS: dict[Judgement, str] = {"better": "▲", "worse": "▼", "unclear": "", "not judged": ""}
_DIRECTIONS: dict[Direction, str] = {"higher": "higher", "lower": "lower", "retain": "near retain"}
_LEGEND = "▲ ▼ clearly better or worse than the base model; intervals: see the report"


def render_table(records: Sequence[RunRecord]) -> list[Table | WideTable]:
    """What rich prints of the records: before, after and retain model of one run, or a comparison for each problem.

    Methods over several requests come last, for each model two tables: tug of war by request, and gaps over all runs.

    Raises:
        ValueError: There are no records.
    """
    groups = summarize(records).groups
    several = len(groups) > 1
    tables = [_group_table(group, among_others=several) for group in groups]
    return [*tables, *(table for found in find_requests(groups) for table in (_scores(found), _gaps(found)))]


def _group_table(group: GroupSummary, *, among_others: bool) -> Table | WideTable:
    if len(group.methods) == 1:
        return _results(group.methods[0])
    problem = f"{group.task}, {request_name(group)}" if among_others and group.task == "image" else group.task
    base = f"base model {(group.base_identity or 'unknown')[:12]}"
    title = f"{problem}, {base if group.num_bases < 2 else 'base models that earlier runs left'}"
    protocol = unusual_protocol(group.methods[0].records[0])
    return _comparison(group, f"{title}, {protocol}" if protocol else title)


def _scores(requests: Requests) -> WideTable:
    scores = [[score(method) for method in row.methods] for row in requests.rows]
    columns = [(name, [_value(cells[place]) for cells in scores]) for place, name in enumerate(requests.names)]
    means = [_value(mean_score(row)) for row in requests.rows]
    labels = [Text(row.name) for row in requests.rows]
    return WideTable(f"{METRIC} by request, {requests.model}", "model", labels, [*columns, ("mean", means)])


def _gaps(requests: Requests) -> WideTable:
    columns = [
        (name.replace("_", "\n"), [_points(gap_over_runs(row, name).estimate) for row in requests.rows])
        for name in GAP_METRICS
    ]
    runs = ("runs", [Text(str(row.num_runs)) for row in requests.rows])
    title = f"gap to the retain model in points over all requests, {requests.model}"
    return WideTable(title, "model", [Text(row.name) for row in requests.rows], [*columns, runs])


def _points(gap: Estimate | None) -> Text:
    if gap is None:
        return Text("–", style="dim")
    return Text(f"{points(gap.value)} {uncertainty_in_points(gap)}".strip())


def _results(method: MethodSummary) -> Table | WideTable:
    if not method.rows:
        table = Table("status", "reason", title=Text(method.name), box=box.SIMPLE_HEAD)
        table.add_row(method.status, Text(method.note or "No reason was recorded."))
        return table
    rows: list[MetricRow] = []
    reasons: dict[str, list[str]] = {}
    for row in method.rows:
        if row.unlearned.estimate is None:
            reasons.setdefault(row.unlearned.reason or "no reason was recorded", []).append(row.name)
        else:
            rows.append(row)
    columns = [
        ("base", [_value(row.base) for row in rows]),
        ("unlearned", [_value(row.unlearned, row.change) for row in rows]),
        ("retain", [_value(row.retain) for row in rows]),
        ("better", [Text(_DIRECTIONS[row.direction]) for row in rows]),
        ("n", [_count(row) for row in rows]),
    ]
    missing = (f"{', '.join(names)}: not available, {reason}" for reason, names in reasons.items())
    return WideTable(method.name, "metric", [Text(row.name) for row in rows], columns, _caption(missing))


def _count(row: MetricRow) -> Text:
    count = None if row.unlearned.estimate is None else row.unlearned.estimate.count
    return Text("" if count is None else str(count))


def _comparison(group: GroupSummary, title: str) -> WideTable:
    """Models below each other, key metrics beside each other."""
    references = [(_role(row, group), dict(zip(group.columns, row.cells, strict=True))) for row in group.references]
    methods = [method for method in group.methods if method.rows]
    columns = []
    for name in group.columns:
        if any(_cell(method, name).estimate for method in methods):
            cells = [_value(known[name]) for _, known in references]
            cells += [_value(_cell(method, name), _change(method, name)) for method in methods]
            columns.append((_head(name), cells))
    labels = [label for label, _ in references] + [Text(_label(method)) for method in methods]
    failures = (f"{method.name} failed: {method.note}" for method in group.methods if not method.rows)
    return WideTable(title, "model", labels, columns, _caption(failures))


def _head(metric: str) -> str:
    short = metric.replace("probability", "prob.").replace("rouge_l_recall", "rouge").replace("perplexity", "perpl.")
    return short.replace("_", "\n")


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
