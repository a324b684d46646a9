"""The page: stored copies to compare with, links, ids, no network, inert text, numbers out of the records.

After a change of the page that is meant, write the stored copies anew and read their difference:
`REGENERATE_GOLDEN=1 pytest tests/report/test_report_page.py`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from sample_rates import rate_comparison
from sample_records import comparison, failed_run, image_run, language_run
from sample_requests import sequence

from stable_forgetting.records import RunRecord
from stable_forgetting.report import write_report
from stable_forgetting.report.html import render_page
from stable_forgetting.report.summary import summarize
from stable_forgetting.report.view import build_page

GOLDEN = Path(__file__).parent / "golden"


def quick(method: str) -> RunRecord:
    """A run whose charts need no drawing."""
    return language_run(method).model_copy(update={"history": [], "certificate": []})


PAGES = {
    "single": lambda: [language_run("calibrated-sine")],
    "comparison": comparison,
    "image": lambda: [image_run()],
    "rates": rate_comparison,
    "sequence": sequence,
    "failed": lambda: [failed_run()],
    "mixed": lambda: [quick("gd-lora"), quick("gd-sine"), failed_run(), failed_run("late"), image_run()],
}
VOID = {"meta", "img", "br", "link", "use", "path"}


class PageReader(HTMLParser):
    """Ids, links, addresses and tags of a page, and whether every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            elif name in ("href", "xlink:href") and value.startswith("#"):
                self.references.append(value[1:])
            elif name in ("aria-labelledby", "aria-describedby", "for"):
                self.references.extend(value.split())
            elif name in ("href", "src", "srcset", "action", "xlink:href", "data", "poster"):
                self.addresses.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {name: render_page(build_page(summarize(records()))) for name, records in PAGES.items()}


def read(page: str) -> PageReader:
    reader = PageReader()
    reader.feed(page)
    reader.close()
    return reader


def without_charts(page: str) -> str:
    """The page with the drawing taken out of each chart, whose bytes depend on the version of matplotlib."""
    return re.sub(r'(<svg class="chart")[^>]*?( role="img"[^>]*>).*?</svg>', r"\1\2</svg>", page, flags=re.DOTALL)


@pytest.mark.parametrize("name", ["single", "comparison", "image", "rates"])
def test_page_equals_the_stored_copy(pages, name):
    path = GOLDEN / f"{name}.html"
    found = without_charts(pages[name])
    if os.environ.get("REGENERATE_GOLDEN"):
        path.write_text(found, encoding="utf-8")
    assert found == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PAGES)
def test_ids_are_unique_and_links_resolve(pages, name):
    reader = read(pages[name])
    assert reader.open == []
    assert len(reader.ids) == len(set(reader.ids))
    assert set(reader.references) <= set(reader.ids)
    assert reader.references


@pytest.mark.parametrize("name", PAGES)
def test_page_loads_nothing(pages, name):
    reader = read(pages[name])
    assert all(address.startswith("data:image/png;base64,") for address in reader.addresses)
    assert not {"script", "link", "iframe", "object"} & set(reader.tags)
    assert not re.search(r"https?:|@import|url\((?!#)|//[a-z]", pages[name])


@pytest.mark.parametrize("name", PAGES)
def test_tables_have_caption_and_scopes(pages, name):
    assert read(pages[name]).tags.count("table") == read(pages[name]).tags.count("caption")
    assert not re.search(r"<th(?![^>]*scope=)[ >]", pages[name])


def test_text_of_examples_names_and_errors_is_inert():
    record = quick("gd-sine").model_copy(
        update={"name": '"><img src=x onerror=alert(1)>', "status": "stopped", "stopped": "</style><script>1</script>"}
    )
    page = render_page(build_page(summarize([record, quick("gd-lora")])))
    reader = read(page)
    assert "script" not in reader.tags
    assert "img" not in reader.tags
    assert "</style><script>1</script>" in "".join(reader.text)
    assert "<script>alert('prompt')</script> Which prize" in "".join(reader.text)


def test_every_number_of_the_results_is_found_in_the_record(pages):
    record = language_run("calibrated-sine")
    text = " ".join(read(pages["single"]).text)
    for evaluation in record.evaluations:
        for metric in evaluation.metrics:
            if metric.low is not None and metric.low >= 0.001 and metric.high < 10:
                assert f"{metric.low:.3f} to {metric.high:.3f}" in text
            if metric.reason is not None:
                assert metric.reason in text
    for entry in record.sets:
        assert entry.sha256 in text
    assert "training.learning_rate" in text
    assert "0.03603 of 0.03610" in text


def test_missing_values_are_said_with_their_reason(pages):
    assert re.search(r'<td class="missing">not available<sup><a href="#g1-m1-results-note-1"', pages["single"])


def test_failed_runs_appear_with_their_error(pages):
    assert "failed: NotFiniteError: The gradient norm is infinite at step 7." in pages["comparison"]
    assert "The run failed: NotFiniteError" in pages["failed"]


def test_differences_within_their_interval_have_no_colour(pages):
    rows = re.findall(r"<tr><th scope=\"row\"><a href=\"#term-(\w+)\".*?</tr>", pages["single"], flags=re.DOTALL)
    assert "retain_probability" in rows
    row = re.search(r'#term-retain_probability".*?</tr>', pages["single"], flags=re.DOTALL).group()
    assert "no clear difference" in row
    assert 'class="better"' not in row
    assert 'class="worse"' not in row
    forget = re.search(r'#term-forget_probability".*?</tr>', pages["single"], flags=re.DOTALL).group()
    assert '<td class="better">closer' in forget


def test_images_are_inside_the_page(pages):
    picture = image_run().examples[0].image_png
    assert f'src="data:image/png;base64,{picture}"' in pages["image"]


def test_write_report_replaces_the_page_in_one_step(tmp_path):
    path = tmp_path / "deep" / "report.html"
    assert write_report([failed_run()], path) == path
    first = path.read_text(encoding="utf-8")
    write_report([quick("gd-sine")], path)
    assert path.read_text(encoding="utf-8") != first
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]


def test_report_does_not_load_the_heavy_libraries():
    heavy = ("torch", "transformers", "peft", "scipy", "matplotlib.pyplot")
    code = f"import sys, stable_forgetting.report; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
