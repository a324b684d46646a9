"""Charts as small inline SVG: plain numbers in, markup out, the same bytes for the same numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.ticker import MaxNLocator

from stable_forgetting.report.canvas import (
    DASHES,
    INK,
    LEGEND_ROW,
    LIMIT,
    SERIES,
    SETTINGS,
    legend_columns,
    line_style,
    new_figure,
    set_log,
    to_svg,
    whiskers,
)
from stable_forgetting.report.series import Bar, Curve, Panel, Point, Scatter
from stable_forgetting.report.wording import number

_HEIGHT = 2.5
"""Inches of a line chart."""


def draw_panel(panel: Panel, prefix: str) -> str:
    """A line chart over the steps.

    Args:
        panel: What to draw.
        prefix: Start of every id inside the markup; it must be used once in a page.

    Returns:
        An `<svg>` element without ids, links or addresses that leave it.
    """
    with mpl.rc_context(SETTINGS):
        labels = [curve.label for curve in panel.curves if curve.label]
        columns = legend_columns(labels) if labels else 1
        figure, axes = new_figure(_HEIGHT + LEGEND_ROW * max(0, math.ceil(len(labels) / columns) - 1))
        for curve in panel.curves:
            _draw_curve(axes, panel, curve)
        if panel.limit is not None:
            axes.axhline(panel.limit, color=LIMIT, linewidth=1.1, linestyle=DASHES[1])
            axes.annotate(
                "limit", (1, panel.limit), xycoords=("axes fraction", "data"), xytext=(0, -9),
                textcoords="offset points", ha="right", color=LIMIT,
            )  # fmt: skip
            axes.set_ylim(0, panel.limit * 1.06)
        if panel.log:
            set_log(axes, "y", [value for curve in panel.curves for value in curve.values])
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if len(labels) > 1:
            figure.legend(loc="outside upper left", ncols=columns, handlelength=2.6, columnspacing=1.4, borderpad=0)
        return to_svg(figure, prefix, f"{panel.title}. {panel.caption}")


def draw_scatter(scatter: Scatter, prefix: str) -> str:
    """Forgetting against keeping, with 95 % intervals; base and retain model are marked."""
    with mpl.rc_context(SETTINGS):
        columns = min(2, legend_columns([point.label for point in scatter.points]))
        figure, axes = new_figure(2.9 + LEGEND_ROW * math.ceil(len(scatter.points) / columns))
        axes.grid(visible=True, axis="both")
        methods = [point for point in scatter.points if point.role == "method"]
        for point in scatter.points:
            place = methods.index(point) if point.role == "method" else None
            _draw_point(axes, point, place)
        axes.set_xlabel(scatter.forget_label)
        axes.set_ylabel(scatter.retain_label)
        axes.margins(0.08)
        figure.legend(loc="outside lower left", ncols=columns, columnspacing=1.4, borderpad=0)
        names = ", ".join(
            f"{point.label}: {number(point.forget.value)} and {number(point.retain.value)}" for point in scatter.points
        )
        return to_svg(figure, prefix, f"{scatter.forget_label} against {scatter.retain_label}. {names}.")


def draw_bars(bars: Sequence[Bar], prefix: str) -> str:
    """Largest entry of each layer's change as a share of its limit."""
    with mpl.rc_context(SETTINGS | {"axes.grid.axis": "x"}):
        figure, axes = new_figure(0.75 + 0.19 * len(bars))
        places = range(len(bars))
        axes.barh(places, [bar.share for bar in bars], height=0.62, color=SERIES[0])
        axes.axvline(1.0, color=LIMIT, linewidth=1.1, linestyle=DASHES[1])
        axes.set_yticks(places, [bar.label for bar in bars], color=INK, fontsize=7.5)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.set_xlim(0, max(1.04, 1.04 * max(bar.share for bar in bars)))
        axes.set_xlabel("share of the limit (dashed line)")
        highest = bars[0]
        text = f"Bars of {len(bars)} layers; the closest to its limit is {highest.label} with {highest.share:.1%}."
        return to_svg(figure, prefix, text)


def _draw_curve(axes: Any, panel: Panel, curve: Curve) -> None:
    pairs = list(zip(curve.steps, curve.values, strict=True))
    if panel.log:
        pairs = [(step, value) for step, value in pairs if value > 0]
    style = line_style(curve.colour)
    axes.plot(
        [step for step, _ in pairs],
        [value for _, value in pairs],
        color=style.colour,
        linestyle=style.dash,
        linewidth=1.4,
        marker=style.marker if len(pairs) <= 12 else "",
        markersize=3.5,
        label=curve.label or "_nolegend_",
    )


def _draw_point(axes: Any, point: Point, place: int | None) -> None:
    """One model with its intervals; the base model is a cross, the retain model a star."""
    if place is None:
        colour, marker, size = INK, {"base": "X", "retain": "*"}[point.role], 9.0
    else:
        style = line_style(place)
        colour, marker, size = style.colour, style.marker, 6.0
    axes.errorbar(
        [point.forget.value],
        [point.retain.value],
        xerr=whiskers(point.forget),
        yerr=whiskers(point.retain),
        color=colour,
        marker=marker,
        markersize=size,
        elinewidth=0.9,
        linestyle="",
        label=point.label,
    )
