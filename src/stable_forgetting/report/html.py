"""Page data to files: one HTML page that opens without a network, and its charts for use elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import jinja2

from stable_forgetting.records import RunRecord, write_text
from stable_forgetting.report.canvas import standalone_svg
from stable_forgetting.report.page_data import Figure, PageData
from stable_forgetting.report.summary import summarize
from stable_forgetting.report.view import build_page

_TEMPLATES = Path(__file__).parent / "templates"


def render_page(page: PageData) -> str:
    """The page as HTML, with style and charts inside; all text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html").render(page=page)


def write_report(records: Sequence[RunRecord], path: Path) -> Path:
    """Write the report of one run, or the comparison of several, as one HTML file.

    Args:
        records: The runs, finished or not.
        path: The file; a page that is already there is replaced in one step.

    Returns:
        The path.

    Raises:
        ValueError: There are no records.
    """
    write_text(path, render_page(build_page(summarize(records))))
    return path


def write_figures(records: Sequence[RunRecord], folder: Path) -> list[Path]:
    """Write every chart of the page that these records make as an SVG file that needs no page.

    Args:
        records: The runs, finished or not.
        folder: Where the files go; those of the same names are replaced, others stay.

    Returns:
        The files, in the order of the page: `PART-TITLE.svg`. `PART` is the name by which the page's address leads to
        that part of it, such as `g1` or `g1-m2`.

    Raises:
        ValueError: There are no records.
    """
    written = []
    for part, figure in _figures(build_page(summarize(records))):
        title = re.sub(r"[^a-z0-9]+", "-", figure.title.lower()).strip("-")
        write_text(path := folder / f"{part}-{title}.svg", standalone_svg(figure.svg))
        written.append(path)
    return written


def _figures(page: PageData) -> Iterator[tuple[str, Figure]]:
    for group in page.groups:
        yield from ((group.anchor, figure) for figure in group.figures)
        for method in group.methods:
            parts = (method.classes, method.certificate)
            figures = [*(part.figure for part in parts if part is not None), *method.figures]
            yield from ((method.anchor, figure) for figure in figures if figure is not None)
