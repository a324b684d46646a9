"""The charts of a comparison over learning rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from stable_forgetting.records import ModelRole
from stable_forgetting.report.canvas import (
    INK,
    LEGEND_ROW,
    MUTED,
    SETTINGS,
    legend_columns,
    line_style,
    new_figure,
    set_log,
    to_svg,
)
from stable_forgetting.report.rates import RateLine, RatePanel, RatePlane
from stable_forgetting.report.wording import number

_REFERENCE_MARKERS: dict[ModelRole, str] = {"base": "X", "retain": "*"}
_SMALLEST, _LARGEST = 4.0, 8.0
"""Sizes of the points of a line's lowest and highest learning rate."""


def draw_plane(plane: RatePlane, prefix: str) -> str:
    """What is left of the forget set against what is kept; a point grows with its learning rate.

    Args:
        plane: What to draw.
        prefix: Start of every id inside the markup; it must be used once in a page.
    """
    with mpl.rc_context(SETTINGS):
        figure, axes = new_figure(2.9 + LEGEND_ROW * (len(plane.lines) + len(plane.references)))
        axes.grid(visible=True, axis="both")
        for line in plane.lines:
            _draw_line(axes, line)
            growth = (_LARGEST - _SMALLEST) / max(1, len(line.points) - 1)
            for place, point in enumerate(line.points):
                _draw_marks(axes, line, [point.mean], size=_SMALLEST + growth * place)
        for role, x, y in plane.references:
            marker = _REFERENCE_MARKERS[role]
            axes.plot([x], [y], marker=marker, markersize=9.0, color=INK, linestyle="", label=f"{role} model")
        axes.set(xlabel=plane.keep_label, ylabel=plane.forget_label)
        axes.margins(0.08)
        _draw_legend(figure, [line.label for line in plane.lines])
        return to_svg(figure, prefix, f"{plane.forget_label} against {plane.keep_label}. {_words(plane.lines)}")


def draw_rates(panel: RatePanel, prefix: str) -> str:
    """One metric against the learning rate, which has a logarithmic axis.

    Args:
        panel: What to draw.
        prefix: Start of every id inside the markup; it must be used once in a page.
    """
    with mpl.rc_context(SETTINGS):
        figure, axes = new_figure(2.4 + LEGEND_ROW * len(panel.lines))
        for line in panel.lines:
            _draw_line(axes, line)
            _draw_marks(axes, line, [point.mean for point in line.points], size=4.5)
        for role, value in panel.references:
            if value > 0 or not panel.log:
                _draw_level(axes, role, value)
        values = [value for line in panel.lines for point in line.points for _, value in point.runs]
        if panel.log:
            set_log(axes, "y", values)
        axes.set_xscale("log")
        rates = sorted({point.mean[0] for line in panel.lines for point in line.points})
        axes.xaxis.set_major_locator(FixedLocator(rates))
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: np.format_float_scientific(value, trim="-", exp_digits=1))
        )
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set(xlabel="learning rate", ylabel=panel.label)
        axes.margins(0.08)
        _draw_legend(figure, [line.label for line in panel.lines])
        return to_svg(figure, prefix, f"{panel.label} against the learning rate. {_words(panel.lines)}")


def _draw_legend(figure: Figure, labels: Sequence[str]) -> None:
    """Under the drawing, in as many columns as fit."""
    figure.legend(
        loc="outside lower left", ncols=min(2, legend_columns(labels)), handlelength=2.6, columnspacing=1.4, borderpad=0
    )


def _draw_line(axes: Any, line: RateLine) -> None:
    """The means, joined; where there are several seeds also the single runs, faintly."""
    xs, ys = zip(*(point.mean for point in line.points), strict=True)
    style = line_style(line.colour)
    axes.plot(
        xs, ys, color=style.colour, linestyle=style.dash, linewidth=1.2,
        marker=style.marker, markersize=_SMALLEST, label=line.label,
    )  # fmt: skip
    runs = [run for point in line.points if len(point.runs) > 1 for run in point.runs]
    _draw_marks(axes, line, runs, size=3.5, alpha=0.4)


def _draw_marks(
    axes: Any, line: RateLine, pairs: Sequence[tuple[float, float]], *, size: float, alpha: float = 1.0
) -> None:
    style = line_style(line.colour)
    for x, y in pairs:
        axes.plot([x], [y], color=style.colour, marker=style.marker, markersize=size, alpha=alpha, linestyle="")


def _draw_level(axes: Any, role: ModelRole, value: float) -> None:
    axes.axhline(value, color=MUTED, linewidth=0.9, linestyle=(0, (1.2, 2)))
    axes.annotate(
        f"{role} model", (1, value), xycoords=("axes fraction", "data"), xytext=(0, 3),
        textcoords="offset points", ha="right", color=MUTED,
    )  # fmt: skip


def _words(lines: Sequence[RateLine]) -> str:
    """The means in words, for those who cannot see the drawing."""
    return " ".join(
        f"{line.label}: {'; '.join(f'{number(x)} and {number(y)}' for x, y in (point.mean for point in line.points))}."
        for line in lines
    )
