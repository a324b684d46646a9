"""Records to summary: every number of the report, still as a number, with what may be said about it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from stable_forgetting.intervals import Estimate, Judgement, average, difference, estimate_of, judge, judge_change
from stable_forgetting.records import Direction, MetricValue, ModelRole, RunRecord, SetIdentity
from stable_forgetting.report.glossary import LEADS, key_columns, report_order
from stable_forgetting.report.replicates import group_by_method, group_by_problem, name_without_seed

ROLES: tuple[ModelRole, ...] = ("base", "unlearned", "retain")

Status = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class Cell:
    """One measurement, or the reason why there is none."""

    estimate: Estimate | None
    reason: str | None = None
    """Why there is no value, or why some of the runs behind a mean have none."""


@dataclass(frozen=True)
class MetricRow:
    """One metric of the three models."""

    name: str
    direction: Direction
    base: Cell
    unlearned: Cell
    retain: Cell
    gap: Cell
    """Unlearned model minus retain model."""
    change: Judgement
    """The unlearned model compared with the base model."""
    details: tuple[tuple[ModelRole, str, float], ...] = ()
    """Further numbers of the same test, such as a statistic beside its p-value; only of single runs."""


@dataclass(frozen=True)
class MethodSummary:
    """One method: a run, or several that differ in nothing but seeds."""

    name: str
    status: Status
    note: str | None
    """Why it stopped early or failed."""
    records: tuple[RunRecord, ...]
    rows: tuple[MetricRow, ...]

    def row(self, metric: str) -> MetricRow | None:
        """The row of that metric, or None if no model has it."""
        return next((row for row in self.rows if row.name == metric), None)


@dataclass(frozen=True)
class ReferenceRow:
    """The base or the retain model as it was measured for some of the methods."""

    role: ModelRole
    source: str
    methods: tuple[str, ...]
    """Names of the methods that it was measured for."""
    cells: tuple[Cell, ...]
    """In the order of the group's columns."""


@dataclass(frozen=True)
class GroupSummary:
    """Methods on the same problem: same task, base model and data."""

    task: Literal["language", "image"]
    base_identity: str | None
    num_bases: int
    """More than one where runs go on from what earlier runs left: then each method and seed has a base model."""
    sets: tuple[SetIdentity, ...]
    columns: tuple[str, ...]
    """Metrics of the comparison."""
    methods: tuple[MethodSummary, ...]
    references: tuple[ReferenceRow, ...]
    leaders: Mapping[str, tuple[str, ...]]
    """For each column and each measured number that says who leads, by its name: the methods that no other one clearly
    beats; empty where nothing is clear."""


@dataclass(frozen=True)
class Summary:
    """All groups of a report."""

    groups: tuple[GroupSummary, ...]

    @property
    def num_runs(self) -> int:
        """Number of records behind the summary."""
        return sum(len(method.records) for group in self.groups for method in group.methods)


def summarize(records: Sequence[RunRecord]) -> Summary:
    """Put runs of the same problem side by side and average over seeds.

    Args:
        records: The runs; their order is the order of the report.

    Raises:
        ValueError: There are no records.
    """
    if not records:
        raise ValueError("There are no records to report. Give at least one run that has been finished or has failed.")
    return Summary(tuple(_summarize_group(group) for group in group_by_problem(records)))


def _summarize_group(records: Sequence[RunRecord]) -> GroupSummary:
    identified = next((record for record in records if record.sets), records[0])
    methods = tuple(_unique_names([_summarize_method(runs) for runs in group_by_method(records)]))
    measured = {row.name for method in methods for row in method.rows}
    columns = key_columns(records[0].task, measured) if measured else ()
    return GroupSummary(
        task=records[0].task,
        base_identity=identified.models.get("base"),
        num_bases=len({record.models["base"] for record in records if "base" in record.models}),
        sets=tuple(identified.sets),
        columns=columns,
        methods=methods,
        references=tuple(_references(methods, columns)),
        leaders={name: _leaders(methods, name) for name in (*columns, *_leads(records[0].task, methods))},
    )


def _unique_names(methods: Sequence[MethodSummary]) -> Iterable[MethodSummary]:
    """The methods, numbered where two have the same name."""
    names = [method.name for method in methods]
    for place, method in enumerate(methods):
        number = names[: place + 1].count(method.name)
        name = f"{method.name} ({number})" if names.count(method.name) > 1 else method.name
        yield MethodSummary(name, method.status, method.note, method.records, method.rows)


def _summarize_method(records: Sequence[RunRecord]) -> MethodSummary:
    first = records[0]
    name = name_without_seed(first.name) if len(records) > 1 else first.name
    metrics = {metric.name for record in records for entry in record.evaluations for metric in entry.metrics}
    stopped = next((record for record in records if record.status != "finished"), first)
    return MethodSummary(
        name=name,
        status=stopped.status,
        note=stopped.error if stopped.status == "failed" else stopped.stopped,
        records=tuple(records),
        rows=tuple(_metric_row(records, metric) for metric in sorted(metrics, key=report_order)),
    )


def _metric_row(records: Sequence[RunRecord], name: str) -> MetricRow:
    base, unlearned, retain = (_cell(records, role, name) for role in ROLES)
    found = [metric for record in records for role in ROLES if (metric := _metric(record, role, name)) is not None]
    direction = found[0].direction
    return MetricRow(
        name=name,
        direction=direction,
        base=base,
        unlearned=unlearned,
        retain=retain,
        gap=_gap(records, name, unlearned, retain),
        change=judge_change(unlearned.estimate, base.estimate, direction, retain.estimate),
        details=tuple(_details(records[0], name)) if len(records) == 1 else (),
    )


def _metric(record: RunRecord, role: ModelRole, name: str) -> MetricValue | None:
    evaluation = record.evaluation(role)
    return None if evaluation is None else evaluation.metric(name)


def _value(record: RunRecord, role: ModelRole, name: str) -> float | None:
    metric = _metric(record, role, name)
    return None if metric is None else metric.value


def _details(record: RunRecord, name: str) -> Iterable[tuple[ModelRole, str, float]]:
    for role in ROLES:
        metric = _metric(record, role, name)
        for key, value in metric.details.items() if metric else ():
            yield role, key, value


def _cell(records: Sequence[RunRecord], role: ModelRole, name: str) -> Cell:
    """Mean over the runs that have the metric; the reason of the first that has not."""
    estimates, reasons = [], []
    for record in records:
        metric = _metric(record, role, name)
        estimate = estimate_of(metric)
        if estimate is not None:
            estimates.append(estimate)
        else:
            reasons.append(_reason(record, role, metric))
    if not estimates:
        return Cell(None, reasons[0])
    same_model = role != "unlearned" and len(set(estimates)) == 1
    merged = estimates[0] if same_model else average(estimates)
    missing = f"Not available in {len(reasons)} of {len(records)} runs: {reasons[0]}" if reasons else None
    return Cell(merged, missing)


def _reason(record: RunRecord, role: ModelRole, metric: MetricValue | None) -> str:
    if metric is not None:
        return metric.reason or "The record holds neither a value nor a reason."
    if record.evaluation(role) is None:
        return f"The {role} model was not evaluated."
    return f"Not measured for the {role} model."


def _gap(records: Sequence[RunRecord], name: str, unlearned: Cell, retain: Cell) -> Cell:
    if unlearned.estimate is None:
        return Cell(None, unlearned.reason)
    if retain.estimate is None:
        return Cell(None, retain.reason)
    gap = difference(unlearned.estimate, retain.estimate)
    pairs = [(_value(record, "unlearned", name), _value(record, "retain", name)) for record in records]
    gaps = [own - kept for own, kept in pairs if own is not None and kept is not None]
    spread = statistics.stdev(gaps) if len(gaps) > 1 else None
    return Cell(replace(gap, spread=spread, num_runs=max(1, len(gaps))))


def _references(methods: Sequence[MethodSummary], columns: Sequence[str]) -> Iterable[ReferenceRow]:
    """Base and retain model, one row for each set of values that differs."""
    for role in ("base", "retain"):
        found: dict[tuple[str, tuple[Cell, ...]], list[str]] = {}
        for method in methods:
            evaluation = next((e for record in method.records if (e := record.evaluation(role)) is not None), None)
            if evaluation is not None:
                cells = tuple(_reference_cell(method, role, column) for column in columns)
                found.setdefault((evaluation.source, cells), []).append(method.name)
        for (source, cells), names in found.items():
            yield ReferenceRow(role, source, tuple(names), cells)


def _reference_cell(method: MethodSummary, role: Literal["base", "retain"], column: str) -> Cell:
    row = method.row(column)
    if row is None:
        return Cell(None, "Not measured in this run.")
    return row.base if role == "base" else row.retain


def _leads(task: str, methods: Sequence[MethodSummary]) -> list[str]:
    """The numbers that say who leads of which some method has a value, whether they are columns or not."""
    valued = {row.name for method in methods for row in method.rows if row.unlearned.estimate is not None}
    return [name for name in LEADS[task] if name in valued]


def _leaders(methods: Sequence[MethodSummary], column: str) -> tuple[str, ...]:
    """Methods that none clearly beats, if at least one other is clearly beaten."""
    rows = [(method.name, row) for method in methods if (row := method.row(column)) and row.unlearned.estimate]
    leading = [name for name, row in rows if not any(_beats(other, row) for _, other in rows)]
    return tuple(leading) if len(leading) < len(rows) else ()


def _beats(first: MetricRow, second: MetricRow) -> bool:
    if first.unlearned.estimate is None or second.unlearned.estimate is None:
        return False
    verdict = judge(first.unlearned.estimate, second.unlearned.estimate, first.direction, first.retain.estimate)
    return verdict == "better"
