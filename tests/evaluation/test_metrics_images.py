"""Metrics of images from stored values: known answers, and reasons where there is none."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from reference.metric_twins import js_by_hand, regression_by_hand
from sample_scores import make_classes, make_scores
from stable_forgetting.errors import DataError
from stable_forgetting.evaluation.scores import ModelScores
from stable_forgetting.evaluation.suite import evaluate_scores

SETTINGS = {"num_resamples": 100, "seed": 0}


def with_columns(scores, set_name, **columns):
    """The same values with some columns of a set's likelihood replaced."""
    values = scores.sets[set_name]
    likelihood = replace(values.likelihood, **columns)
    return replace(scores, sets={**scores.sets, set_name: replace(values, likelihood=likelihood)})


def with_probe(scores, set_name, predicted):
    values = replace(scores.sets[set_name], probe_predicted=predicted)
    return replace(scores, sets={**scores.sets, set_name: values})


def value(scores, name, retain=None, base=None):
    found = evaluate_scores(scores, retain, base_scores=base, **SETTINGS).metric(name)
    assert found.reason is None
    return found.value


def reason(scores, name, retain=None, base=None):
    found = evaluate_scores(scores, retain, base_scores=base, **SETTINGS).metric(name)
    assert found.value is None
    return found.reason


def test_h_score_of_a_base_model_that_knows_all_and_a_model_that_forgot_half():
    own, base = make_scores("image"), make_scores("image", "base")
    labels = {name: own.sets[name].likelihood.label for name in ("forget_test", "retain_test")}
    half = np.where(np.arange(12) < 6, labels["forget_test"], 9)
    base = with_columns(base, "forget_test", predicted=labels["forget_test"])
    own = with_columns(with_columns(own, "forget_test", predicted=half), "retain_test", predicted=labels["retain_test"])
    found = evaluate_scores(own, None, base_scores=base, **SETTINGS).metric("h_score")
    assert found.value == pytest.approx(2 * 0.5 * 1 / 1.5)
    assert found.details == {"drop": 0.5, "kept": 1.0}
    assert found.count == 24


def test_the_interval_of_tug_of_war_reaches_one_where_the_accuracies_are_equal():
    """The models are wrong on different images, so that resamples have gaps, none of which is below 0."""
    own, retain = make_scores("image"), make_scores("image", "retain")
    for name in ("forget", "retain", "retain_test"):
        right = own.sets[name].likelihood.label
        own = with_columns(own, name, predicted=np.where(np.arange(12) < 3, 9, right))
        retain = with_columns(retain, name, predicted=np.where(np.arange(12) > 8, 9, right))
    found = evaluate_scores(own, retain, **SETTINGS).metric("tow")
    assert (found.value, found.high) == (1.0, 1.0)
    assert 0 < found.low < 1
    assert evaluate_scores(own, retain, num_resamples=0, seed=0).metric("tow").high is None


def test_h_score_needs_the_base_model_and_the_base_model_has_none():
    own, base = make_scores("image"), make_scores("image", "base")
    assert reason(own, "h_score") == "needs the base model's per-example values, as `forget run` has them"
    assert reason(base, "h_score", base=base) == "it is the model that the change is measured from"
    other = replace(base.sets["forget"], sha256="other")
    with pytest.raises(DataError, match="The model and the base model were measured on different forget examples"):
        value(own, "h_score", base=replace(base, sets={**base.sets, "forget": other}))
    retain = make_scores("image", "retain", seed=3)
    assert 0 < value(retain, "h_score", base=with_columns(base, "forget_test", predicted=base_labels(base))) < 1


def base_labels(scores):
    return scores.sets["forget_test"].likelihood.label


@pytest.mark.parametrize("set_name", ["forget", "forget_test"])
def test_divergence_is_the_mean_over_the_images(set_name):
    own, retain = make_scores("image"), make_scores("image", "retain", seed=1)
    pairs = [np.exp(each.sets[set_name].likelihood.class_log_probabilities.astype(float)) for each in (own, retain)]
    expected = np.mean([js_by_hand(*(row / row.sum() for row in rows)) for rows in zip(*pairs, strict=True)])
    assert value(own, f"{set_name}_js", retain) == pytest.approx(expected)
    assert value(own, f"{set_name}_js", replace(own, role="retain")) == pytest.approx(0, abs=1e-15)
    assert reason(retain, f"{set_name}_js", retain) == "it is the reference"


def test_divergence_needs_the_same_classes():
    own, retain = make_scores("image"), make_scores("image", "retain")
    fewer = make_classes(np.random.default_rng(0), 12)[:, :3]
    assert reason(own, "forget_js", with_columns(retain, "forget", class_log_probabilities=fewer)) == (
        "the model tells 4 classes apart, the retain model 3"
    )


def test_probe_accuracies_are_made_of_its_own_predictions():
    own = make_scores("image")
    labels = own.sets["forget_test"].likelihood.label
    own = with_probe(own, "forget_test", np.where(np.arange(12) < 9, labels, 9))
    assert value(own, "probe_forget_test_accuracy") == 0.75
    assert reason(with_probe(own, "retain_test", None), "probe_retain_test_accuracy").startswith(
        "needs a linear probe, and for it: evaluation.linear_probe"
    )


@pytest.mark.parametrize("name", ["forget_accuracy", "probe_forget_test_accuracy", "mia_entropy", "mia_confidence"])
def test_a_share_of_nothing_has_an_interval(name):
    """Of 12 images none: a bootstrap would have no width, so that every other share would differ from it clearly."""
    own = make_scores("image")
    wrong = (own.sets["forget"].likelihood.label + 1) % 4
    own = with_columns(own, "forget", predicted=wrong, entropy=HIGH, nll_sum=LOW)
    own = with_columns(with_columns(own, "retain", entropy=LOW, nll_sum=LOW), "retain_test", entropy=HIGH, nll_sum=HIGH)
    own = with_probe(own, "forget_test", (own.sets["forget_test"].likelihood.label + 1) % 4)
    found = evaluate_scores(own, None, **SETTINGS).metric(name)
    assert (found.value, found.low, found.count) == (0, 0, 12)
    assert found.high == pytest.approx(3.841459 / (12 + 3.841459), abs=1e-6)  # z² / (n + z²)


def attacked(column, members, nonmembers, judged):
    """Values of an attack that learns from retain and retain test images and judges the forget set."""
    scores = make_scores("image")
    for name, values in (("retain", members), ("retain_test", nonmembers), ("forget", judged)):
        scores = with_columns(scores, name, **{column: np.asarray(values, dtype=float)})
    return scores


LOW, HIGH = np.linspace(0.01, 0.1, 12), np.linspace(1.0, 1.4, 12)


def test_entropy_attack_counts_forget_images_that_look_like_members():
    assert value(attacked("entropy", LOW, HIGH, LOW), "mia_entropy") == 1.0
    assert value(attacked("entropy", LOW, HIGH, HIGH), "mia_entropy") == 0.0
    assert value(attacked("entropy", LOW, HIGH, [0.05] * 3 + [1.2] * 9), "mia_entropy") == 0.25
    assert value(attacked("entropy", LOW, LOW, HIGH), "mia_entropy") == 0.5


def test_confidence_attack_counts_forget_images_that_do_not():
    assert value(attacked("nll_sum", LOW, HIGH, HIGH), "mia_confidence") == 1.0
    assert value(attacked("nll_sum", LOW, HIGH, LOW), "mia_confidence") == 0.0
    assert value(attacked("nll_sum", LOW, HIGH, [0.05] * 9 + [1.2] * 3), "mia_confidence") == 0.25


def test_entropy_attack_equals_its_slow_twin():
    own = make_scores("image", seed=5, count=30)
    members, nonmembers, judged = (own.sets[name].likelihood.entropy for name in ("retain", "retain_test", "forget"))
    assert value(own, "mia_entropy") == pytest.approx(np.mean(regression_by_hand(members, nonmembers, judged)))


def test_loss_attack_counts_forget_and_holdout_images_that_are_told_apart():
    own = make_scores("image")
    for forget, holdout, expected in ((LOW, HIGH, 1.0), (HIGH, LOW, 1.0), (np.ones(12), np.ones(12), 0.5)):
        told = with_columns(with_columns(own, "forget", nll_sum=forget), "holdout", nll_sum=holdout)
        assert value(told, "mia_loss") == expected
    found = evaluate_scores(told, None, **SETTINGS).metric("mia_loss")
    assert (found.count, found.details) == (24, {"num_members": 12, "num_nonmembers": 12})
    one = make_scores("image", count=1)
    assert reason(one, "mia_loss") == "needs two forget and two holdout examples at least"


def test_values_keep_every_bit_as_json():
    scores = make_scores("image")
    text = json.dumps(scores.to_json(), allow_nan=False)
    again = ModelScores.from_json(json.loads(text))
    assert json.dumps(again.to_json()) == text
    for name, values in scores.sets.items():
        other = again.sets[name]
        for before, after in (
            (values.probe_predicted, other.probe_predicted),
            (values.likelihood.entropy, other.likelihood.entropy),
            (values.likelihood.class_log_probabilities, other.likelihood.class_log_probabilities),
        ):
            assert before.dtype == after.dtype
            assert before.tobytes() == after.tobytes()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data["likelihood"]["class_log_probabilities"][3].pop(), "different numbers of classes"),
        (lambda data: data["likelihood"]["class_log_probabilities"].pop(), "differ in length"),
        (lambda data: data["likelihood"]["entropy"].pop(), "differ in length"),
        (lambda data: data["probe_predicted"].pop(), "lengths"),
    ],
)
def test_damaged_values_are_refused(damage, message):
    data = make_scores("image").to_json()
    damage(data["sets"]["forget"])
    with pytest.raises(DataError, match=message):
        ModelScores.from_json(data)


def test_classes_that_are_not_finite_give_a_reason():
    own, retain = make_scores("image"), make_scores("image", "retain")
    own.sets["forget"].likelihood.class_log_probabilities[4, 1] = math.nan
    assert reason(own, "forget_js", retain) == (
        "the unlearned model's class_log_probabilities is not finite for 1 of 12 forget examples (first: 4)"
    )


def test_where_no_class_is_deleted_no_test_image_is_of_what_is_forgotten():
    scores = make_scores("image")
    sets = {name: values for name, values in scores.sets.items() if name != "forget_test"}
    assert "the classes of all forgotten images stay" in reason(replace(scores, sets=sets), "forget_test_accuracy")
    sets.pop("retain_test", None)
    assert "give data.test" in reason(replace(scores, sets=sets), "forget_test_accuracy")
