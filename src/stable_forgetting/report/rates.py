"""Methods over learning rates: where each rate lands between forgetting and keeping, and how much the rate matters."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean, geometric_mean

from stable_forgetting.records import ModelRole, RunRecord
from stable_forgetting.report.glossary import HEADLINES, define
from stable_forgetting.report.replicates import key_without_rate, learning_rate
from stable_forgetting.report.summary import GroupSummary, MethodSummary

LOG_METRICS = ("forget_quality",)
"""Metrics that are drawn on a logarithmic axis."""


@dataclass(frozen=True)
class RatePoint:
    """One method at one learning rate."""

    rate: float | None
    """None if the record holds none."""
    mean: tuple[float, float]
    """Mean over the seeds of x and y; of a metric on a logarithmic axis the geometric mean."""
    runs: tuple[tuple[float, float], ...]
    """x and y of each run."""


@dataclass(frozen=True)
class RateLine:
    """One method through its learning rates, in rising order."""

    label: str
    colour: int
    points: tuple[RatePoint, ...]


@dataclass(frozen=True)
class RatePlane:
    """What is left of the forget set against what is kept."""

    keep_label: str
    forget_label: str
    lines: tuple[RateLine, ...]
    references: tuple[tuple[ModelRole, float, float], ...]
    """Role, x and y of base and retain model."""


@dataclass(frozen=True)
class RatePanel:
    """One metric against the learning rate; x of each point is the rate."""

    key: str
    label: str
    log: bool
    lines: tuple[RateLine, ...]
    references: tuple[tuple[ModelRole, float], ...]
    """Role and value of base and retain model, where they have one."""
    left_out: tuple[str, ...] = ()
    """Points of 0, which have no place on a logarithmic axis."""


def rate_plane(group: GroupSummary) -> RatePlane | None:
    """Forgetting against keeping, a line for each method; None unless a method has two learning rates."""
    families = _families(group)
    if not _is_sweep(families):
        return None
    keep, forget = _plane_metrics(group)
    lines = []
    for colour, (label, methods) in enumerate(families):
        points = [_point(method, partial(_pair, first=keep, second=forget)) for method in methods]
        lines.append(RateLine(label, colour, tuple(point for point in points if point is not None)))
    found = [(role, _first(group, role, keep), _first(group, role, forget)) for role in _references(group)]
    references = tuple((role, x, y) for role, x, y in found if x is not None and y is not None)
    drawn = tuple(line for line in lines if line.points)
    return RatePlane(define(keep).label, define(forget).label, drawn, references) if drawn else None


def rate_panels(group: GroupSummary) -> list[RatePanel]:
    """How good each method is at each learning rate; empty unless a method has two of them."""
    families = _families(group)
    if not _is_sweep(families):
        return []
    panels = []
    for metric in _score_metrics(group):
        log = metric in LOG_METRICS
        found = [_line(label, colour, methods, metric) for colour, (label, methods) in enumerate(families)]
        lines, left_out = _without_zeros(found) if log else (found, [])
        found_of_roles = ((role, _first(group, role, metric)) for role in _references(group))
        references = tuple((role, value) for role, value in found_of_roles if value is not None)
        drawn = tuple(line for line in lines if line.points)
        if drawn:
            label = define(metric).label
            panels.append(RatePanel(f"rate-{metric}", label, log, drawn, references, tuple(left_out)))
    return panels


def _line(label: str, colour: int, methods: Sequence[MethodSummary], metric: str) -> RateLine:
    average = _geometric_mean if metric in LOG_METRICS else fmean
    points = [
        _point(method, partial(_pair_with_rate, metric=metric), average)
        for method in methods
        if learning_rate(method.records[0]) is not None
    ]
    return RateLine(label, colour, tuple(point for point in points if point is not None))


def _geometric_mean(values: Sequence[float]) -> float:
    return geometric_mean(values) if min(values) > 0 else 0.0


def _without_zeros(lines: Sequence[RateLine]) -> tuple[list[RateLine], list[str]]:
    """The lines without points of 0, and what those are."""
    kept = [replace(line, points=tuple(point for point in line.points if point.mean[1] > 0)) for line in lines]
    left_out = [f"{line.label} at {point.rate:g}" for line in lines for point in line.points if point.mean[1] <= 0]
    return kept, left_out


def _families(group: GroupSummary) -> list[tuple[str, list[MethodSummary]]]:
    """Methods that differ in nothing but the learning rate, in rising order of it, with a name for all of them."""
    by_key: dict[str, list[MethodSummary]] = {}
    for method in group.methods:
        if method.rows:
            by_key.setdefault(key_without_rate(method.records[0]), []).append(method)
    families = [
        sorted(methods, key=lambda method: learning_rate(method.records[0]) or 0) for methods in by_key.values()
    ]
    names = [_family_name(methods[0]) for methods in families]
    counts = Counter(names)
    return [
        (name if counts[name] == 1 else f"{name} ({methods[0].name})", methods)
        for name, methods in zip(names, families, strict=True)
    ]


def _family_name(method: MethodSummary) -> str:
    """Objective, bound and adapted layers, or the method's own name where the record does not say."""
    config = method.records[0].config
    places = (("objective", "name"), ("adapter", "bound"), ("adapter", "target_modules"))
    sections = [(config.get(section), name) for section, name in places]
    values = [section.get(name) for section, name in sections if isinstance(section, dict)]
    if len(values) < len(places) or values[0] is None:
        return method.name
    return ", ".join(str(value) for value in values if value is not None)


def _is_sweep(families: Sequence[tuple[str, Sequence[MethodSummary]]]) -> bool:
    return any(len({learning_rate(method.records[0]) for method in methods}) > 1 for _, methods in families)


def _plane_metrics(group: GroupSummary) -> tuple[str, str]:
    """What is kept and what is left of the forget set."""
    forget, keep, _ = HEADLINES[group.task]
    return ("model_utility" if _is_measured(group, "model_utility") else keep), forget


def _score_metrics(group: GroupSummary) -> list[str]:
    if group.task == "image":
        return ["tow"]
    of_tofu = [name for name in ("model_utility", "forget_quality") if _is_measured(group, name)]
    forget, keep, _ = HEADLINES[group.task]
    return of_tofu or [keep, forget]


def _is_measured(group: GroupSummary, metric: str) -> bool:
    return any((row := method.row(metric)) is not None and row.unlearned.estimate for method in group.methods)


def _point(
    method: MethodSummary,
    values: Callable[[RunRecord], tuple[float, float] | None],
    average: Callable[[Sequence[float]], float] = fmean,
) -> RatePoint | None:
    runs = [pair for record in method.records if (pair := values(record)) is not None]
    if not runs:
        return None
    mean = (fmean(x for x, _ in runs), average([y for _, y in runs]))
    return RatePoint(learning_rate(method.records[0]), mean, tuple(runs))


def _pair(record: RunRecord, first: str, second: str) -> tuple[float, float] | None:
    x, y = _value(record, "unlearned", first), _value(record, "unlearned", second)
    return None if x is None or y is None else (x, y)


def _pair_with_rate(record: RunRecord, metric: str) -> tuple[float, float] | None:
    rate, value = learning_rate(record), _value(record, "unlearned", metric)
    return None if rate is None or value is None else (rate, value)


def _value(record: RunRecord, role: ModelRole, metric: str) -> float | None:
    evaluation = record.evaluation(role)
    found = None if evaluation is None else evaluation.metric(metric)
    return None if found is None or found.value is None or not math.isfinite(found.value) else found.value


def _references(group: GroupSummary) -> tuple[ModelRole, ...]:
    """The models that are drawn once for all methods."""
    return ("base", "retain") if group.num_bases < 2 else ("retain",)


def _first(group: GroupSummary, role: ModelRole, metric: str) -> float | None:
    """Value of the first run that has one; base and retain model are nearly always the same for all runs."""
    records = (record for method in group.methods for record in method.records)
    return next((value for record in records if (value := _value(record, role, metric)) is not None), None)
