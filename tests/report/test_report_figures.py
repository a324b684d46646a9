"""Charts as files of their own: all of the page's, well formed, and with colours in place of the page's variables."""

import re
import xml.etree.ElementTree as ET

import pytest
from sample_rates import rate_comparison
from sample_records import comparison, image_run, language_run

from stable_forgetting.report import summarize, write_figures
from stable_forgetting.report.canvas import SERIES
from stable_forgetting.report.html import render_page
from stable_forgetting.report.view import build_page

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("records", [comparison, rate_comparison, lambda: [language_run("gd-sine"), image_run()]])
def test_every_chart_of_the_page_becomes_a_document(records, tmp_path):
    written = write_figures(records(), tmp_path / "figures")
    page = render_page(build_page(summarize(records())))
    charts = [ET.fromstring(chart) for chart in re.findall(r'<svg class="chart".*?</svg>', page, flags=re.DOTALL)]
    documents = [ET.parse(path).getroot() for path in written]
    assert len({*written}) == len(written) > 0
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(path.name for path in written)
    assert sorted(d.get("aria-label") for d in documents) == sorted(chart.get("aria-label") for chart in charts)
    assert {document.tag for document in documents} == {f"{SVG}svg"}


def test_names_say_where_in_the_page_and_what(tmp_path):
    names = {path.name for path in write_figures(rate_comparison(), tmp_path)}
    assert {"g1-forgetting-against-keeping.svg", "g1-m1-change-of-accuracy-by-class.svg"} <= names
    anchors = re.findall(r'\bid="([^"]+)"', render_page(build_page(summarize(rate_comparison()))))
    assert {re.match(r"(g\d+(-m\d+)?)-[a-z]", name)[1] for name in names} <= {*anchors}


def test_nothing_in_them_needs_the_page(tmp_path):
    texts = [path.read_text() for path in write_figures(rate_comparison(), tmp_path)]
    for text in texts:
        assert "var(" not in text
        assert "<style" not in text
        root = ET.fromstring(text)
        assert root[0].attrib == {"width": "100%", "height": "100%", "fill": "#ffffff"}
        assert f"0 0 {root.get('width')} {root.get('height')}".replace("pt", "") == root.get("viewBox")
        ids = re.findall(r'\bid="([^"]+)"', text)
        assert {*re.findall(r'href="#([^"]+)"', text), *re.findall(r"url\(#([^)]+)\)", text)} <= {*ids}
    assert any(SERIES[1] in text for text in texts)


def test_the_same_records_give_the_same_files_and_others_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    first = {path: path.read_bytes() for path in write_figures(comparison(), tmp_path)}
    assert first == {path: path.read_bytes() for path in write_figures(comparison(), tmp_path)}
    assert (tmp_path / "notes.txt").read_text() == "mine"
