"""Metrics during training: those of the end on a part of the examples, and three of their own against slow twins."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from reference.metric_twins import ks_p_of_equal_sizes, truth_ratio_by_hand, tug_of_war_by_hand, utility_by_hand
from stable_forgetting.data.examples import ExampleSet
from stable_forgetting.data.splits import subset, subset_positions
from stable_forgetting.errors import DataError, NotFiniteError
from stable_forgetting.evaluation.metrics import METRICS
from stable_forgetting.evaluation.metrics_validation import VALIDATION_METRICS, VALIDATION_NAMES, missing
from stable_forgetting.evaluation.scores import ScoringOptions, score_model
from stable_forgetting.evaluation.suite import evaluate_scores
from stable_forgetting.evaluation.validation import validation_data, validation_metrics, without_alternatives
from stable_forgetting.evaluation.values import Definitions, values_of

OPTIONS = ScoringOptions(batch_size=4, generate=False, max_new_tokens=1)
COMPARED = ("forget_nll_ks", "forget_quality", "forget_quality_and_utility")
OF_ALTERNATIVES = ("forget_quality", "retain_truth_ratio", "forget_quality_and_utility")


def with_alternatives(example_set, seed=5):
    """Each example with a paraphrase and one or two wrong answers, all to its own prompt."""
    generator = np.random.default_rng(seed)

    def other(example):
        answer = tuple(int(token) for token in generator.integers(0, 23, size=int(generator.integers(2, 6))))
        return replace(example, input_ids=(*example.input_ids[: example.num_prompt_tokens], *answer, 2))

    examples = [
        replace(example, paraphrased=other(example), perturbed=tuple(other(example) for _ in range(1 + index % 2)))
        for index, example in enumerate(example_set)
    ]
    return ExampleSet(example_set.name, examples)


@pytest.fixture
def tofu_sets(make_language_set):
    return {
        name: with_alternatives(make_language_set(name, 12, seed)) for seed, name in enumerate(("forget", "retain"))
    }


@pytest.fixture
def scored(language_task):
    """Values of a model on whole sets."""

    def score(model, sets, task=language_task, role="retain"):
        return score_model(model, task, sets, role=role, source="x", options=OPTIONS)

    return score


@pytest.fixture
def other_model(language_model):
    """A model that is not far from the first: its truth ratios overlap."""
    other = copy.deepcopy(language_model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
    return other


@pytest.mark.parametrize("task_name", ["language", "image"])
def test_equal_to_the_metrics_of_the_end(request, task_name):
    model = request.getfixturevalue(f"{task_name}_model")
    task = request.getfixturevalue(f"{task_name}_task")
    make_set = request.getfixturevalue(f"make_{task_name}_set")
    sets = {"forget": make_set("forget", seed=1), "retain": make_set("retain", seed=2)}
    found = validation_metrics(model, task, validation_data(sets, size=64, seed=0), 4)
    compared = {"forget_nll_ks", "tow_train", *OF_ALTERNATIVES}
    assert list(found) == [name for name in VALIDATION_NAMES[task_name] if name not in compared]
    evaluation = evaluate_scores(
        score_model(model, task, sets, role="base", source="x", options=OPTIONS), None, num_resamples=100, seed=0
    )
    of_the_end = {name for name in found if evaluation.metric(name) is not None}
    assert len(of_the_end) >= 4
    for name in of_the_end:
        assert evaluation.metric(name).value == pytest.approx(found[name])


@pytest.mark.parametrize("size", [64, 7])
def test_metrics_of_tofu_equal_those_of_the_end_on_the_same_examples(
    language_model, other_model, language_task, tofu_sets, scored, size
):
    whole = {name: values_of(scored(other_model, tofu_sets)).sets[name] for name in tofu_sets}
    data = validation_data(tofu_sets, size=size, seed=3, base=whole, retain=whole)
    assert data.names == VALIDATION_NAMES["language"]
    found = validation_metrics(language_model, language_task, data, 4)
    parts = {name: subset(tofu_sets[name], size, 3) for name in tofu_sets}
    own, retain = scored(language_model, parts, role="unlearned"), scored(other_model, parts)
    evaluation = evaluate_scores(own, retain, num_resamples=100, seed=0)
    for name in ("forget_nll", "forget_nll_ks", "forget_quality", "retain_truth_ratio", "retain_probability"):
        assert found[name] == pytest.approx(evaluation.metric(name).value, rel=1e-9), name
    assert found["forget_quality"] < 1


def test_quality_and_utility_equal_slow_twins(language_model, other_model, language_task, tofu_sets, scored):
    whole = values_of(scored(other_model, tofu_sets)).sets
    data = validation_data(tofu_sets, size=64, seed=0, base=whole, retain=whole)
    found = validation_metrics(language_model, language_task, data, 4)

    def ratios(values):
        ends = np.cumsum(values.num_perturbed)
        wrong = [values.perturbed.nll[end - count : end] for end, count in zip(ends, values.num_perturbed, strict=True)]
        return [truth_ratio_by_hand(r, w, "geometric") for r, w in zip(values.paraphrased.nll, wrong, strict=True)]

    def utility(values):
        scores = [max(0.0, 1 - ratio) for ratio in ratios(values)]
        return utility_by_hand([np.mean(values.likelihood.probability), np.mean(scores)])

    own = values_of(scored(language_model, tofu_sets)).sets
    p = ks_p_of_equal_sizes(ratios(own["forget"]), ratios(whole["forget"]))
    assert found["forget_quality"] == pytest.approx(p)
    assert found["retain_utility"] == pytest.approx(utility(own["retain"]))
    relative = utility(own["retain"]) / utility(whole["retain"])
    assert p > 0.05
    assert found["forget_quality_and_utility"] == pytest.approx((1 + min(1, relative)) / 2)


@pytest.mark.parametrize(
    ("p", "utility", "expected"),
    [
        (0.9, 0.4, 0.75),
        (0.06, 0.4, 0.75),
        (0.01, 0.4, 0.1),
        (0.01, 0.8, 0.1),
        (0.5, 0.9, 1.0),
        (0.5, 0.5, 0.8125),  # passes, and is better than the next one, which does not and keeps more
        (0.04, 0.8, 0.4),
        (0.05, 0.8, 0.5),
        (0.051, 0.0, 0.5),
    ],
)
def test_utility_decides_among_those_that_pass_and_p_among_those_that_do_not(monkeypatch, p, utility, expected):
    from stable_forgetting.evaluation import metrics_validation

    monkeypatch.setattr(metrics_validation, "retain_utility", lambda *_: utility)
    monkeypatch.setattr(metrics_validation.ValidationInputs, "end", lambda *_: p)
    inputs = metrics_validation.ValidationInputs(None, {}, base_utility=0.8)
    assert VALIDATION_METRICS["forget_quality_and_utility"].function(inputs) == pytest.approx(expected)


def test_utility_of_answers_without_alternatives_is_their_probability(language_model, language_task, make_language_set):
    sets = {"forget": make_language_set("forget", seed=1), "retain": make_language_set("retain", seed=2)}
    found = validation_metrics(language_model, language_task, validation_data(sets, size=64, seed=0), 4)
    assert found["retain_utility"] == pytest.approx(found["retain_probability"])


def test_without_alternatives_the_other_metrics_stay_as_they_are(language_model, language_task, tofu_sets, scored):
    values = values_of(scored(language_model, tofu_sets)).sets
    whole = validation_data(tofu_sets, size=7, seed=3, base=values, retain=values)
    data = without_alternatives(whole)
    assert set(whole.names) - set(data.names) == {*OF_ALTERNATIVES, "retain_utility"}
    assert not any(example.alternatives for part in data.parts.values() for example in part)
    found, before = (validation_metrics(language_model, language_task, part, 4) for part in (data, whole))
    assert found == pytest.approx({name: before[name] for name in data.names}, rel=1e-5)


def test_without_alternatives_nothing_is_left_out_where_there_are_none(make_language_set):
    sets = {"forget": make_language_set("forget", seed=1), "retain": make_language_set("retain", seed=2)}
    data = validation_data(sets, size=64, seed=0)
    assert without_alternatives(data) is data


def test_the_retain_model_sees_the_examples_that_are_measured(language_model, language_task, tofu_sets, scored):
    """Against itself every test gives 1, also on a part of the sets; its other examples would not."""
    itself = values_of(scored(language_model, tofu_sets)).sets
    data = validation_data(tofu_sets, size=5, seed=1, base=itself, retain=itself)
    found = validation_metrics(language_model, language_task, data, 4)
    assert found["forget_quality"] == found["forget_nll_ks"] == 1
    assert found["forget_quality_and_utility"] == pytest.approx(1)


def test_rows_are_those_of_the_whole(language_model, tofu_sets, scored):
    values = values_of(scored(language_model, tofu_sets)).sets["forget"]
    chosen = [10, 1, 4]
    part = values.rows(chosen)
    assert part.size == 3
    assert part.num_perturbed.tolist() == values.num_perturbed[chosen].tolist() == [1, 2, 1]
    starts = np.cumsum(values.num_perturbed) - values.num_perturbed
    places = [starts[10], starts[1], starts[1] + 1, starts[4]]
    assert part.perturbed.probability.tolist() == values.perturbed.probability[places].tolist()
    assert part.paraphrased.nll.tolist() == values.paraphrased.nll[chosen].tolist()
    whole = values.finished["extraction_strength"](Definitions())
    assert part.finished["extraction_strength"](Definitions()).tolist() == whole[chosen].tolist()


def test_tow_of_the_training_images(image_model, image_task, make_image_set, scored):
    sets = {"forget": make_image_set("forget", seed=1), "retain": make_image_set("retain", count=5, seed=2)}
    torch.manual_seed(4)
    retain_model = type(image_model)()
    whole = values_of(scored(retain_model, sets, image_task)).sets
    data = validation_data(sets, size=6, seed=0, retain=whole)
    found = validation_metrics(image_model, image_task, data, 4)
    right = Definitions()
    own = values_of(scored(image_model, sets, image_task)).sets
    flags = {
        side: {name: values[name].finished["correct"](right)[subset_positions(len(sets[name]), 6, 0)] for name in sets}
        for side, values in (("own", own), ("retain", whole))
    }
    assert found["tow_train"] == pytest.approx(tug_of_war_by_hand(flags["own"], flags["retain"]))
    assert found["tow_train"] < 1


@pytest.mark.parametrize("name", VALIDATION_METRICS)
def test_every_metric_says_what_is_missing(name):
    """Nothing but plain answers, and nobody to compare with."""
    plain = {"forget": frozenset({"nll", "probability"}), "retain": frozenset({"nll", "probability"})}
    if name in OF_ALTERNATIVES:
        assert "paraphrased answer and wrong" in missing(name, plain, plain)
    elif name in ("forget_accuracy", "retain_accuracy", "tow_train"):
        assert "predicted class" in missing(name, plain, plain)
    else:
        assert missing(name, plain, plain) is None
    whole = {part: columns | {"truth_ratio", "truth_ratio_score", "correct"} for part, columns in plain.items()}
    assert missing(name, whole, whole) is None
    expected = "it needs a retain model" if name in (*COMPARED, "tow_train") else None
    assert missing(name, whole, {}) == expected
    if name == "forget_quality":
        assert missing(name, whole, plain).endswith("in the forget set of the retain model")


def test_one_example_without_a_wrong_answer_takes_forget_quality_away(language_model, tofu_sets, scored):
    examples = [replace(tofu_sets["forget"][0], perturbed=()), *tofu_sets["forget"].examples[1:]]
    sets = {**tofu_sets, "forget": ExampleSet("forget", examples)}
    values = values_of(scored(language_model, sets)).sets
    data = validation_data(sets, size=5, seed=0, base=values, retain=values)
    assert set(VALIDATION_NAMES["language"]) - set(data.names) == {"forget_quality", "forget_quality_and_utility"}


def test_a_base_model_without_utility_has_no_relative_one(language_model, tofu_sets, scored):
    values = values_of(scored(language_model, tofu_sets)).sets
    dead = {name: replace(found, paraphrased=found.likelihood) for name, found in values.items()}
    lost = np.full(len(tofu_sets["retain"]), 1e3)
    dead["retain"] = replace(dead["retain"], paraphrased=replace(values["retain"].likelihood, nll_sum=lost))
    data = validation_data(tofu_sets, size=64, seed=0, base=dead, retain=values)
    assert data.base_utility == 0
    assert "forget_quality_and_utility" not in data.names
    assert "forget_quality" in data.names


def test_a_retain_model_of_other_examples_is_refused(language_model, tofu_sets, scored):
    shorter = {name: ExampleSet(name, part.examples[:-1]) for name, part in tofu_sets.items()}
    values = values_of(scored(language_model, shorter)).sets
    with pytest.raises(DataError, match=r"different forget examples \(12 and 11\)"):
        validation_data(tofu_sets, size=4, seed=0, retain=values)


def test_directions_are_those_of_the_end_on_what_is_kept():
    for name, metric in VALIDATION_METRICS.items():
        if name in METRICS and METRICS[name].direction != "retain":
            assert metric.greater_is_better == (METRICS[name].direction == "higher"), name
        if name in METRICS and METRICS[name].direction == "retain":
            assert metric.greater_is_better == (name == "forget_nll"), name


def test_not_finite(image_model, image_task, make_image_set):
    data = validation_data({"forget": make_image_set(), "retain": make_image_set()}, size=64, seed=0)
    with torch.no_grad():
        image_model.linear.weight.fill_(float("nan"))
    with pytest.raises(NotFiniteError, match=r"9 of 9 forget examples is not finite .first: 0"):
        validation_metrics(image_model, image_task, data, 4)
