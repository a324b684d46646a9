"""Single classes: who lost, by how much, and what is only noise; examples and grids with the names of classes."""

import pytest
from sample_rates import COUNT, class_accuracies, rate_comparison, rate_run
from sample_records import image_run, language_run

from stable_forgetting.report.class_chart import draw_classes
from stable_forgetting.report.classes import (
    MAX_CHANGED,
    charted_classes,
    class_lines,
    class_rows,
    class_sentence,
)
from stable_forgetting.report.gallery import example_grid, example_sets
from stable_forgetting.report.summary import summarize
from stable_forgetting.report.view import build_page


def only_method(*records):
    (method,) = summarize(records).groups[0].methods
    return method


def rows_by_name(*records):
    return {row.name: row for row in class_rows(only_method(*records))}


def test_classes_have_their_names_the_largest_loss_first():
    rows = class_rows(only_method(rate_run("identity", 1e-3, 0)))
    assert [row.name for row in rows][:2] == ["three", "eight"]
    assert rows[-1].name == "zero"
    assert {row.name for row in rows} >= {"class 9"}, "a class without a name keeps its number"
    assert [row.deleted for row in rows] == [True] + [False] * 9
    eight = rows[1]
    assert eight.change.value == pytest.approx(-0.12)
    assert eight.retain_change.value == pytest.approx(-0.02)
    assert eight.count == COUNT


def test_a_loss_within_its_interval_is_no_damage():
    """12 points fewer of 20 images are noise, of 50 they are not."""
    record = rate_run("identity", 1e-3, 0)
    few = [entry.model_copy(update={"count": 20}) for entry in record.class_accuracies]
    rows = class_rows(only_method(record.model_copy(update={"class_accuracies": few})))
    assert class_sentence(rows) == (
        "0 of 9 kept classes lose more accuracy than the interval of the change. Each interval stands by itself: about "
        "0.23 would lose so much by chance."
    )
    cells = {line.name: line.change for line in class_lines(rows)}
    assert (cells["eight"].text, cells["eight"].small, cells["eight"].mark) == ("−12.0", "no clear change", "")
    with_more_images = class_rows(only_method(record))
    assert "1 of 9 kept classes loses" in class_sentence(with_more_images)
    assert "most of all eight (−12.0 points)" in class_sentence(with_more_images)
    assert {line.name: line.change.mark for line in class_lines(with_more_images)}["eight"] == "worse"


def test_a_deleted_class_is_meant_to_fall():
    line = class_lines(class_rows(only_method(rate_run("sine", 1e-3, 0))))[0]
    assert (line.name, line.small, line.change.small, line.change.mark) == ("three", "deleted", "clear change", "")
    assert line.gap.text == "0.0"


def test_seeds_are_averaged_and_the_same_base_model_is_one():
    row = rows_by_name(rate_run("sine", 1e-2, 0), rate_run("sine", 1e-2, 1))["one"]
    assert row.unlearned.value == pytest.approx((0.95 + 0.94) / 2)
    assert row.unlearned.num_runs == 2
    assert row.base.num_runs == 1


def test_chart_shows_the_deleted_and_the_most_changed_classes():
    entries = class_accuracies(0.0, 0.0)
    many = [
        entries[3],
        *(
            entries[1].model_copy(update={"label": 10 + n, "accuracy": {"base": 0.5, "unlearned": 0.5 + 0.01 * n}})
            for n in range(30)
        ),
    ]
    record = rate_run("sine", 1e-3, 0).model_copy(update={"class_accuracies": many})
    rows = class_rows(only_method(record))
    shown = charted_classes(rows)
    assert [row.name for row in shown] == ["three", *(f"class {n}" for n in range(30, 40))]
    assert len(shown) == 1 + MAX_CHANGED
    caption = build_page(summarize([record])).groups[0].methods[0].classes.figure.caption
    assert caption.endswith("Shown are 1 of 1 deleted classes and the 10 most changed others.")
    svg = draw_classes(shown, "p")
    assert "three (deleted, n = 50)" in svg
    assert "class 39 +29.0" in svg


def test_equal_names_are_told_apart_by_their_number():
    record = rate_run("sine", 1e-3, 0)
    twice = record.model_copy(update={"class_names": record.class_names | {9: "one"}})
    assert {"one (1)", "one (9)", "two"} <= set(rows_by_name(twice))


def test_a_record_without_classes_has_none():
    assert class_rows(only_method(image_run())) == []


def test_examples_show_names_and_say_right_or_wrong_in_words():
    (forget, _) = example_sets(rate_run("identity", 1e-3, 0))
    example = forget.examples[0]
    assert example.expected == "three"
    assert [(output.text, output.note) for output in example.outputs] == [
        ("three", "✓ right"),
        ("eight", "✗ wrong"),
        ("eight", "✗ wrong"),
    ]


def test_expected_names_of_the_first_records_count_as_their_number():
    record = image_run()
    old = record.examples[0].model_copy(update={"expected": "3 (three)"})
    (example,) = next(iter(example_sets(record.model_copy(update={"examples": [old]})))).examples
    assert example.expected == "3 (three)"
    assert [output.note for output in example.outputs] == ["✓ right", "✗ wrong", "✗ wrong"]


def test_grid_has_images_as_rows_and_models_as_columns():
    group = summarize(rate_comparison()).groups[0]
    grid = example_grid(group, {group.methods[0].name: "g1-m1"})
    assert [name for name, _ in grid.columns[:2]] == ["Base model", "Retain model"]
    assert [name for name, _ in grid.columns[2:]] == [method.name for method in group.methods]
    assert grid.columns[2][1] == "g1-m1"
    sections = dict(grid.sections)
    assert list(sections) == ["forget", "retain_test"]
    (row,) = sections["forget"]
    assert row.expected == "three"
    assert row.cells[:3] == (("✓", "three"), ("✗", "eight"), ("✗", "eight"))


def test_an_image_that_a_method_does_not_show_leaves_a_gap():
    records = [rate_run("sine", 1e-3, 0), rate_run("identity", 1e-3, 0)]
    records[0] = records[0].model_copy(update={"examples": records[0].examples[:1]})
    grid = example_grid(summarize(records).groups[0], {})
    (row,) = dict(grid.sections)["retain_test"]
    assert row.cells == (("✓", "seven"), ("✓", "seven"), ("", ""), ("✓", "seven"))


def test_no_grid_for_language_or_a_single_method():
    assert example_grid(summarize([language_run("gd-lora"), language_run("gd-sine")]).groups[0], {}) is None
    assert example_grid(summarize([image_run()]).groups[0], {}) is None
