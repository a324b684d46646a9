import json

import pytest

from stable_forgetting.errors import DataError
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
    ],
)
def test_damaged_values_are_refused(scored, damage, message):
    data = scored[0].to_json()
    damage(data)
    with pytest.raises(DataError, match=message):
        ModelScores.from_json(data)
