"""Charts: same numbers, same bytes; nothing in them reaches out of the page or follows a fixed colour."""

import re

import matplotlib as mpl
import pytest
from sample_rates import rate_comparison
from sample_records import comparison, language_run

from stable_forgetting.report.canvas import SERIES
from stable_forgetting.report.charts import draw_bars, draw_panel, draw_scatter
from stable_forgetting.report.series import (
    MAX_BARS,
    Bar,
    Curve,
    Panel,
    certificate_bars,
    comparison_panels,
    forget_retain_scatter,
    method_panels,
)
from stable_forgetting.report.summary import summarize
from stable_forgetting.report.view import build_page


def panel(label: str = "x", **changes) -> Panel:
    curves = (Curve(label, 0, (1.0, 2.0, 3.0), (1.0, 10.0, 1000.0)), Curve("y", 1, (1.0, 2.0), (3.0, 4.0)))
    return Panel(key="key", title="Title", caption="Caption.", curves=curves, **changes)


def test_same_numbers_give_the_same_bytes_and_leave_settings_alone():
    before = dict(mpl.rcParams)
    assert draw_panel(panel(log=True), "p") == draw_panel(panel(log=True), "p")
    assert dict(mpl.rcParams) == before


def test_markup_has_no_address_no_fixed_series_colour_and_own_ids():
    svg = draw_panel(panel(limit=1.0), "own")
    assert "http" not in svg
    assert "<style" not in svg
    assert not any(colour in svg for colour in SERIES)
    assert "var(--series-1)" in svg
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert len(ids) == len(set(ids)) > 5
    assert all(name.startswith("own-") for name in ids)
    targets = re.findall(r'href="#([^"]+)"', svg) + re.findall(r"url\(#([^)]+)\)", svg)
    assert targets
    assert set(targets) <= set(ids)


def test_labels_are_inert_text():
    svg = draw_panel(panel(label='<script>$\\frac{1}{2}$</script> id="own" url(#z) 漢字'), "p")
    assert "<script>" not in svg
    assert '&lt;script&gt;$\\frac{1}{2}$&lt;/script&gt; id="own" url(#z) 漢字' in svg


def test_log_axis_leaves_out_what_has_no_logarithm():
    zeros = Panel("key", "Title", "Caption.", (Curve(None, 0, (1.0, 2.0), (0.0, 0.0)),), log=True)
    assert draw_panel(zeros, "p").startswith("<svg")


def test_method_panels_show_the_history_as_it_is():
    method = summarize([language_run("gd-sine")]).groups[0].methods[0]
    panels = {panel.key: panel for panel in method_panels(method)}
    history = method.records[0].history
    assert panels["gradient"].log
    assert panels["gradient"].curves[0].values == tuple(step.grad_norm for step in history)
    assert [curve.label for curve in panels["terms"].curves] == ["forget term", "retain term"]
    with_unseen = [step.model_copy(update={"unseen_term": 0.25 * step.step}) for step in history]
    record = method.records[0].model_copy(update={"history": with_unseen})
    curves = method_panels(summarize([record]).groups[0].methods[0])[0].curves
    assert [curve.label for curve in curves] == ["forget term", "retain term", "unseen term"]
    assert curves[2].values == tuple(0.25 * step.step for step in history)
    assert panels["entry"].limit == 1.0
    assert panels["entry"].curves[0].values == tuple(step.largest_share for step in history)
    validation = panels["validation-forget_nll"]
    assert validation.curves[0].steps == (12.0, 24.0, 36.0, 48.0, 60.0)
    assert validation.caption == "Measured during training on some of the forget and retain examples."
    unbounded = summarize([language_run("gd-lora")]).groups[0].methods[0]
    entry = next(panel for panel in method_panels(unbounded) if panel.key == "entry")
    assert entry.limit is None
    assert entry.curves[0].values == tuple(step.largest_entry for step in unbounded.records[0].history)


def test_records_of_earlier_versions_have_no_share_and_show_the_entry_itself():
    run = language_run("gd-sine")
    old = [step.model_copy(update={"largest_share": None}) for step in run.history]
    method = summarize([run.model_copy(update={"history": old})]).groups[0].methods[0]
    entry = next(panel for panel in method_panels(method) if panel.key == "entry")
    assert (entry.limit, "share" in entry.caption) == (None, False)
    assert entry.curves[0].values == tuple(step.largest_entry for step in old)


def test_each_seed_is_a_line():
    method = summarize([language_run("gd-sine", seed) for seed in (1, 2)]).groups[0].methods[0]
    curves = next(panel for panel in method_panels(method) if panel.key == "gradient").curves
    assert [curve.label for curve in curves] == ["seed 1", "seed 2"]


def test_a_run_without_history_has_no_panels():
    run = language_run("gd-sine").model_copy(update={"history": []})
    assert method_panels(summarize([run]).groups[0].methods[0]) == []


def test_comparison_puts_gradient_norms_on_one_axis_one_colour_for_each_method():
    gradient = comparison_panels(summarize(comparison()).groups[0])[0]
    assert gradient.log
    assert [curve.label for curve in gradient.curves] == [
        "gd-lora-seed0",
        "gd-sine-seed0",
        "calibrated-sine",
        None,
        None,
    ]
    assert [curve.colour for curve in gradient.curves] == [0, 1, 2, 2, 2]


def test_scatter_marks_base_and_retain_model():
    scatter = forget_retain_scatter(summarize(comparison()).groups[0])
    assert [(point.label, point.role) for point in scatter.points[:2]] == [
        ("base model", "base"),
        ("retain model", "retain"),
    ]
    assert [point.forget.value for point in scatter.points[:4]] == [0.946, 0.112, 0.002, 0.061]
    svg = draw_scatter(scatter, "p")
    assert "calibrated-sine: 0.108 and 0.958" in svg


def test_bars_show_the_layers_closest_to_their_limit():
    layer = language_run("gd-sine").certificate[0]
    layers = [layer.model_copy(update={"layer": f"layer {n}", "largest_entry": n * 1e-4}) for n in range(40)]
    bars = certificate_bars(layers)
    assert len(bars) == MAX_BARS
    assert bars[0].label == "layer 39"
    assert bars[0].share == pytest.approx(39e-4 / layer.entry_limit)
    assert "layer 16" in draw_bars(bars, "p")
    assert certificate_bars(language_run("gd-lora").certificate) == []
    assert draw_bars([Bar("beyond", 1.5)], "p").startswith("<svg")


@pytest.mark.parametrize("records", [comparison(), rate_comparison()])
def test_captions_speak_of_a_star_only_where_one_is_drawn(records):
    def captions(records):
        (group,) = build_page(summarize(records)).groups
        classes = [method.classes.figure for method in group.methods if method.classes is not None]
        return [figure.caption for figure in [*group.figures, *classes] if "star" in figure.caption]

    def without_retain(record):
        kept = [
            entry.model_copy(update={"accuracy": {r: a for r, a in entry.accuracy.items() if r != "retain"}})
            for entry in record.class_accuracies
        ]
        return record.model_copy(update={"evaluations": record.evaluations[:2], "class_accuracies": kept})

    assert captions(records)
    assert captions([without_retain(record) for record in records]) == []
