"""What all charts share: style, an empty drawing, intervals, axes, and the way into a page.

Colours are drawn as placeholders and become variables of the page's style sheet, so that a chart follows the light,
dark and print scheme; outside the page they become colours again. Text stays text. Lines differ by dash and points by
shape, not by colour alone.
"""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from stable_forgetting.intervals import Estimate
from stable_forgetting.report.wording import number

INK, MUTED, GRID, LIMIT = "#1c2430", "#5d6673", "#dcdfe4", "#a8322a"
SERIES = ("#0b6a94", "#c2571a", "#2f7d5b", "#7a4fa0", "#8f6b00", "#586069")
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (9, 2)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P")

_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", LIMIT: "--bad"} | {
    colour: f"--series-{place}" for place, colour in enumerate(SERIES, start=1)
}
SETTINGS: dict[str, Any] = {
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
_WIDTH = 4.6
"""Inches; the page scales the chart to its column."""
_LETTER_WIDTH, _HANDLE_WIDTH = 5.0, 36.0
"""Points of a letter of a legend, and of the line before it with the room between columns."""
LEGEND_ROW = 0.18
"""Inches of a row of a legend."""


class LineStyle(NamedTuple):
    """How one of several lines is drawn."""

    colour: str
    dash: Any
    marker: str


def line_style(place: int) -> LineStyle:
    """Style of the line at this place, from 0; no two of the first 36 are alike."""
    other = (place + place // len(SERIES)) % len(DASHES)  # one further in each round of the colours
    return LineStyle(SERIES[place % len(SERIES)], DASHES[other], MARKERS[other])


def new_figure(height: float) -> tuple[Figure, Any]:
    """An empty drawing of that height in inches, without a background, and its axes."""
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    return figure, axes


def legend_columns(labels: Sequence[str]) -> int:
    """In how many columns, 1 to 3, these labels fit under or above a drawing."""
    widest = _LETTER_WIDTH * max(map(len, labels)) + _HANDLE_WIDTH
    return min(3, max(1, int(72 * _WIDTH // widest)))


def whiskers(estimate: Estimate) -> list[list[float]] | None:
    """Lengths of the interval below and above the value; None without an interval."""
    if estimate.low is None or estimate.high is None or not estimate.has_interval:
        return None
    return [[max(0.0, estimate.value - estimate.low)], [max(0.0, estimate.high - estimate.value)]]


def set_log(axes: Any, name: Literal["x", "y"], values: Sequence[float]) -> None:
    """Logarithmic axis with plain numbers as labels; labels between the powers only where there is one decade.

    Args:
        axes: The drawing.
        name: Which axis.
        values: What is drawn along it; without a positive value the axis stays as it is.
    """
    positive = [value for value in values if value > 0]
    if not positive:
        return
    axes.set(**{f"{name}scale": "log"})
    axis = {"x": axes.xaxis, "y": axes.yaxis}[name]
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}" if 1e-4 <= value < 1e6 else number(value)))
    decades = math.log10(max(positive)) - math.log10(min(positive))
    if decades < 1:
        axis.set_major_locator(MaxNLocator(4))
    axis.set_minor_formatter(NullFormatter())


def to_svg(figure: Figure, prefix: str, description: str) -> str:
    """The drawing as markup for a page.

    Args:
        figure: The drawing.
        prefix: Start of every id inside the markup; it must be used once in a page.
        description: What it shows, for those who cannot see it.

    Returns:
        An `<svg>` element without ids, links or addresses that leave it.
    """
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


def standalone_svg(chart: str) -> str:
    """A chart of a page as a document of its own: light colours on white, no style sheet, which few programs read."""
    names = {f"var({variable})": colour for colour, variable in _VARIABLES.items()}
    plain = re.sub(r"var\(--[\w-]+\)", lambda found: names[found.group()], chart)
    start, body = plain.split(">", 1)
    box = re.search(r'viewBox="0 0 (\S+) (\S+)"', start)
    assert box is not None
    size = f'xmlns="http://www.w3.org/2000/svg" width="{box.group(1)}pt" height="{box.group(2)}pt"'
    return f'{start.replace("<svg", f"<svg {size}", 1)}>\n<rect width="100%" height="100%" fill="#ffffff"/>\n{body}\n'


def _adapt_tag(tag: str, prefix: str) -> str:
    """One tag with the prefix on its ids and links, and with the page's colours."""
    tag = re.sub(r'\bid="', f'id="{prefix}-', tag)
    tag = tag.replace('xlink:href="#', f'href="#{prefix}-').replace("url(#", f"url(#{prefix}-")
    return re.sub("|".join(_VARIABLES), lambda found: f"var({_VARIABLES[found.group()]})", tag)
