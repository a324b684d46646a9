import copy
import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from stable_forgetting.data.examples import ExampleSet
from stable_forgetting.errors import DataError
from stable_forgetting.evaluation.gradient import gradient_norms
from stable_forgetting.evaluation.likelihood import score_examples
from stable_forgetting.evaluation.scores import ModelScores, ScoringOptions, score_model

OPTIONS = ScoringOptions(batch_size=3, generate=True, max_new_tokens=4)


@pytest.fixture
def scored(language_model, language_task, make_language_set):
    sets = {name: make_language_set(name, seed=seed) for seed, name in enumerate(("forget", "retain", "test"))}
    return score_model(language_model, language_task, sets, role="base", source="made here", options=OPTIONS), sets


def test_answers_stand_beside_their_references(scored):
    scores, sets = scored
    assert scores.sets["forget"].references == tuple(example.answer for example in sets["forget"])
    assert len(scores.sets["forget"].answers) == len(scores.sets["forget"]) == 7
    assert scores.sets["test"].answers is None


def test_no_answers_unless_asked(language_model, language_task, make_language_set):
    options = ScoringOptions(batch_size=3, generate=False, max_new_tokens=4)
    sets = {"forget": make_language_set()}
    scores = score_model(language_model, language_task, sets, role="base", source="made here", options=options)
    assert scores.sets["forget"].answers is None


def test_images_have_no_answers(image_model, image_task, make_image_set):
    sets = {"forget": make_image_set()}
    scores = score_model(image_model, image_task, sets, role="base", source="made here", options=OPTIONS)
    assert scores.sets["forget"].answers is None


def test_progress_names_what_is_done(language_model, language_task, make_language_set):
    seen = []
    score_model(
        language_model,
        language_task,
        {"forget": make_language_set(count=3)},
        role="base",
        source="made here",
        options=OPTIONS,
        progress=lambda *state: seen.append(state),
    )
    assert seen == [("base model: likelihood of forget", 3, 3), ("base model: answers of forget", 3, 3)]


def with_alternatives(example_set):
    """Each example with another one as paraphrase and two as wrong answers, all to its own prompt."""

    def to_the_prompt_of(example, other):
        ids = (*example.input_ids[: example.num_prompt_tokens], *other.input_ids[other.num_prompt_tokens :])
        return replace(other, input_ids=ids, num_prompt_tokens=example.num_prompt_tokens)

    others = [example_set[index - 1] for index in range(len(example_set))]
    return ExampleSet(
        example_set.name,
        [
            replace(
                example, paraphrased=to_the_prompt_of(example, other), perturbed=(to_the_prompt_of(example, other),) * 2
            )
            for example, other in zip(example_set, others, strict=True)
        ],
    )


@pytest.fixture
def tofu_scores(language_model, language_task, make_language_set):
    names = ("forget", "retain", "holdout", "real_authors")
    sets = {name: with_alternatives(make_language_set(name, seed=seed)) for seed, name in enumerate(names)}
    options = replace(OPTIONS, gradient_norm=True)
    return score_model(language_model, language_task, sets, role="base", source="here", options=options), sets


def test_what_is_measured_of_which_set(tofu_scores, language_model, language_task):
    scores, sets = tofu_scores
    for name, found in scores.sets.items():
        is_attacked = name in ("forget", "holdout")
        assert (found.likelihood.tokens is not None) is is_attacked
        assert (found.compressed_bytes is not None) is is_attacked
        assert (found.gradient_norm is not None) is is_attacked
        assert (found.answers is not None) is (name != "holdout")  # no metric reads answers of the holdout set
        assert found.num_perturbed.tolist() == [2] * len(sets[name])
        assert len(found.perturbed) == 2 * len(found.paraphrased) == 2 * len(found)
    forget = scores.sets["forget"]
    assert forget.compressed_bytes.tolist() == [len(zlib.compress(e.answer.encode("utf-8"))) for e in sets["forget"]]
    paraphrased = ExampleSet("x", [example.paraphrased for example in sets["forget"]])
    expected = score_examples(language_model, language_task, paraphrased, batch_size=1).nll_sum
    np.testing.assert_allclose(forget.paraphrased.nll_sum, expected, rtol=1e-9)
    np.testing.assert_allclose(forget.perturbed.nll_sum, expected.repeat(2), rtol=1e-9)


def test_gradient_norm_equals_the_slow_twin_and_leaves_no_trace(language_model, language_task, make_language_set):
    model = copy.deepcopy(language_model)
    model.model.embed_tokens.requires_grad_(False)
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    example_set = make_language_set(count=3)
    found = gradient_norms(model, language_task, example_set)
    assert [parameter.requires_grad for parameter in model.parameters()] == trainable
    assert all(parameter.grad is None for parameter in model.parameters())
    model.requires_grad_(True)
    for index, example in enumerate(example_set):
        labels = torch.tensor(
            [[-100] * example.num_prompt_tokens + list(example.input_ids[example.num_prompt_tokens :])]
        )
        model.zero_grad()
        model(input_ids=torch.tensor([example.input_ids]), labels=labels).loss.backward()
        squares = [float(parameter.grad.square().sum()) for parameter in model.parameters()]
        assert found[index] == pytest.approx(sum(squares) ** 0.5, rel=1e-5)


def test_json_of_everything_is_an_exact_round_trip(tofu_scores):
    text = json.dumps(tofu_scores[0].to_json())
    again = ModelScores.from_json(json.loads(text))
    assert json.dumps(again.to_json()) == text
    for name, values in tofu_scores[0].sets.items():
        if values.gradient_norm is not None:
            assert again.sets[name].gradient_norm.tobytes() == values.gradient_norm.tobytes()
        assert again.sets[name].perturbed.nll_sum.tobytes() == values.perturbed.nll_sum.tobytes()
        assert again.sets[name].num_perturbed.dtype == values.num_perturbed.dtype


def test_wrong_answers_that_do_not_fit_their_numbers_are_refused(tofu_scores):
    data = tofu_scores[0].to_json()
    data["sets"]["forget"]["num_perturbed"][0] = 3
    with pytest.raises(DataError, match="lengths"):
        ModelScores.from_json(data)


def test_unknown_set(image_model, image_task, make_image_set):
    with pytest.raises(DataError, match="Did you mean 'forget_test'"):
        score_model(
            image_model, image_task, {"forget_tset": make_image_set()}, role="base", source="x", options=OPTIONS
        )


def test_json_is_an_exact_round_trip(scored):
    scores, _ = scored
    text = json.dumps(scores.to_json())
    again = ModelScores.from_json(json.loads(text))
    assert json.dumps(again.to_json()) == text
    for name, values in scores.sets.items():
        assert again.sets[name].likelihood.nll_sum.tobytes() == values.likelihood.nll_sum.tobytes()
        assert again.sets[name].answers == values.answers


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data.update(format=99), "format 99"),
        (lambda data: data.pop("sets"), "lack"),
        (lambda data: data.update(role="other"), "role 'other'"),
        (lambda data: data["sets"]["forget"].pop("sha256"), "forget set hold"),
        (lambda data: data["sets"]["forget"]["answers"].pop(), "lengths"),
        (lambda data: data.update(task=[]), r"task \[\]"),
        (lambda data: data.update(sets=[]), "no sets by name"),
        (lambda data: data.update(source=None), "no source in words"),
        (lambda data: data["sets"].update(forget=None), "forget set hold None"),
        (lambda data: data["sets"]["forget"].update(sha256=3), "forget set have no hash"),
        (lambda data: data["sets"]["forget"].update(likelihood=None), "no likelihood"),
        (lambda data: data["sets"]["forget"].update(likelihood=[]), r"has the columns \[\] and not"),
        (lambda data: data["sets"]["forget"].update(answers=[1] * 7), "'answers' .* no list of texts"),
        (lambda data: data["sets"]["forget"].update(references=3), "'references' .* no list of texts"),
        (lambda data: data["sets"]["forget"].update(gradient_norm=["x"] * 7), "'gradient_norm' .* no list of numbers"),
        (lambda data: data["sets"]["forget"].update(compressed_bytes=[0.5] * 7), "no list of whole numbers"),
        (lambda data: data["sets"]["forget"]["likelihood"].update(nll_sum=None), "'nll_sum' .* no list of numbers"),
        (lambda data: data["sets"]["forget"]["likelihood"]["nll_sum"].__setitem__(3, "many"), "'nll_sum'"),
        (lambda data: data["sets"]["forget"]["likelihood"]["nll_sum"].__setitem__(3, [1.0]), "'nll_sum'"),
        (lambda data: data["sets"]["forget"]["likelihood"].update(num_labels={}), "'num_labels' .* whole numbers"),
        (lambda data: data["sets"]["forget"]["likelihood"].update(class_log_probabilities=[1.0] * 7), "no list of num"),
        (lambda data: data["sets"]["forget"]["likelihood"].update(tokens=3), "has the columns 3 and not"),
        (lambda data: data["sets"]["forget"]["likelihood"]["tokens"].update(mean=3), "'mean' .* no list of numbers"),
    ],
)
def test_damaged_values_are_refused(scored, damage, message):
    data = scored[0].to_json()
    damage(data)
    with pytest.raises(DataError, match=message):
        ModelScores.from_json(data)
