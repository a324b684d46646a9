"""Which curves, points and bars the charts show, as plain numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from stable_forgetting.intervals import Estimate
from stable_forgetting.records import LayerCertificate, RunRecord, StepRecord
from stable_forgetting.report.glossary import HEADLINES, define
from stable_forgetting.report.replicates import seed_label
from stable_forgetting.report.summary import GroupSummary, MethodSummary
from stable_forgetting.report.verdicts import entry_share

MAX_BARS = 24
"""Layers drawn in a certificate chart; the table beside it holds all of them."""


@dataclass(frozen=True)
class Curve:
    """One line. Curves of the same kind share a colour and only the first carries the label."""

    label: str | None
    colour: int
    steps: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Panel:
    """One line chart over the steps."""

    key: str
    title: str
    caption: str
    curves: tuple[Curve, ...]
    log: bool = False
    limit: float | None = None
    """A horizontal line that the values must not pass."""


@dataclass(frozen=True)
class Point:
    """One model in the forget-versus-retain plane."""

    label: str
    role: Literal["base", "retain", "method"]
    forget: Estimate
    retain: Estimate


@dataclass(frozen=True)
class Scatter:
    """Forgetting against keeping."""

    forget_label: str
    retain_label: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Bar:
    """Largest entry of one layer's change as a share of its limit."""

    label: str
    share: float


def method_panels(method: MethodSummary) -> list[Panel]:
    """Step history of one method; with several seeds each seed is a line. Panels without a value are left out."""
    records = method.records
    lines = f" One line for each of {len(records)} seeds." if len(records) > 1 else ""
    terms = _curves(records, lambda step: step.forget_term, 0, "forget term")
    terms += _curves(records, lambda step: step.retain_term, 1, "retain term")
    terms += _curves(records, lambda step: step.unseen_term, 2, "unseen term")
    panels = [
        Panel("terms", "Objective", f"The terms of the objective.{lines}", tuple(terms)),
        _gradient_panel(_curves(records, lambda step: step.grad_norm, 0, None), lines),
        _simple(records, "adapter", "Size of the change", "Frobenius norm over all adapted layers.", _adapter_norm),
        _entry_panel(records),
        _simple(records, "rate", "Learning rate", "As it was used in each step.", lambda step: step.learning_rate),
        *_validation_panels(records),
    ]
    return [panel for panel in panels if panel.curves]


def _entry_panel(records: Sequence[RunRecord]) -> Panel:
    shares = tuple(_curves(records, lambda step: step.largest_share, 0, None))
    if shares:
        caption = "Largest change of any weight, as a share of its layer's limit."
        return Panel("entry", "Largest entry", caption, shares, limit=1.0)
    entries = tuple(_curves(records, lambda step: step.largest_entry, 0, None))
    return Panel("entry", "Largest entry", "Largest change of any weight.", entries)


def comparison_panels(group: GroupSummary) -> list[Panel]:
    """Gradient norm and size of the change of all methods, the figures on stability."""
    gradients, sizes = [], []
    for place, method in enumerate(_with_history(group)):
        gradients += _curves(method.records, lambda step: step.grad_norm, place, method.name)
        sizes += _curves(method.records, _adapter_norm, place, method.name)
    panels = [
        _gradient_panel(gradients, " All methods on one axis."),
        Panel("sizes", "Size of the change", "Frobenius norm over all adapted layers.", tuple(sizes), log=True),
    ]
    return [panel for panel in panels if panel.curves]


def forget_retain_scatter(group: GroupSummary) -> Scatter | None:
    """Forgetting against keeping, with base and retain model; None without a method that has both values."""
    forget, retain, _ = HEADLINES[group.task]
    points = [point for role in ("base", "retain") for point in _reference_points(group, role)]
    methods = []
    for method in group.methods:
        rows = method.row(forget), method.row(retain)
        estimates = [row.unlearned.estimate for row in rows if row is not None]
        if len(estimates) == 2 and estimates[0] is not None and estimates[1] is not None:
            methods.append(Point(method.name, "method", estimates[0], estimates[1]))
    if not methods:
        return None
    return Scatter(define(forget).label, define(retain).label, (*points, *methods))


def certificate_bars(layers: Sequence[LayerCertificate]) -> list[Bar]:
    """Bounded layers by how close they are to their limit, the closest first, at most `MAX_BARS`."""
    bounded = sorted((layer for layer in layers if layer.entry_limit), key=entry_share, reverse=True)
    return [Bar(layer.layer, entry_share(layer)) for layer in bounded[:MAX_BARS]]


def _reference_points(group: GroupSummary, role: Literal["base", "retain"]) -> Iterable[Point]:
    forget, retain, _ = HEADLINES[group.task]
    label = "base model" if role == "base" else "retain model"
    rows = [row for row in group.references if row.role == role]
    for row in rows:
        values = dict(zip(group.columns, row.cells, strict=True))
        first, second = values[forget].estimate, values[retain].estimate
        if first is not None and second is not None:
            yield Point(label if len(rows) == 1 else f"{label} ({', '.join(row.methods)})", role, first, second)


def _with_history(group: GroupSummary) -> list[MethodSummary]:
    return [method for method in group.methods if any(record.history for record in method.records)]


def _gradient_panel(curves: Sequence[Curve], more: str) -> Panel:
    caption = f"Norm of the gradient before clipping, on a logarithmic axis.{more}"
    return Panel("gradient", "Gradient norm", caption, tuple(curves), log=True)


def _simple(
    records: Sequence[RunRecord], key: str, title: str, caption: str, value: Callable[[StepRecord], float | None]
) -> Panel:
    return Panel(key, title, caption, tuple(_curves(records, value, 0, None)))


def _adapter_norm(step: StepRecord) -> float | None:
    return step.adapter_norm


def _validation_panels(records: Sequence[RunRecord]) -> list[Panel]:
    names = {name: None for record in records for step in record.history for name in step.validation or {}}
    panels = []
    for name in names:
        curves = _curves(records, partial(_validation_value, name), 0, None)
        caption = "Measured during training on some of the forget and retain examples."
        panels.append(Panel(f"validation-{name}", define(name).label, caption, tuple(curves)))
    return panels


def _validation_value(name: str, step: StepRecord) -> float | None:
    return (step.validation or {}).get(name)


def _curves(
    records: Sequence[RunRecord], value: Callable[[StepRecord], float | None], colour: int, label: str | None
) -> list[Curve]:
    """One curve for each record that has the value in any step; missing steps are left out."""
    curves: list[Curve] = []
    for record in records:
        pairs = [(float(step.step), number) for step in record.history if (number := value(step)) is not None]
        finite = [pair for pair in pairs if math.isfinite(pair[1])]
        if finite:
            steps, values = zip(*finite, strict=True)
            name = label if label is not None or len(records) == 1 else seed_label(record)
            shown = None if label is not None and curves else name
            curves.append(Curve(shown, colour if label is not None else len(curves), steps, values))
    return curves
