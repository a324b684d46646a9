"""Charts as small inline SVG: plain numbers in, markup out, the same bytes for the same numbers.

Colours are drawn as placeholders and become variables of the page's style sheet, so that a chart follows the light,
dark and print scheme. Text stays text. Lines differ by dash and points by shape, not by colour alone.
"""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from stable_forgetting.report.intervals import Estimate
from stable_forgetting.report.series import Bar, Panel, Point, Scatter
from stable_forgetting.report.wording import number

INK, MUTED, GRID, LIMIT = "#1c2430", "#5d6673", "#dcdfe4", "#a8322a"
SERIES = ("#0b6a94", "#c2571a", "#2f7d5b", "#7a4fa0", "#8f6b00", "#586069")
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (9, 2)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P")

_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", LIMIT: "--bad"} | {
    colour: f"--series-{place}" for place, colour in enumerate(SERIES, start=1)
}
_SETTINGS = {
    "svg.hashsalt": "stable-forgetting",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}
_WIDTH, _HEIGHT = 4.6, 2.5
"""Inches; the page scales the chart to its column."""


def draw_panel(panel: Panel, prefix: str) -> str:
    """A line chart over the steps.

    Args:
        panel: What to draw.
        prefix: Start of every id inside the markup; it must be used once in a page.

    Returns:
        An `<svg>` element without ids, links or addresses that leave it.
    """
    with mpl.rc_context(_SETTINGS):
        figure, axes = _figure(_HEIGHT)
        for curve in panel.curves:
            _draw_curve(axes, panel, curve.colour % len(SERIES), curve.label, curve.steps, curve.values)
        if panel.limit is not None:
            axes.axhline(panel.limit, color=LIMIT, linewidth=1.1, linestyle=DASHES[1])
            axes.annotate(
                "limit", (1, panel.limit), xycoords=("axes fraction", "data"), xytext=(0, -9),
                textcoords="offset points", ha="right", color=LIMIT,
            )  # fmt: skip
            axes.set_ylim(0, panel.limit * 1.06)
        if panel.log:
            _set_log(axes, [value for curve in panel.curves for value in curve.values])
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if len([curve for curve in panel.curves if curve.label]) > 1:
            figure.legend(loc="outside upper left", ncols=3, handlelength=2.6, columnspacing=1.4, borderpad=0)
        return _to_svg(figure, prefix, f"{panel.title}. {panel.caption}")


def draw_scatter(scatter: Scatter, prefix: str) -> str:
    """Forgetting against keeping, with 95 % intervals; base and retain model are marked."""
    with mpl.rc_context(_SETTINGS):
        figure, axes = _figure(3.3)
        axes.grid(visible=True, axis="both")
        methods = [point for point in scatter.points if point.role == "method"]
        for point in scatter.points:
            place = methods.index(point) if point.role == "method" else None
            _draw_point(axes, point, place)
        axes.set_xlabel(scatter.forget_label)
        axes.set_ylabel(scatter.retain_label)
        axes.margins(0.08)
        figure.legend(loc="outside lower left", ncols=2, columnspacing=1.4, borderpad=0)
        names = ", ".join(
            f"{point.label}: {number(point.forget.value)} and {number(point.retain.value)}" for point in scatter.points
        )
        return _to_svg(figure, prefix, f"{scatter.forget_label} against {scatter.retain_label}. {names}.")


def draw_bars(bars: Sequence[Bar], prefix: str) -> str:
    """Largest entry of each layer's change as a share of its limit."""
    with mpl.rc_context(_SETTINGS | {"axes.grid.axis": "x"}):
        figure, axes = _figure(0.75 + 0.19 * len(bars))
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
        return _to_svg(figure, prefix, text)


def _figure(height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    return figure, axes


def _draw_curve(
    axes: Any, panel: Panel, colour: int, label: str | None, steps: Sequence[float], values: Sequence[float]
) -> None:
    if panel.log:
        kept = [(step, value) for step, value in zip(steps, values, strict=True) if value > 0]
        steps, values = [step for step, _ in kept], [value for _, value in kept]
    few = len(steps) <= 12
    axes.plot(
        steps,
        values,
        color=SERIES[colour],
        linestyle=DASHES[colour],
        linewidth=1.4,
        marker=MARKERS[colour] if few else "",
        markersize=3.5,
        label=label or "_nolegend_",
    )


def _draw_point(axes: Any, point: Point, place: int | None) -> None:
    """One model with its intervals; the base model is a cross, the retain model a star."""
    if place is None:
        colour, marker, size = INK, {"base": "X", "retain": "*"}[point.role], 9.0
    else:
        colour, marker, size = SERIES[place % len(SERIES)], MARKERS[place % len(MARKERS)], 6.0
    axes.errorbar(
        [point.forget.value],
        [point.retain.value],
        xerr=_whiskers(point.forget),
        yerr=_whiskers(point.retain),
        color=colour,
        marker=marker,
        markersize=size,
        elinewidth=0.9,
        linestyle="",
        label=point.label,
    )


def _whiskers(estimate: Estimate) -> list[list[float]] | None:
    if estimate.low is None or estimate.high is None or not estimate.has_interval:
        return None
    return [[max(0.0, estimate.value - estimate.low)], [max(0.0, estimate.high - estimate.value)]]


def _set_log(axes: Any, values: Sequence[float]) -> None:
    """Logarithmic axis with plain numbers as labels; labels between the powers only where there is one decade."""
    positive = [value for value in values if value > 0]
    if not positive:
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}" if value < 1e6 else number(value)))
    decades = math.log10(max(positive)) - math.log10(min(positive))
    if decades < 1:
        axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _to_svg(figure: Figure, prefix: str, description: str) -> str:
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # The page's own fonts draw the text; a sign that matplotlib's font lacks only makes its box less exact.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        FigureCanvasSVG(figure).print_svg(
            buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    return inline_svg(buffer.getvalue(), prefix, description)


def inline_svg(document: str, prefix: str, description: str) -> str:
    """Make an SVG document part of a page: own ids, the page's colours, no addresses, a description."""
    box = re.search(r'viewBox="([^"]*)"', document)
    assert box is not None
    body = document[document.index(">", document.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r"<style[^>]*>.*?</style>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
    body = re.sub(r"<[^>]+>", lambda tag: _adapt_tag(tag.group(), prefix), body)
    label = html.escape(description, quote=True)
    return f'<svg class="chart" viewBox="{box.group(1)}" role="img" aria-label="{label}">{body.strip()}'


def _adapt_tag(tag: str, prefix: str) -> str:
    """One tag with the prefix on its ids and links, and with the page's colours."""
    tag = re.sub(r'\bid="', f'id="{prefix}-', tag)
    tag = tag.replace('xlink:href="#', f'href="#{prefix}-').replace("url(#", f"url(#{prefix}-")
    return re.sub("|".join(_VARIABLES), lambda found: f"var({_VARIABLES[found.group()]})", tag)
