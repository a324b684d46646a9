"""Comparisons over learning rates, and the table of gaps to the retain model."""

import pytest
from sample_rates import RATES, rate_comparison, rate_run
from sample_records import comparison, image_run, language_run

from stable_forgetting.records import MetricValue
from stable_forgetting.report.canvas import line_style
from stable_forgetting.report.gaps import gap_table
from stable_forgetting.report.rate_charts import draw_plane, draw_rates
from stable_forgetting.report.rates import rate_panels, rate_plane
from stable_forgetting.report.summary import summarize
from stable_forgetting.report.view import build_page


def group_of(records):
    (group,) = summarize(records).groups
    return group


def test_each_method_is_a_line_through_its_rates():
    plane = rate_plane(group_of(rate_comparison()))
    assert [line.label for line in plane.lines] == [
        "gradient_difference, identity, mlp",
        "gradient_difference, sine, mlp",
    ]
    sine = plane.lines[1]
    assert [point.rate for point in sine.points] == list(RATES)
    assert sine.points[0].mean == (pytest.approx(0.965), pytest.approx(0.4))
    assert sine.points[0].runs == ((pytest.approx(0.97), pytest.approx(0.4)), (pytest.approx(0.96), pytest.approx(0.4)))
    assert plane.references == (("base", 0.97, 1.0), ("retain", 0.972, 0.0))
    assert (plane.keep_label, plane.forget_label) == ("Accuracy, unseen retain images", "Accuracy, forget images")


def test_order_of_the_runs_does_not_matter_for_the_line():
    lines = rate_plane(group_of(rate_comparison()[::-1])).lines
    assert all([point.rate for point in line.points] == list(RATES) for line in lines)


def test_tug_of_war_is_drawn_against_the_rate():
    (panel,) = rate_panels(group_of(rate_comparison()))
    assert panel.label == "Tug of war"
    assert [point.mean[0] for point in panel.lines[0].points] == list(RATES)
    assert panel.lines[1].points[1].mean[1] == pytest.approx((0.9801 + 0.9604) / 2)
    assert panel.references == (("base", 0.0),), "the retain model has no tug of war: it is the reference"


def test_one_rate_makes_no_chart_of_rates():
    one_rate = [rate_run(bound, 1e-3, seed) for bound in ("sine", "identity") for seed in (0, 1)]
    assert rate_plane(group_of(one_rate)) is None
    assert rate_panels(group_of(one_rate)) == []
    titles = [figure.title for figure in build_page(summarize(one_rate)).groups[0].figures]
    assert titles == ["Forgetting against keeping"]


def test_other_settings_are_another_line():
    records = rate_comparison()
    longer = records[0].model_copy(
        update={"name": "longer", "config": records[0].config | {"adapter": records[0].config["adapter"] | {"rank": 8}}}
    )
    labels = [line.label for line in rate_plane(group_of([*records, longer])).lines]
    assert len(labels) == len(set(labels)) == 3
    assert "gradient_difference, identity, mlp (longer)" in labels


def test_the_rate_of_finetuning_is_no_rate_of_unlearning():
    record = rate_run("sine", 1e-3, 0)
    other = record.config | {"name": "other", "model": {"name": "builtin:digits", "finetune": [{"learning_rate": 0.5}]}}
    assert rate_plane(group_of([record, record.model_copy(update={"name": "other", "config": other})])) is None


def quality_run(rate, quality, seed=0):
    """A run with model utility and a forget quality."""
    record = language_run("gd-sine", seed)
    more = [
        MetricValue(name="model_utility", value=0.6, direction="higher"),
        MetricValue(name="forget_quality", value=quality, direction="higher"),
    ]
    evaluations = [
        entry.model_copy(update={"metrics": entry.metrics + more if entry.role == "unlearned" else entry.metrics})
        for entry in record.evaluations
    ]
    config = record.config | {"training": record.config["training"] | {"learning_rate": rate}}
    return record.model_copy(update={"name": f"lr{rate:g}-seed{seed}", "config": config, "evaluations": evaluations})


def test_p_values_have_a_geometric_mean_and_those_of_0_are_named():
    records = [quality_run(rate, p, seed) for rate, ps in QUALITIES.items() for seed, p in enumerate(ps)]
    panel = rate_panels(group_of(records))[1]
    (line,) = panel.lines
    assert [point.mean for point in line.points] == [(1e-4, pytest.approx(1e-5)), (1e-3, pytest.approx(0.2))]
    assert panel.left_out == (f"{line.label} at 0.01",)
    (figure,) = [f for f in build_page(summarize(records)).groups[0].figures if f.title.startswith("Forget quality")]
    assert figure.caption.startswith("Geometric mean over the seeds")
    assert figure.caption.endswith(f"Not drawn, because a value is 0: {line.label} at 0.01.")


QUALITIES = {1e-4: (1e-9, 0.1), 1e-3: (0.2, 0.2), 1e-2: (0.5, 0.0)}
"""p of two seeds by learning rate."""


def test_many_lines_have_a_style_of_their_own():
    styles = [line_style(place) for place in range(36)]
    assert len({(style.colour, style.dash) for style in styles}) == 36
    assert len({(style.colour, style.marker) for style in styles}) == 36


def test_language_uses_utility_and_forget_quality_where_they_are():
    records = [quality_run(1e-4, 1e-9), quality_run(1e-3, 0.2)]
    group = group_of(records)
    assert rate_plane(group).keep_label == "Model utility"
    panels = rate_panels(group)
    assert [(panel.key, panel.log) for panel in panels] == [
        ("rate-model_utility", False),
        ("rate-forget_quality", True),
    ]
    assert draw_rates(panels[1], "p").startswith("<svg")
    without = [record.model_copy(update={"evaluations": language_run("gd-sine").evaluations}) for record in records]
    assert [panel.key for panel in rate_panels(group_of(without))] == [
        "rate-retain_probability",
        "rate-forget_probability",
    ]


def test_charts_say_their_numbers_and_mark_base_and_retain_model():
    group = group_of(rate_comparison())
    svg = draw_plane(rate_plane(group), "p")
    assert "gradient_difference, sine, mlp: 0.965 and 0.400; 0.955 and 0; 0.935 and 0." in svg
    assert ">base model</text>" in svg
    assert ">retain model</text>" in svg
    rates = draw_rates(rate_panels(group)[0], "p")
    assert RATES == (1e-4, 1e-3, 1e-2)
    assert all(f">{rate}</text>" in rates for rate in ("1e-4", "1e-3", "1e-2"))


def test_gaps_are_in_percentage_points_with_the_spread_over_seeds():
    group = group_of(rate_comparison())
    table = gap_table(group, {group.methods[2].name: "g1-m3"}, "g1")
    assert [cell.text for cell in table.bases[0].cells] == ["+100.0", "+98.0", "0.0", "−0.2", "0", "–"]
    line = table.methods[2]
    assert (line.name, line.anchor, line.small) == (group.methods[2].name, "g1-m3", "mean of 2 seeds")
    assert [cell.text for cell in line.cells[:4]] == ["0.0", "0.0", "−50.5", "−50.7"]
    assert line.cells[2].small == "± 0.7, clear gap"
    assert line.cells[0].small == "± 0.0, no clear gap"
    assert line.cells[4].text == "0.245"


def test_time_is_a_share_of_retraining():
    table = gap_table(group_of(rate_comparison()), {}, "g1")
    assert {(line.cells[5].text, line.cells[5].small) for line in table.methods} == {("16 s", "12.9% of 2 min")}
    cached = [rate_run("sine", 1e-3, 1), rate_run("identity", 1e-3, 1)]
    given = [record.model_copy(update={"timings": {"unlearning": 15.0}}) for record in cached]
    assert gap_table(group_of(given), {}, "g1").methods[0].cells[5].small == ""
    unknown = [record.model_copy(update={"timings": {}}) for record in cached]
    assert gap_table(group_of(unknown), {}, "g1").methods[0].cells[5].text == "–"


def test_a_missing_gap_has_its_reason():
    record = rate_run("sine", 1e-3, 0)
    fewer = [
        entry.model_copy(update={"metrics": [m for m in entry.metrics if m.name != "forget_test_accuracy"]})
        for entry in record.evaluations
    ]
    table = gap_table(group_of([record.model_copy(update={"evaluations": fewer})]), {}, "g1")
    assert table.methods[0].cells[1].text == "not available"
    assert table.notes[table.methods[0].cells[1].note - 1] == "Not measured in this run."


def test_gaps_need_images_and_a_retain_model():
    assert gap_table(group_of(comparison()), {}, "g1") is None
    record = image_run()
    without = record.model_copy(update={"evaluations": record.evaluations[:2]})
    assert gap_table(group_of([without]), {}, "g1") is None


def test_a_comparison_of_images_has_one_grid_and_no_examples_of_its_own():
    page = build_page(summarize(rate_comparison())).groups[0]
    assert page.grid is not None
    assert all(method.examples == () for method in page.methods)
    assert all(method.classes is not None for method in page.methods)
    assert build_page(summarize([rate_run("sine", 1e-3, 0)])).groups[0].methods[0].examples
