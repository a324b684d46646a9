"""Checks that are written once and run over every metric."""

import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from sample_scores import make_scores, make_set, set_names
from stable_forgetting.errors import DataError
from stable_forgetting.evaluation.likelihood import LikelihoodScores, TokenScores
from stable_forgetting.evaluation.metrics import METRICS
from stable_forgetting.evaluation.scores import ModelScores, SetScores
from stable_forgetting.evaluation.suite import evaluate_scores, gap

SETTINGS = {"num_resamples": 200, "seed": 0}
WITHOUT_INTERVAL = ("forget_nll_ks", "forget_quality")
SHARES = {name for name in METRICS if name.endswith("accuracy")} | {"mia_entropy", "mia_confidence"}
MORE_THAN_ONE = ("mia_loss",)
NOT_OF_NOTHING = ("model_utility_kept",)
"""A share of a utility that is 0 here: the one greedy answer has no right word."""
"""Metrics that one example a side is too few for."""

EACH = [(task, name) for name, metric in METRICS.items() for task in metric.tasks]


def permuted(scores, *, seed):
    """Each set in another order."""
    generator = np.random.default_rng(seed)
    sets = {}
    for name, values in scores.sets.items():
        order = generator.permutation(len(values))
        sets[name] = permuted_set(values, order)
    return replace(scores, sets=sets)


def permuted_set(values, order):
    likelihood = permuted_likelihood(values.likelihood, order)
    if values.answers is None:
        return SetScores(values.sha256, likelihood, probe_predicted=values.probe_predicted[order])
    starts = np.cumsum(values.num_perturbed) - values.num_perturbed
    wrong = np.concatenate([np.arange(starts[index], starts[index] + values.num_perturbed[index]) for index in order])
    return SetScores(
        values.sha256,
        likelihood,
        answers=tuple(values.answers[index] for index in order),
        references=tuple(values.references[index] for index in order),
        paraphrased=permuted_likelihood(values.paraphrased, order),
        perturbed=permuted_likelihood(values.perturbed, wrong),
        num_perturbed=values.num_perturbed[order],
        compressed_bytes=values.compressed_bytes[order],
        gradient_norm=values.gradient_norm[order],
    )


def permuted_likelihood(values, order):
    names = [field.name for field in fields(values) if field.name != "tokens"]
    columns = {name: getattr(values, name) for name in names}
    moved = {name: None if column is None else column[order] for name, column in columns.items()}
    if values.tokens is None:
        return LikelihoodScores(**moved)
    starts, counts = values.label_starts, values.num_labels
    places = np.concatenate([np.arange(starts[index], starts[index] + counts[index]) for index in order])
    tokens = TokenScores(**{field.name: getattr(values.tokens, field.name)[places] for field in fields(TokenScores)})
    return LikelihoodScores(**moved, tokens=tokens)


def three_models(task, *, count=12):
    """Values of an unlearned, a retain and a base model."""
    return (
        make_scores(task, count=count),
        make_scores(task, "retain", seed=1, loss=2.0, count=count),
        make_scores(task, "base", seed=2, loss=0.5, count=count),
    )


def measured(own, retain, base):
    return evaluate_scores(own, retain, base_scores=base, **SETTINGS)


def without(scores, *names):
    return replace(scores, sets={name: values for name, values in scores.sets.items() if name not in names})


def plain(scores):
    """As a run on plain questions has it: no wrong answers, no gradient norms."""
    bare = {"paraphrased": None, "perturbed": None, "num_perturbed": None, "gradient_norm": None}
    return replace(scores, sets={name: replace(values, **bare) for name, values in scores.sets.items()})


def test_a_run_on_plain_questions_lists_no_benchmark():
    scores = plain(without(make_scores("language"), "real_authors", "world_facts"))
    listed = {metric.name for metric in evaluate_scores(scores, None, **SETTINGS).metrics}
    assert "mia_min_k_auc" in listed
    assert not {"forget_quality", "model_utility", "mia_gradient_norm_auc", "world_facts_probability"} & listed


@pytest.mark.parametrize(("task", "name"), EACH)
def test_value_count_interval_and_range(task, name):
    found = measured(*three_models(task)).metric(name)
    low, high = METRICS[name].range
    assert found.reason is None
    assert low <= found.value <= high
    assert found.count >= 12
    assert found.direction == METRICS[name].direction
    if name in WITHOUT_INTERVAL:
        assert found.low is None
    else:
        assert found.low - 1e-12 <= found.value <= found.high + 1e-12
        assert found.low < found.high


@pytest.mark.parametrize(("task", "name"), EACH)
def test_order_of_examples_changes_nothing(task, name):
    models = three_models(task)
    one = measured(*models).metric(name)
    other = measured(*[permuted(scores, seed=3) for scores in models]).metric(name)
    assert other.value == pytest.approx(one.value, rel=1e-12)
    assert (other.low, other.high) == (pytest.approx(one.low), pytest.approx(one.high))


@pytest.mark.parametrize(("task", "name"), EACH)
def test_every_declared_need_is_needed(task, name):
    models = dict(zip(("own", "retain", "base"), three_models(task), strict=True))
    for need in METRICS[name].needs:
        lacking = models | {need.model: without(models[need.model], need.set_name)}
        found = measured(**lacking).metric(name)
        if found is None and need.model == "own":
            assert need.set_name in METRICS[name].listed_with
            continue
        assert found.value is None
        assert found.count is None
        assert found.reason.startswith("needs ")


@pytest.mark.parametrize(("task", "name"), EACH)
def test_nothing_but_the_declared_needs_is_needed(task, name):
    models = dict(zip(("own", "retain", "base"), three_models(task), strict=True))
    for model, scores in models.items():
        needed = {need.set_name for need in METRICS[name].needs if need.model == model}
        bare = without(scores, *(set(scores.sets) - needed))
        models[model] = bare if needed or model == "own" else None
    assert measured(**models).metric(name).value is not None


@pytest.mark.parametrize(("task", "name"), EACH)
def test_likelihoods_that_are_not_finite_give_a_reason(task, name):
    own, retain, base = three_models(task)
    for values in own.sets.values():
        values.likelihood.nll_sum[5] = math.nan
    found = measured(own, retain, base).metric(name)
    assert found.value is None
    assert "the unlearned model's likelihood is not finite for 1 of 12" in found.reason
    assert "first: 5" in found.reason


def test_answers_are_measured_though_the_right_ones_are_impossible():
    scores = make_scores("language")
    before = evaluate_scores(scores, None, **SETTINGS).metric("forget_rouge_l_recall")
    scores.sets["forget"].likelihood.nll_sum[5] = math.inf
    evaluation = evaluate_scores(scores, None, **SETTINGS)
    assert evaluation.metric("forget_rouge_l_recall") == before
    assert evaluation.metric("forget_nll").value is None


@pytest.mark.parametrize(("task", "name"), EACH)
def test_one_example_has_a_value_and_no_interval_but_of_a_share(task, name):
    generator = np.random.default_rng(0)
    sets = {each: make_set(generator, 1, 1.0, task=task) for each in set_names(task)}
    scores = ModelScores(task=task, role="unlearned", source="made here", sets=sets)
    found = measured(scores, replace(scores, role="retain"), replace(scores, role="base")).metric(name)
    assert (found.value is None) == (name in MORE_THAN_ONE + NOT_OF_NOTHING)
    assert (found.low is None) == (name not in SHARES)


@pytest.mark.parametrize("task", ["language", "image"])
def test_the_retain_model_is_its_own_reference(task):
    retain = make_scores(task, "retain")
    for given in (None, retain):
        evaluation = evaluate_scores(retain, given, **SETTINGS)
        for metric in evaluation.metrics:
            if METRICS[metric.name].compares:
                assert metric.value is None
                assert metric.reason == "it is the reference"


def test_reasons_say_what_to_give():
    scores = plain(without(make_scores("language"), "holdout", "test", "real_authors", "world_facts"))
    evaluation = evaluate_scores(scores, None, **SETTINGS)
    reasons = {metric.name: metric.reason for metric in evaluation.metrics if metric.reason}
    assert reasons == {
        "holdout_probability": "needs a holdout set; give data.holdout",
        "test_perplexity": "needs test texts; give data.test",
        "mia_loss_auc": "needs a holdout set; give data.holdout",
        "forget_nll_ks": "needs the retain model's per-example values; give retain_model or retain_log",
    }


def test_answers_are_needed_and_have_to_be_readable():
    scores = make_scores("language")
    silent = {name: SetScores(values.sha256, values.likelihood) for name, values in scores.sets.items()}
    found = evaluate_scores(replace(scores, sets=silent), None, **SETTINGS).metric("forget_rouge_l_recall")
    assert found.reason == "needs prompts with answers, and evaluation.generate to be true"
    forget = scores.sets["forget"]
    foreign = replace(forget, references=("猫", *forget.references[1:]))
    found = evaluate_scores(replace(scores, sets={**scores.sets, "forget": foreign}), None, **SETTINGS).metric(
        "forget_rouge_l_recall"
    )
    assert found.reason.startswith("1 of 12 right answers have no word")


def test_known_answers_for_equal_models():
    for task in ("language", "image"):
        own = make_scores(task)
        evaluation = evaluate_scores(own, replace(own, role="retain"), **SETTINGS)
        assert evaluation.metric("forget_nll_ks").value == 1.0
    assert evaluation.metric("tow").value == 1.0


def test_known_answers_for_separated_models():
    own, retain = make_scores("language", loss=10.0), make_scores("language", "retain", loss=0.1)
    found = evaluate_scores(own, retain, **SETTINGS).metric("forget_nll_ks")
    assert found.details == {"D": 1.0, "log10_p": pytest.approx(math.log10(found.value)), "n": 12}
    assert found.value == pytest.approx(2 / math.comb(24, 12))
    generator = np.random.default_rng(0)
    own.sets["forget"] = make_set(generator, 12, 0.1)
    assert evaluate_scores(own, None, **SETTINGS).metric("mia_loss_auc").value == 1.0


def test_known_means_by_hand():
    columns = {
        "nll_sum": [2.0, 3.0],
        "num_labels": [2, 1],
        "num_correct": [1, 0],
        "first_extractable": [1, 1],
        "num_correct_without_last": [0, 0],
        "first_extractable_without_last": [1, 0],
    }
    likelihood = LikelihoodScores(**{name: np.array(column) for name, column in columns.items()})
    values = SetScores("one", likelihood, ("ada", "rome"), ("ada paris", "rome"))
    sets = dict.fromkeys(("forget", "test"), values)
    evaluation = evaluate_scores(ModelScores("language", "base", "x", sets), None, **SETTINGS)
    expected = {
        "forget_probability": (math.exp(-1) + math.exp(-3)) / 2,
        "forget_nll": 2.0,
        "forget_rouge_l_recall": 0.75,
        "forget_exact_memorization": 0.25,
        "forget_extraction_strength": 0.25,
        "test_perplexity": math.exp(5 / 3),
    }
    for name, value in expected.items():
        assert evaluation.metric(name).value == pytest.approx(value), name
    assert evaluation.metric("test_perplexity").details["num_tokens"] == 3


def test_perplexity_beyond_all_numbers():
    scores = make_scores("language", loss=2000.0)
    found = evaluate_scores(scores, None, **SETTINGS).metric("test_perplexity")
    assert found.value is None
    assert "too large for a number" in found.reason


def test_models_measured_on_different_examples_are_not_compared():
    own, retain = make_scores("language"), make_scores("language", "retain")
    retain.sets["holdout"] = replace(retain.sets["holdout"], sha256="other")
    with pytest.raises(DataError, match="different holdout examples"):
        evaluate_scores(own, retain, **SETTINGS)


def test_gap_is_signed_and_only_where_both_have_a_value():
    own = evaluate_scores(make_scores("language", loss=1.0), None, **SETTINGS)
    retain = evaluate_scores(without(make_scores("language", "retain", loss=3.0), "test"), None, **SETTINGS)
    gaps = gap(own, retain)
    assert gaps["forget_nll"] == pytest.approx(own.metric("forget_nll").value - retain.metric("forget_nll").value)
    assert gaps["forget_nll"] < 0 < gaps["forget_probability"]
    assert not {"test_perplexity", "forget_nll_ks"} & set(gaps)


def test_directions():
    kept_down = {"retain_nll", "test_perplexity"}
    for name, metric in METRICS.items():
        if metric.compares:
            assert metric.direction == ("lower" if name.endswith("_js") else "higher")
        elif name.startswith(("forget", "forgotten", "holdout", "mia", "privacy", "probe_forget")):
            assert metric.direction == "retain"
        else:
            assert metric.direction == ("lower" if name in kept_down else "higher"), name


@pytest.mark.parametrize("name", METRICS)
def test_has_a_page(name):
    pages = Path(__file__).parents[2] / "docs" / "metrics"
    assert any(f"`{name}`" in page.read_text(encoding="utf-8") for page in pages.glob("*.md"))


def test_tests_compare_the_nll_per_label():
    """Answers that are eight times as long and as likely per label are told apart by neither test."""
    own = make_scores("language")
    short = own.sets["forget"].likelihood
    long = replace(short, nll_sum=short.nll_sum * 8, num_labels=short.num_labels * 8, tokens=None)
    sets = {"forget": own.sets["forget"], "holdout": replace(own.sets["forget"], likelihood=long)}
    retain = ModelScores("language", "retain", "x", {"forget": sets["holdout"]})
    evaluation = evaluate_scores(replace(own, sets=sets), retain, **SETTINGS)
    assert evaluation.metric("forget_nll_ks").value == 1.0
    assert evaluation.metric("mia_loss_auc").value == pytest.approx(0.5)
