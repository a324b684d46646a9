"""Records to a page or a table. Nothing here loads torch: the report is a pure function of the records."""

from stable_forgetting.report.html import write_figures, write_report
from stable_forgetting.report.summary import Summary, summarize
from stable_forgetting.report.terminal import render_table

__all__ = ["Summary", "render_table", "summarize", "write_figures", "write_report"]
