"""The chart of single classes: how the accuracy of each one changed, with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.lines import Line2D

from stable_forgetting.intervals import excludes_zero
from stable_forgetting.report.canvas import INK, MUTED, SERIES, SETTINGS, new_figure, to_svg
from stable_forgetting.report.classes import ClassRow
from stable_forgetting.report.wording import points

_CLEAR, _UNCLEAR, _RETAIN = "unlearned, clear change", "unlearned, no clear change", "retain model"


def draw_classes(rows: Sequence[ClassRow], prefix: str) -> str:
    """Change of accuracy of each class from the base model, in percentage points, the largest loss on top.

    A filled point is a change that is larger than its interval, a hollow one is not; the star is the retain model.

    Args:
        rows: The classes, at least one.
        prefix: Start of every id inside the markup; it must be used once in a page.
    """
    with mpl.rc_context(SETTINGS | {"axes.grid.axis": "x"}):
        figure, axes = new_figure(1.05 + 0.21 * len(rows))
        axes.axvline(0, color=MUTED, linewidth=0.8)
        for place, row in enumerate(rows):
            _draw_class(axes, place, row)
        labels = [
            f"{row.name} (deleted, n = {row.count})" if row.deleted else f"{row.name} (n = {row.count})" for row in rows
        ]
        axes.set_yticks(range(len(rows)), labels, color=INK, fontsize=7.5)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel("change of accuracy, percentage points")
        figure.legend(handles=_legend(rows), loc="outside lower left", ncols=2, columnspacing=1.4, borderpad=0)
        changes = ", ".join(f"{row.name} {points(row.change.value)}" for row in rows)
        return to_svg(figure, prefix, f"Change of accuracy by class in percentage points: {changes}.")


def _draw_class(axes: Any, place: int, row: ClassRow) -> None:
    value = 100 * row.change.value
    if row.change.low is not None and row.change.high is not None:
        axes.hlines(place, 100 * row.change.low, 100 * row.change.high, color=SERIES[0], linewidth=0.9)
    axes.hlines(place, 0, value, color=SERIES[0], linewidth=2.6)
    filled = SERIES[0] if excludes_zero(row.change) else "none"
    axes.plot([value], [place], marker="o", markersize=5.5, color=SERIES[0], markerfacecolor=filled, linestyle="")
    if row.retain_change is not None:
        axes.plot([100 * row.retain_change.value], [place], marker="*", markersize=7.5, color=INK, linestyle="")


def _legend(rows: Sequence[ClassRow]) -> list[Line2D]:
    marks = [
        (_CLEAR, "o", SERIES[0], SERIES[0]),
        (_UNCLEAR, "o", SERIES[0], "none"),
        (_RETAIN, "*", INK, INK),
    ]
    clear = {excludes_zero(row.change) for row in rows}
    there = {_CLEAR: True in clear, _UNCLEAR: False in clear, _RETAIN: any(row.retain for row in rows)}
    return [
        Line2D([], [], color=colour, marker=marker, markerfacecolor=fill, linestyle="", label=label)
        for label, marker, colour, fill in marks
        if there[label]
    ]
