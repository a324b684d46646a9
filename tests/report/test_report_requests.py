"""Methods over several requests: which runs are compared, their tables, and steps with base models of their own."""

import io
import itertools
from statistics import fmean, stdev

import pytest
from rich.console import Console
from sample_rates import rate_comparison
from sample_records import comparison, failed_run
from sample_requests import CLASSES, SEEDS, request_run, sequence, single_classes

from stable_forgetting.records import RunRecord
from stable_forgetting.report import render_table
from stable_forgetting.report.gallery import example_grid
from stable_forgetting.report.gaps import gap_table
from stable_forgetting.report.html import render_page
from stable_forgetting.report.requests import find_requests, gap_over_runs, mean_score, request_name, score
from stable_forgetting.report.summary import summarize
from stable_forgetting.report.view import build_page

METHODS = ["gradient_difference-identity", "gradient_difference-sine"]


def values(records: list[RunRecord], metric: str) -> list[float]:
    return [record.evaluation("unlearned").metric(metric).value for record in records]


def test_models_in_folders_called_merged_are_no_results_of_earlier_runs():
    first, second = (
        record.model_copy(
            update={
                "config": record.config | {"model": {"name": f"ck/vit_{place}/merged", "finetune": None}},
                "models": record.models | {"base": f"hash of {place}"},
            }
        )
        for place, record in enumerate(single_classes()[:2])
    )
    groups = summarize([first, second]).groups
    assert [group.num_bases for group in groups] == [1, 1]


def test_runs_of_a_step_are_one_problem_and_seeds_one_method():
    groups = summarize(sequence()).groups
    assert [[(method.name, len(method.records)) for method in group.methods] for group in groups] == [
        [(f"{step}-{name}-{method}", len(SEEDS)) for method in METHODS] for step, name in enumerate(CLASSES, 1)
    ]
    assert [group.num_bases for group in groups] == [1, 4]
    row = groups[1].methods[0].row("tow")
    assert row.unlearned.estimate.spread > 0
    assert [request_name(group) for group in groups] == ["three", "then eight"]
    assert gap_table(groups[1], {}, "g2").methods[0].small == "mean of 2 seeds"


def test_methods_that_went_another_way_before_are_not_one():
    records = sequence()
    other = [
        record.model_copy(
            update={"config": record.config | {"base_model": record.config["base_model"].replace("sine", "tanh")}}
        )
        for record in records[-2:]
    ]
    (group,) = summarize([*records[-2:], *other]).groups
    assert [len(method.records) for method in group.methods] == [2, 2]


def test_a_base_model_that_no_run_left_is_a_problem_of_its_own():
    first, second = (request_run("three", "sine", seed) for seed in SEEDS)
    given = {seed: {"base_model": f"models/{seed}"} for seed in SEEDS}
    records = [
        record.model_copy(update={"config": record.config | given[seed], "models": {"base": f"sha256:{seed}"}})
        for seed, record in zip(SEEDS, (first, second), strict=True)
    ]
    assert len(summarize(records).groups) == 2


def test_a_run_that_failed_in_a_later_step_joins_its_step():
    *records, last = sequence()
    failed = last.model_copy(update={"status": "failed", "error": "no memory", "models": {}, "evaluations": []})
    groups = summarize([*records, failed]).groups
    assert [len(group.methods) for group in groups] == [2, 3]


@pytest.mark.parametrize("records", [single_classes(), sequence()])
def test_methods_are_rows_and_requests_columns(records):
    (found,) = find_requests(summarize(records).groups)
    assert found.model == "a/classifier"
    assert [row.name for row in found.rows][:2] == METHODS
    sine = [record for record in records if "sine" in record.name]
    by_class = [values([record for record in sine if name in record.name], "tow") for name in CLASSES]
    row = found.rows[1]
    assert [score(method).estimate.value for method in row.methods] == pytest.approx([fmean(tow) for tow in by_class])
    assert [score(method).estimate.spread for method in row.methods] == pytest.approx([stdev(tow) for tow in by_class])
    assert mean_score(row).estimate.value == pytest.approx(fmean(values(sine, "tow")))
    gap = gap_over_runs(row, "retain_accuracy").estimate
    gaps = [value - 0.999 for value in values(sine, "retain_accuracy")]
    assert (gap.value, gap.spread, gap.num_runs) == (pytest.approx(fmean(gaps)), pytest.approx(stdev(gaps)), 4)


def test_the_page_begins_with_the_tables():
    page = build_page(summarize(sequence()))
    assert page.title == "Comparison of 2 methods on 2 requests"
    (tables,) = page.requests
    assert tables.requests == (("three", "g1"), ("then eight", "g2"))
    assert [cell.text for cell in tables.scores[0].cells] == ["0.874", "0.245", "0.560"]
    assert tables.scores[0].cells[0].small == "± 0.013, 2 seeds"
    assert [cell.text for cell in tables.gaps[0].cells] == ["0.0", "0.0", "−28.5", "−28.7"]
    assert tables.gaps[0].cells[2].small == "± 25.4"
    assert tables.gaps[0].small == "4 runs"
    text = render_page(page)
    assert text.index("Tug of war by request") < text.index('<h2 class="problem">Image classifier, three: 2 methods')


def test_the_command_line_has_the_tables():
    console = Console(file=io.StringIO(), width=120, color_system=None)
    tables = render_table(sequence())
    assert len(tables) == 4
    for table in tables:
        console.print(table)
    text = console.file.getvalue()
    for part in (
        "tow by request, a/classifier",
        "then eight",
        "0.874±0.013",
        "−28.5 ± 25.4",
        "base models that earlier",
    ):
        assert part in text


def test_a_method_that_failed_or_was_not_run_has_no_mean():
    records = single_classes()
    alone = request_run("three", "sine", 0)
    alone = alone.model_copy(update={"config": alone.config | {"adapter": {"bound": "clip"}}})
    failed = [
        record.model_copy(update={"status": "failed", "error": "no memory", "evaluations": []})
        for record in records
        if record.name.startswith("eight-gradient_difference-sine")
    ]
    kept = [record for record in records if not record.name.startswith("eight-gradient_difference-sine")]
    (found,) = find_requests(summarize([*kept, *failed[:1], alone]).groups)
    assert len(found.rows) == 3
    _, sine, clip = found.rows
    assert score(sine.methods[1]).reason == "The run failed: no memory"
    assert score(clip.methods[1]).reason == "Not run for this request."
    assert mean_score(sine).estimate is None
    (tables,) = build_page(summarize([*kept, *failed[:1], alone])).requests
    assert [cell.mark for cell in tables.scores[1].cells] == ["", "missing", "missing"]


def test_no_tables_without_a_second_request_on_the_same_model_and_data():
    first, second = single_classes()[0], single_classes()[-1]
    other = second.model_copy(update={"config": second.config | {"model": {"name": "another"}}})
    for records in (rate_comparison(), comparison(), [failed_run()], [first, other], single_classes()[:4]):
        assert find_requests(summarize(records).groups) == []


def test_requests_on_sets_with_paths_of_their_own_are_on_the_same_data_if_the_paths_are_the_same():
    """Data sets without a common source are told apart by the files of their sets."""

    def read_from(record: RunRecord, path: str) -> RunRecord:
        rule = record.config["data"]["forget"]["where"]
        data = {"forget": {"path": path, "where": rule}, "retain": {"path": path}, "num_classes": 10}
        return record.model_copy(update={"config": record.config | {"data": data}})

    first, second = request_run("three", "sine", 0), request_run("eight", "sine", 0)
    same = [read_from(record, "digits.npz") for record in (first, second)]
    other = [read_from(first, "digits.npz"), read_from(second, "letters.npz")]
    assert [len(found.groups) for found in find_requests(summarize(same).groups)] == [2]
    assert find_requests(summarize(other).groups) == []


def test_requests_that_were_measured_otherwise_are_not_averaged():
    first, second = request_run("three", "sine", 0), request_run("eight", "sine", 0)
    limited = second.model_copy(update={"config": second.config | {"evaluation": {"retain_limit": 100}}})
    assert find_requests(summarize([first, limited]).groups) == []


def test_a_base_model_for_each_method_is_shown_for_each_and_in_no_grid():
    records = sequence()
    worse = [entry.metric("tow").model_copy(update={"value": 0.5}) for entry in records[4].evaluations[:1]]
    base = (
        records[4]
        .evaluations[0]
        .model_copy(update={"metrics": [*(m for m in records[4].evaluations[0].metrics if m.name != "tow"), *worse]})
    )
    records[4] = records[4].model_copy(update={"evaluations": [base, *records[4].evaluations[1:]]})
    group = summarize(records).groups[1]
    assert [line.small for line in gap_table(group, {}, "g").bases] == [
        f"before unlearning with 2-eight-{method}" for method in METHODS
    ]
    assert [name for name, _ in example_grid(group, {}).columns] == [
        "Retain model",
        *(f"2-eight-{method}" for method in METHODS),
    ]


@pytest.mark.parametrize("place", [0, 1])
def test_a_failed_seed_leaves_the_others_in_their_row(place):
    records = single_classes()
    failed = {"status": "failed", "error": "no memory", "evaluations": [], "class_accuracies": []}
    records[place] = records[place].model_copy(update=failed)
    (found,) = find_requests(summarize(records).groups)
    whole = [[method.status for method in row.methods if method is not None] for row in found.rows]
    assert whole == [["finished", "finished"], ["finished", "finished"], ["failed"]]
    assert [row.name for row in found.rows][:2] == METHODS


def test_validation_images_and_test_images_are_no_two_requests():
    """Choosing rates and the final run delete the same class; their numbers are of other images."""

    def measured_on(record: RunRecord, test: dict[str, str]) -> RunRecord:
        return record.model_copy(update={"config": record.config | {"data": record.config["data"] | {"test": test}}})

    first, second = request_run("three", "sine", 0), request_run("eight", "sine", 0)
    parts = [
        {"split": "test"},
        {"split": "train", "where": "0.8 < share_in(label) <= 1"},
        {"where": "0.8 < share_in(label) <= 1"},
        {"where": "0.6 < share_in(label) <= 0.8"},
    ]
    for part, other in itertools.permutations(parts, 2):
        assert find_requests(summarize([measured_on(first, part), measured_on(second, other)]).groups) == []
    later = {"where": "(not (label == 3)) and (0.6 < share_in(label) <= 0.8)"}
    (found,) = find_requests(summarize([measured_on(first, parts[3]), measured_on(second, later)]).groups)
    assert len(found.groups) == 2
