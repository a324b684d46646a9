"""Methods over several requests: the same methods on other classes of the same data, or on the steps of a sequence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from stable_forgetting.intervals import Estimate
from stable_forgetting.records import RunRecord
from stable_forgetting.report import wording
from stable_forgetting.report.gaps import GAP_METRICS, HEADINGS
from stable_forgetting.report.replicates import (
    earlier_run,
    key_of_model_and_source,
    key_over_requests,
    name_without_seed,
)
from stable_forgetting.report.summary import Cell, GroupSummary, MethodSummary
from stable_forgetting.report.tables import ComparisonLine, Notes, TextCell, text_cell

METRIC = "tow"
"""What the table shows for each request: one number for forgetting and keeping, 1 for the retain model."""

_MOST_NAMES = 3
"""Deleted classes that are named in the heading of a request."""


@dataclass(frozen=True)
class RequestRow:
    """One method over the requests."""

    name: str
    methods: tuple[MethodSummary | None, ...]
    """What it came to, in the order of the requests; None where it was not run."""

    @property
    def num_runs(self) -> int:
        """Number of runs on all requests."""
        return sum(len(method.records) for method in self.methods if method is not None)


@dataclass(frozen=True)
class Requests:
    """Requests on the same data, with models made from the same one, and the methods on them."""

    groups: tuple[GroupSummary, ...]
    """Each request's methods."""
    names: tuple[str, ...]
    """What each request is about, in words."""
    rows: tuple[RequestRow, ...]

    @property
    def model(self) -> str:
        """Name of the model that base and retain models were made from."""
        model = self.groups[0].methods[0].records[0].config.get("model")
        return str(model.get("name")) if isinstance(model, dict) else "unknown model"


@dataclass(frozen=True)
class RequestTables:
    """Tug of war by request, and the gaps to the retain model over all of them."""

    anchor: str
    title: str
    requests: tuple[tuple[str, str | None], ...]
    """Name of each request, and the id of its part of the page."""
    scores: tuple[ComparisonLine, ...]
    """One cell for each request, and the mean."""
    gap_headings: tuple[tuple[str, str], ...]
    gaps: tuple[ComparisonLine, ...]
    notes: tuple[str, ...]


def find_requests(groups: Sequence[GroupSummary]) -> list[Requests]:
    """Problems of image classifiers that differ in nothing but what is forgotten, at once or before.

    Args:
        groups: All problems of a report.

    Returns:
        One entry for each model and data set with two problems or more, of which a method has a tug of war on some.
    """
    families: dict[str, list[GroupSummary]] = {}
    for group in groups:
        if group.task == "image":
            families.setdefault(key_of_model_and_source(group.methods[0].records[0]), []).append(group)
    several = (Requests(tuple(found), _names(found), _rows(found)) for found in families.values() if len(found) > 1)
    return [found for found in several if any(_is_compared(row) for row in found.rows)]


def request_name(group: GroupSummary) -> str:
    """What is forgotten: the names of deleted classes, or a number of images."""
    record = next((found for found in _records(group) if found.class_accuracies), group.methods[0].records[0])
    labels = [entry.label for entry in record.class_accuracies if entry.deleted]
    names = [wording.class_name(record.class_names, label) for label in labels]
    count = next((entry.count for entry in group.sets if entry.name == "forget"), None)
    if names:
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        words = f"{', '.join(names[:_MOST_NAMES])}{more}"
    else:
        words = "unknown" if count is None else wording.plural(count, "image")
    return words if all(earlier_run(found) is None for found in _records(group)) else f"then {words}"


def mean_score(row: RequestRow) -> Cell:
    """Mean over the requests of the means over the seeds; none where a request lacks a value: it would not compare."""
    values = [cell.estimate.value for method in row.methods if (cell := score(method)).estimate is not None]
    if len(values) < len(row.methods):
        return Cell(None, "No mean, because not every request has a value.")
    return Cell(Estimate(fmean(values)))


def score(method: MethodSummary | None) -> Cell:
    """Tug of war of a method on one request."""
    if method is None:
        return Cell(None, "Not run for this request.")
    row = method.row(METRIC)
    if row is None:
        return Cell(
            None, f"The run failed: {method.note}" if method.status == "failed" else "Not measured in this run."
        )
    return row.unlearned


def gap_over_runs(row: RequestRow, metric: str) -> Cell:
    """Gap to the retain model, mean and standard deviation over all runs on all requests."""
    records = [record for method in row.methods if method is not None for record in method.records]
    found = []
    for record in records:
        values = [
            value.value
            for evaluation in (record.evaluation("unlearned"), record.evaluation("retain"))
            if evaluation is not None and (value := evaluation.metric(metric)) is not None and value.value is not None
        ]
        if len(values) == 2:
            found.append(values[0] - values[1])
    if not found:
        return Cell(None, "No run has a value for both models.")
    missing = (
        f"Not available in {len(records) - len(found)} of {len(records)} runs." if len(found) < len(records) else None
    )
    return Cell(Estimate(fmean(found), spread=stdev(found) if len(found) > 1 else None, num_runs=len(found)), missing)


def request_tables(requests: Requests, anchors: Mapping[int, str], anchor: str, title: str) -> RequestTables:
    """The tables of the page.

    Args:
        requests: The requests and methods.
        anchors: Id of each group's part of the page, by its `id`.
        anchor: Start of the ids of the tables and footnotes.
        title: Of this part of the page.
    """
    notes = Notes()
    links = tuple(zip(requests.names, (anchors.get(id(group)) for group in requests.groups), strict=True))
    scores = tuple(_score_line(row, requests, notes) for row in requests.rows)
    gaps = tuple(_gap_line(row, notes) for row in requests.rows)
    return RequestTables(anchor, title, links, scores, HEADINGS[: len(GAP_METRICS)], gaps, tuple(notes.reasons))


def _score_line(row: RequestRow, requests: Requests, notes: Notes) -> ComparisonLine:
    cells = []
    for group, method in zip(requests.groups, row.methods, strict=True):
        shown = text_cell(score(method), notes)
        leads = method is not None and method.name in group.leaders.get(METRIC, ())
        cells.append(TextCell(shown.text, shown.small, shown.mark, shown.note, leads))
    return ComparisonLine(row.name, "", None, (*cells, text_cell(mean_score(row), notes)))


def _gap_line(row: RequestRow, notes: Notes) -> ComparisonLine:
    cells = []
    for metric in GAP_METRICS:
        cell = gap_over_runs(row, metric)
        shown = text_cell(cell, notes)
        if cell.estimate is not None:
            small = wording.uncertainty_in_points(cell.estimate)
            shown = TextCell(wording.points(cell.estimate.value), small, note=shown.note)
        cells.append(shown)
    return ComparisonLine(row.name, wording.plural(row.num_runs, "run"), None, tuple(cells))


def _is_compared(row: RequestRow) -> bool:
    return sum(score(method).estimate is not None for method in row.methods) > 1


def _records(group: GroupSummary) -> Iterable[RunRecord]:
    return (record for method in group.methods for record in method.records)


def _names(groups: Sequence[GroupSummary]) -> tuple[str, ...]:
    """Name of each request, numbered where two have the same one."""
    names = [request_name(group) for group in groups]
    counts = Counter(names)
    return tuple(
        f"{name} ({names[: place + 1].count(name)})" if counts[name] > 1 else name for place, name in enumerate(names)
    )


def _rows(groups: Sequence[GroupSummary]) -> tuple[RequestRow, ...]:
    """Methods by their settings; repetitions of a method within a request are further rows, failed runs the last."""
    found: dict[tuple[str, int], list[MethodSummary | None]] = {}
    for place, group in enumerate(groups):
        seen: Counter[str] = Counter()
        for method in sorted(group.methods, key=lambda method: method.status == "failed"):
            key = key_over_requests(method.records[0])
            found.setdefault((key, seen[key]), [None] * len(groups))[place] = method
            seen[key] += 1
    names = [_common_name(methods) for methods in found.values()]
    counts = Counter(names)
    return tuple(
        RequestRow(f"{name} ({names[: place + 1].count(name)})" if counts[name] > 1 else name, tuple(methods))
        for place, (name, methods) in enumerate(zip(names, found.values(), strict=True))
    )


def _common_name(methods: Sequence[MethodSummary | None]) -> str:
    """The end that the names of its runs share: benchmarks put the request before the method."""
    names = [name_without_seed(method.records[0].name) for method in methods if method is not None]
    shared: list[str] = []
    for parts in zip(*(reversed(name.split("-")) for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        shared.insert(0, parts[0])
    return "-".join(shared) or names[0]
