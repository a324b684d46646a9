"""Page data to one HTML file that opens without a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jinja2

from stable_forgetting.records import RunRecord, write_text
from stable_forgetting.report.page_data import PageData
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
