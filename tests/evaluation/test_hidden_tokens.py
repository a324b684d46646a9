"""End tokens in prompts that are hidden, as by code that takes the attention mask from token ids."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from evaluation.conftest import END
from stable_forgetting.config import EvaluationConfig
from stable_forgetting.data.examples import ExampleSet, LanguageExample
from stable_forgetting.evaluation.alternatives import score_answers
from stable_forgetting.evaluation.generation import greedy_answers
from stable_forgetting.evaluation.likelihood import score_examples
from stable_forgetting.evaluation.scores import ScoringOptions, score_model
from stable_forgetting.models.load import LoadedModel
from stable_forgetting.progress import SilentProgress
from stable_forgetting.runs import scoring
from stable_forgetting.runs.scoring import measuring_task, reference_scores, score
from stable_forgetting.runs.sets import Sets
from stable_forgetting.runs.target_values import base_likelihoods


def mask_from_ids(rows, side):
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=END, padding_side=side)
    return ids, (ids != END).long()


def nll_in_public_way(model, answers):
    """Summed NLL of each answer, in one batch whose mask comes from the token ids."""
    ids, mask = mask_from_ids([answer.input_ids for answer in answers], "right")
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
    found = []
    for row, answer in zip(logits, answers, strict=True):
        places = range(answer.num_prompt_tokens, len(answer.input_ids))
        found.append(-sum(float(row[place - 1, answer.input_ids[place]]) for place in places))
    return found


def answers_in_public_way(model, examples, max_new_tokens):
    """Greedy answers of transformers' `generate` to prompts whose mask comes from the token ids."""
    ids, mask = mask_from_ids([e.input_ids[: e.num_prompt_tokens] for e in examples], "left")
    tokens = model.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=END, eos_token_id=END
    )[:, ids.shape[1] :].tolist()
    return [" ".join(map(str, row[: row.index(END)] if END in row else row)) for row in tokens]


@pytest.fixture
def with_ends():
    """Questions whose prompts have end tokens in them, as those of a chat have, with answers to compare."""
    generator = np.random.default_rng(3)

    def tokens(count):
        return tuple(int(token) for token in generator.integers(3, 23, size=count))

    examples = []
    for index in range(7):
        prompt = (*tokens(1 + index % 3), END, *tokens(2), END, *tokens(1 + index % 2))
        rows = [(*prompt, *tokens(1 + place), END) for place in range(3)]
        made = [LanguageExample(f"q{index}", "5 6", row, len(prompt), END) for row in rows]
        examples.append(replace(made[0], paraphrased=made[1], perturbed=(made[2],)))
    return ExampleSet("forget", examples)


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_likelihoods_are_those_of_masks_from_token_ids(language_model, language_task, with_ends, batch_size):
    task = language_task.hiding_pad_tokens()
    hidden = score_answers(language_model, task, with_ends, batch_size=batch_size)
    seen = score_answers(language_model, language_task, with_ends, batch_size=batch_size)
    for name, answers in {
        "likelihood": with_ends.examples,
        "paraphrased": [example.paraphrased for example in with_ends],
        "perturbed": [answer for example in with_ends for answer in example.perturbed],
    }.items():
        expected = nll_in_public_way(language_model, answers)
        np.testing.assert_allclose(getattr(hidden, name).nll_sum, expected, rtol=1e-6, err_msg=name)
        assert np.abs(getattr(seen, name).nll_sum - expected).min() > 1e-3


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_answers_are_those_of_generate_with_masks_from_token_ids(language_model, language_task, with_ends, batch_size):
    def answers(task):
        return greedy_answers(language_model, task, with_ends, max_new_tokens=8, batch_size=batch_size)

    expected = answers_in_public_way(language_model, with_ends.examples, 8)
    assert answers(language_task.hiding_pad_tokens()) == expected
    assert answers(language_task) != expected


def test_training_sees_every_token(language_model, language_task, with_ends):
    assert (language_task.collate(with_ends.examples)["attention_mask"].sum(1)).tolist() == [
        len(example.input_ids) for example in with_ends
    ]


def test_a_run_measures_as_the_settings_say(language_model, language_task, with_ends):
    loaded = LoadedModel(language_model, language_task, "tiny")

    def found(compat):
        settings = EvaluationConfig(batch_size=4, max_new_tokens=8, compat=compat)
        sets = Sets({"forget": with_ends, "retain": with_ends})
        return score(loaded, sets, "base", settings=settings, progress=SilentProgress()).sets["forget"]

    options = ScoringOptions(batch_size=4, generate=True, max_new_tokens=8)
    expected = score_model(
        language_model,
        language_task.hiding_pad_tokens(),
        {"forget": with_ends},
        role="base",
        source="tiny",
        options=options,
    ).sets["forget"]
    theirs, ours = found("open-unlearning"), found(None)
    np.testing.assert_array_equal(theirs.likelihood.nll_sum, expected.likelihood.nll_sum)
    assert theirs.answers == expected.answers == tuple(answers_in_public_way(language_model, with_ends.examples, 8))
    assert np.abs(ours.likelihood.nll_sum - theirs.likelihood.nll_sum).min() > 1e-3


def test_reference_values_of_training_see_every_token(language_model, language_task, with_ends):
    loaded, sets = LoadedModel(language_model, language_task, "tiny"), Sets({"forget": with_ends, "retain": with_ends})
    settings = EvaluationConfig(batch_size=4, generate=False, compat="open-unlearning")
    measured = score(loaded, sets, "base", settings=settings, progress=SilentProgress())
    config = SimpleNamespace(evaluation=settings, objective=None)
    models = SimpleNamespace(sets=sets, config=config, progress=SilentProgress())
    objective = SimpleNamespace(needs={"reference_nll_sum", "beta"}, needs_targets=False)
    found = base_likelihoods(models, objective, loaded, measured, "hash")["forget"]
    plain = score_examples(language_model, language_task, with_ends, batch_size=4)
    np.testing.assert_allclose(found.nll_sum, plain.nll_sum, rtol=1e-12)
    assert np.abs(found.nll_sum - measured.sets["forget"].likelihood.nll_sum).min() > 1e-3


def test_validations_hide_tokens_as_the_end_does(language_task):
    hidden = measuring_task(language_task, EvaluationConfig(compat="open-unlearning"))
    assert hidden.visible(torch.tensor([4, END, 5])).tolist() == [1, 0, 1]
    assert measuring_task(language_task, EvaluationConfig()) is language_task


def test_kept_values_of_one_protocol_are_not_taken_for_those_of_another(
    language_model, language_task, with_ends, tmp_path, monkeypatch
):
    monkeypatch.setenv("STABLE_FORGETTING_CACHE", str(tmp_path))
    monkeypatch.setattr(scoring, "tokenizer_sha256", lambda _: "the same")
    loaded, sets = LoadedModel(language_model, language_task, "tiny"), Sets({"forget": with_ends, "retain": with_ends})

    def kept(compat):
        settings = EvaluationConfig(batch_size=4, generate=False, compat=compat)
        found = reference_scores(loaded, sets, "base", settings=settings, progress=SilentProgress())
        return found.sets["forget"].likelihood.nll_sum

    assert np.abs(kept(None) - kept("open-unlearning")).min() > 1e-3
    assert len(list((tmp_path / "scores").glob("*.json"))) == 2


def test_answers_do_not_go_on_from_tokens_that_another_way_of_counting_places_found(
    language_model, language_task, with_ends
):
    """Right answers that are the most likely ones where hidden tokens have a place, as in likelihoods."""
    examples = []
    for example in with_ends:
        row = list(example.input_ids[: example.num_prompt_tokens])
        for _ in range(4):
            ids = torch.tensor([row])
            with torch.no_grad():
                row.append(
                    int(language_model(input_ids=ids, attention_mask=(ids != END).long()).logits[0, -1].argmax())
                )
        examples.append(LanguageExample(example.prompt, "5 6", (*row, END), example.num_prompt_tokens, END))
    scores = score_model(
        language_model,
        language_task.hiding_pad_tokens(),
        {"forget": ExampleSet("forget", examples)},
        role="base",
        source="tiny",
        options=ScoringOptions(batch_size=4, generate=True, max_new_tokens=8),
    ).sets["forget"]
    expected = answers_in_public_way(language_model, examples, 8)
    assert scores.answers == tuple(expected)
    likely = [" ".join(map(str, example.input_ids[example.num_prompt_tokens : -1])) for example in examples]
    assert any(not answer.startswith(found) for answer, found in zip(expected, likely, strict=True))
