"""Records to summary: groups, seeds, reference rows, reasons, leaders."""

import pytest
from sample_records import comparison, failed_run, image_run, language_run

from stable_forgetting.records import CheckpointChoice, MetricValue, RunRecord
from stable_forgetting.report.glossary import (
    DEFINED_METRICS,
    GROUP_TITLES,
    HEADLINES,
    KEY_COLUMNS,
    LEADS,
    TOFU_COLUMNS,
    define,
    key_columns,
)
from stable_forgetting.report.html import render_page
from stable_forgetting.report.replicates import group_by_method, group_by_problem
from stable_forgetting.report.summary import summarize
from stable_forgetting.report.tables import comparison_table
from stable_forgetting.report.verdicts import group_verdicts, method_verdicts
from stable_forgetting.report.view import build_page


def test_no_records_raise():
    with pytest.raises(ValueError, match="no records"):
        summarize([])


def test_glossary_covers_every_column_and_headline():
    named = {name for columns in KEY_COLUMNS.values() for name in columns}
    named |= set(TOFU_COLUMNS)
    named |= {name for names in HEADLINES.values() for name in names}
    assert named <= set(DEFINED_METRICS)
    for name in DEFINED_METRICS:
        definition = define(name)
        assert definition.group in GROUP_TITLES
        assert definition.sentence.endswith(".")
        assert definition.label != name


def test_runs_with_forget_quality_are_compared_by_the_columns_of_tofu():
    assert key_columns("language", {"forget_quality", "forget_nll"}) == TOFU_COLUMNS
    assert key_columns("language", {"forget_nll"}) == KEY_COLUMNS["language"]


def test_glossary_covers_every_metric_of_the_evaluation():
    metrics = pytest.importorskip("stable_forgetting.evaluation.metrics")
    assert set(metrics.METRICS) <= set(DEFINED_METRICS)


def test_what_counts_as_kept_is_the_same_in_tables_and_sentences():
    metrics = pytest.importorskip("stable_forgetting.evaluation.metrics")
    kept = {name for name, metric in metrics.METRICS.items() if metric.keeps}
    assert kept == {name for name in metrics.METRICS if define(name).group == "keeping"}


def test_sentences_of_a_run_name_every_metric_that_its_table_marks_as_worse():
    """Nine tenths of the retain probability are left, which is a small loss but a clear one."""
    verdicts = pytest.importorskip("stable_forgetting.evaluation.verdicts")
    loss = {"name": "retain_probability", "count": 160, "direction": "higher"}
    record = language_run("calibrated-sine")
    record = _with_metric(record, "base", MetricValue(**loss, value=0.95, low=0.94, high=0.96))
    record = _with_metric(record, "unlearned", MetricValue(**loss, value=0.90, low=0.89, high=0.91))
    row = summarize([record]).groups[0].methods[0].row("retain_probability")
    found = verdicts.verdicts(*(record.evaluation(role) for role in ("base", "unlearned", "retain")))
    assert row.change == "worse"
    assert not any("and the rest is kept" in sentence for sentence in found)
    assert "Clearly worse than before: retain_probability." in found


def test_other_task_data_or_base_model_is_another_problem():
    run = language_run("gd-sine")
    other_base = run.model_copy(update={"models": run.models | {"base": "sha256:other"}})
    other_data = run.model_copy(update={"sets": run.sets[:2]})
    groups = group_by_problem([run, image_run(), other_base, other_data, language_run("gd-lora")])
    assert [[record.name for record in group] for group in groups] == [
        ["gd-sine-seed0", "gd-lora-seed0"],
        ["digits-sine"],
        ["gd-sine-seed0"],
        ["gd-sine-seed0"],
    ]


def _measured(record: RunRecord, **evaluation: object) -> RunRecord:
    """The record as a run with these settings of the evaluation leaves it."""
    return record.model_copy(update={"config": record.config | {"evaluation": evaluation}})


@pytest.mark.parametrize(
    "changed",
    [
        {"retain_limit": 2},
        {"test_limit": 2},
        {"seed": 3},
        {"generate": False},
        {"max_new_tokens": 16},
        {"compat": "open-unlearning"},
    ],
)
def test_runs_that_were_measured_otherwise_are_another_problem(changed):
    usual, other = language_run("gd-sine", 1), _measured(language_run("calibrated-sine", 2), **changed)
    groups = summarize([usual, other]).groups
    assert [[method.name for method in group.methods] for group in groups] == [
        ["gd-sine-seed1"],
        ["calibrated-sine-seed2"],
    ]
    same_method = summarize([usual, _measured(language_run("gd-sine", 2), **changed)]).groups
    assert [len(group.methods[0].records) for group in same_method] == [1, 1], "these are no two seeds of one method"
    failed = _measured(failed_run(), **changed)
    assert [len(group.methods) for group in summarize([usual, other, failed]).groups] == [1, 2]
    pages = build_page(summarize([usual, other])).groups
    ((name, value),) = changed.items()
    assert [dict(page.facts).get("Measured with") for page in pages] == [None, f"{name} {value}"]


def test_what_the_benchmark_noted_is_said_once():
    noted = [["No test images."], ["No test images.", "A tenth is held out."], []]
    records = [language_run("gd-sine", seed).model_copy(update={"notes": n}) for seed, n in enumerate(noted, start=1)]
    (page,) = build_page(summarize(records)).groups
    assert dict(page.facts)["Notes"] == "No test images. A tenth is held out."
    assert "Notes" not in dict(build_page(summarize(records[2:])).groups[0].facts)


def test_settings_that_an_older_record_lacks_are_the_defaults():
    newer = _measured(language_run("gd-lora", 1), seed=0, compat=None, num_resamples=200)
    assert len(group_by_problem([language_run("gd-sine", 1), newer])) == 1


def test_another_retain_model_or_log_is_another_problem():
    run = language_run("gd-sine")
    other_model = run.model_copy(update={"models": run.models | {"retain": "sha256:other"}})
    base_alone = {"base": run.models["base"]}
    logged = [
        run.model_copy(update={"models": base_alone, "config": run.config | {"retain_log": name}}) for name in "ab"
    ]
    assert len(group_by_problem([run, other_model, *logged, run.model_copy(update={"models": base_alone})])) == 5
    assert len(group_by_problem([logged[0], logged[0].model_copy(update={"name": "another"})])) == 1


def test_seeds_of_the_subsets_are_no_seeds_of_a_method():
    first, second = (_measured(language_run("gd-sine", seed), seed=seed) for seed in (1, 2))
    assert len(group_by_method([first, second])) == 2
    assert len(group_by_method([first, _measured(language_run("gd-sine", 2), seed=1)])) == 1


def test_run_that_failed_early_joins_the_runs_with_its_settings():
    assert len(summarize(comparison()).groups) == 1
    stranger = failed_run().model_copy(update={"config": {"model": {"name": "other"}}})
    assert len(summarize([language_run("gd-sine"), stranger]).groups) == 2


def test_seeds_of_one_method_become_mean_and_deviation():
    method = summarize([language_run("calibrated-sine", seed) for seed in (1, 2, 3)]).groups[0].methods[0]
    row = method.row("retain_probability")
    assert method.name == "calibrated-sine"
    assert row.unlearned.estimate.value == pytest.approx(0.954 * 1.004)
    assert row.unlearned.estimate.spread == pytest.approx(0.954 * 0.004)
    assert row.unlearned.estimate.num_runs == 3
    assert row.base.estimate.num_runs == 1, "the base model is one model, however often it is measured"


def test_other_settings_or_the_same_seed_are_no_replicates():
    first, second = language_run("gd-sine", 1), language_run("gd-sine", 2)
    changed = second.model_copy(update={"config": second.config | {"adapter": {"rank": 8}}})
    assert len(group_by_method([first, second])) == 1
    assert len(group_by_method([first, changed])) == 2
    assert len(group_by_method([first, first.model_copy()])) == 2
    assert len(group_by_method([failed_run(), failed_run("late")])) == 2


def test_repeated_names_are_numbered():
    first = language_run("gd-sine", 1)
    methods = summarize([first, first.model_copy()]).groups[0].methods
    assert [method.name for method in methods] == ["gd-sine-seed1 (1)", "gd-sine-seed1 (2)"]


def test_reference_rows_appear_once_while_they_agree():
    records = comparison()
    assert [row.role for row in summarize(records).groups[0].references] == ["base", "retain"]
    changed = _with_metric(
        records[0], "retain", MetricValue(name="forget_nll", value=2.0, count=40, direction="retain")
    )
    rows = summarize([changed, *records[1:]]).groups[0].references
    assert [(row.role, row.methods) for row in rows] == [
        ("base", ("gd-lora-seed0", "gd-sine-seed0", "calibrated-sine")),
        ("retain", ("gd-lora-seed0",)),
        ("retain", ("gd-sine-seed0", "calibrated-sine")),
    ]


def test_missing_values_keep_their_reason():
    run = language_run("gd-sine")
    without = run.model_copy(update={"evaluations": run.evaluations[:2]})
    method = summarize([without]).groups[0].methods[0]
    row = method.row("forget_probability")
    assert row.retain.estimate is None
    assert row.retain.reason == "The retain model was not evaluated."
    assert row.gap.reason == row.retain.reason
    assert row.change == "not judged"
    assert summarize([run]).groups[0].methods[0].row("forget_nll_ks").retain.reason.startswith("The retain model is")


def test_mean_says_how_many_runs_have_no_value():
    missing = MetricValue(name="test_perplexity", reason="No test set.", direction="lower")
    records = [language_run("gd-sine", 1), _with_metric(language_run("gd-sine", 2), "unlearned", missing)]
    cell = summarize(records).groups[0].methods[0].row("test_perplexity").unlearned
    assert cell.estimate.value == pytest.approx(15.9)
    assert cell.reason == "Not available in 1 of 2 runs: No test set."


def test_leaders_are_those_that_none_clearly_beats():
    group = summarize(comparison()).groups[0]
    leaders = group.leaders
    assert {*group.columns} <= {*leaders}
    assert leaders["retain_probability"] == ("calibrated-sine",)
    assert leaders["mia_loss_auc"] == ("gd-sine-seed0", "calibrated-sine")
    assert leaders["forget_probability"] == (), "on 40 examples the intervals are too wide"
    assert leaders["forget_nll_ks"] == (), "nothing is judged without intervals"


def test_lead_sentences_say_by_which_number_and_how_far_from_the_retain_model():
    sentences = [verdict.sentence for verdict in group_verdicts(summarize(comparison()).groups[0])]
    assert (
        "Membership attack, AUC (closer to the retain model is better): gd-sine-seed0 (0.412, gap −0.092), "
        "calibrated-sine (0.499, gap −0.005) lead, with no clear difference between them; behind: gd-lora-seed0 "
        "(0.061, gap −0.443)."
    ) in sentences
    assert any(sentence.startswith("NLL per label, forget (closer to the retain model") for sentence in sentences)
    other = image_run().model_copy(update={"name": "other", "config": {**image_run().config, "more": 1}})
    first = group_verdicts(summarize([image_run(), other]).groups[0])[0]
    assert (first.topic, first.sentence) == (
        "Overall",
        "Tug of war (higher is better): digits-sine (0.985), other (0.985); no method leads by more than the interval.",
    )


def test_comparisons_with_forget_quality_say_who_leads_by_every_number_that_was_measured():
    records = [_with_metric(record, "unlearned", TOFU_P) for record in comparison()]
    (group,) = summarize(records).groups
    assert group.columns == TOFU_COLUMNS
    *sentences, failed = [verdict.sentence for verdict in group_verdicts(group)]
    assert failed == "1 run has no result: gd-lora-fast."
    for sentence, name in zip(sentences, LEADS["language"], strict=True):
        assert sentence.startswith(define(name).label)
    assert "gd-sine-seed0 (0.412, gap −0.092), calibrated-sine" in sentences[-1]


def test_without_intervals_the_numbers_are_given_but_nobody_leads():
    records = [_with_metric(record, "unlearned", TOFU_P) for record in comparison()[:2]]
    (found,) = [v for v in group_verdicts(summarize(records).groups[0]) if v.sentence.startswith("Forget quality")]
    assert found.sentence.endswith("(0.600); without intervals no method is said to lead.")


def test_what_single_seeds_say_has_the_name_of_their_run():
    records = [language_run("calibrated-sine", seed) for seed in (1, 2)]
    records[1] = records[1].model_copy(update={"verdicts": [*records[1].verdicts, "The rest was damaged."]})
    notes = [v.sentence for v in method_verdicts(summarize(records).groups[0].methods[0]) if v.topic == "The run notes"]
    assert notes == [records[0].verdicts[0], "calibrated-sine-seed2: The rest was damaged."]


def test_verdicts_say_no_more_than_the_intervals_carry():
    run = language_run("calibrated-sine")
    sentences = {v.topic: v for v in method_verdicts(summarize([run]).groups[0].methods[0])}
    assert sentences["Forgetting"].tone == "good"
    assert sentences["Keeping"].tone == "neutral"
    assert "no clear difference" in sentences["Keeping"].sentence
    assert sentences["Bound"].tone == "good"
    damaged = {v.topic: v for v in method_verdicts(summarize([language_run("gd-lora")]).groups[0].methods[0])}
    assert damaged["Keeping"].tone == "bad"
    assert damaged["Forgetting"].tone == "neutral", "closer, but a clear gap to the retain model is left"
    assert "no bound" in damaged["Bound"].sentence


def test_a_broken_bound_is_said():
    run = language_run("gd-sine")
    broken = run.certificate[0].model_copy(update={"largest_entry": 1.0, "holds": False})
    record = run.model_copy(update={"certificate": [broken, *run.certificate[1:]]})
    verdict = next(v for v in method_verdicts(summarize([record]).groups[0].methods[0]) if v.topic == "Bound")
    assert verdict.tone == "bad"
    assert "does not hold in 1 layer: model.layers.0.mlp.gate_proj" in verdict.sentence


def test_failed_and_stopped_runs_say_why():
    group = summarize(comparison()).groups[0]
    assert group.methods[-1].status == "failed"
    assert any(v.topic == "Failed" and "gd-lora-fast" in v.sentence for v in group_verdicts(group))
    stopped = language_run("gd-sine").model_copy(update={"status": "stopped", "stopped": "forget_nll above 2.4"})
    first = method_verdicts(summarize([stopped]).groups[0].methods[0])[0]
    assert (first.topic, first.sentence) == ("Stopped early", "forget_nll above 2.4")


def test_of_several_seeds_those_that_stopped_early_are_named():
    stopped = {"status": "stopped", "stopped": "the loss became nan; the fresh adapter was kept"}
    records = [language_run("gd-sine", seed) for seed in (0, 1, 2)]
    records[1] = records[1].model_copy(update=stopped)
    (group,) = summarize(records).groups
    first = method_verdicts(group.methods[0])[0]
    assert (first.topic, first.sentence) == ("Stopped early", f"gd-sine-seed1: {stopped['stopped']}")
    (line,) = (row for row in comparison_table(group, {}, "g1").methods if row.name == "gd-sine")
    assert line.small == "mean of 3 seeds, 1 stopped early"


def test_layers_are_counted_once_however_many_runs_there_are():
    def bound(seeds):
        method = summarize([language_run("gd-sine", seed) for seed in seeds]).groups[0].methods[0]
        return next(v.sentence for v in method_verdicts(method) if v.topic == "Bound")

    count = len(language_run("gd-sine").certificate)
    assert f"in all {count} adapted layers. The" in bound([0])
    assert f"in all {count} adapted layers of all runs. The" in bound([0, 1, 2])


def test_of_several_seeds_each_layer_is_listed_once_as_it_came_closest_to_its_limit():
    records = [language_run("gd-sine", seed) for seed in (0, 1, 2)]
    first, second, *others = records[1].certificate
    closer = first.model_copy(update={"largest_entry": first.entry_limit})
    broken = second.model_copy(update={"largest_entry": 0.0, "frobenius_norm": 1e9, "holds": False})
    records[1] = records[1].model_copy(update={"certificate": [closer, broken, *others]})
    found = build_page(summarize(records)).groups[0].methods[0].certificate
    assert [line.layer for line in found.layers] == [layer.layer for layer in records[0].certificate]
    assert (found.layers[0].share, found.layers[1].holds) == ("100.0%", "does not hold")
    page = render_page(build_page(summarize(records)))
    assert f"All {len(records[0].certificate)} layers, the closest over 3 runs" in page
    assert "as a share of its limit, the closest over 3 runs." in found.figure.caption
    alone = build_page(summarize(records[:1])).groups[0].methods[0].certificate
    assert "closest over" not in alone.figure.caption + alone.over
    unbounded = [language_run("gd-lora", seed) for seed in (0, 1)]
    more = [layer.model_copy(update={"largest_entry": 9.0}) for layer in unbounded[1].certificate]
    unbounded[1] = unbounded[1].model_copy(update={"certificate": more})
    lines = build_page(summarize(unbounded)).groups[0].methods[0].certificate.layers
    assert {line.entry for line in lines} == {"9.000 of no limit"}


def test_the_step_of_the_kept_adapter_is_said():
    record = language_run("gd-sine").model_copy(update={"kept_step": 24})
    steps = {dict(page.facts)["Steps"] for page in build_page(summarize([record])).groups[0].methods}
    assert steps == {"60, the adapter is that of step 24"}
    last = record.model_copy(update={"kept_step": 60})
    assert dict(build_page(summarize([last])).groups[0].methods[0].facts)["Steps"] == "60"
    choice = CheckpointChoice(metrics=["forget_nll"], counts={"forget": 64})
    chosen = [
        language_run("gd-sine", seed).model_copy(update={"choice": choice, "kept_step": step})
        for seed, step in ((0, 24), (1, 36), (2, 24))
    ]
    (sentence,) = (
        verdict.sentence
        for verdict in method_verdicts(summarize(chosen).groups[0].methods[0])
        if verdict.topic == "Checkpoint"
    )
    assert sentence.endswith("than on others. The adapter is that of step 24 and 36.")


TOFU_P = MetricValue(name="forget_quality", value=0.6, count=40, direction="higher")


def _with_metric(record: RunRecord, role: str, metric: MetricValue) -> RunRecord:
    """The record with one metric of one model replaced."""
    entries = [
        entry.model_copy(update={"metrics": [*(m for m in entry.metrics if m.name != metric.name), metric]})
        if entry.role == role
        else entry
        for entry in record.evaluations
    ]
    return record.model_copy(update={"evaluations": entries})


def test_a_chosen_checkpoint_is_said_to_be_chosen():
    record = language_run("gd-sine")
    assert "Checkpoint" not in {v.topic for v in method_verdicts(summarize([record]).groups[0].methods[0])}
    choice = CheckpointChoice(metrics=["forget_nll", "retain_nll"], counts={"forget": 64, "retain": 1200})
    (found,) = [
        verdict
        for verdict in method_verdicts(summarize([record.model_copy(update={"choice": choice})]).groups[0].methods[0])
        if verdict.topic == "Checkpoint"
    ]
    assert found.sentence == (
        f"Chosen during training by {define('forget_nll').label} and {define('retain_nll').label} on 64 forget and "
        "1,200 retain examples that are among those measured here: the values are a little better than on others."
    )
