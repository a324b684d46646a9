import json

import numpy as np
import pytest
import torch

from reference.metric_twins import entropy_by_hand, label_distributions, label_log_probabilities, score_columns
from stable_forgetting.data.examples import ExampleSet, LanguageExample
from stable_forgetting.errors import DataError
from stable_forgetting.evaluation.likelihood import LikelihoodScores, TokenScores, inference, score_examples
from stable_forgetting.models.predictions import Predictions


class ScriptedTask:
    """Every label is right or wrong as the example's metadata say."""

    name = "language"

    def collate(self, examples):
        self.flags = [example.metadata["flags"] for example in examples]
        return {}

    def predict(self, model, batch):
        flat = [flag for flags in self.flags for flag in flags]
        logits = torch.tensor([[0.0, 3.0] if flag else [3.0, 0.0] for flag in flat])
        example = torch.tensor([index for index, flags in enumerate(self.flags) for _ in flags])
        return Predictions(logits, torch.ones(len(flat), dtype=torch.long), example, len(self.flags))


def scripted_set(*flags):
    examples = [
        LanguageExample("p", str(index), (0, *[1] * len(row)), 1, metadata={"flags": row})
        for index, row in enumerate(flags)
    ]
    return ExampleSet("forget", examples)


def test_equals_slow_twin(language_model, language_task, make_language_set):
    example_set = make_language_set(count=12)
    scores = score_examples(language_model, language_task, example_set, batch_size=5)
    for index, example in enumerate(example_set):
        twin = score_columns(label_log_probabilities(language_model, example.input_ids, example.num_prompt_tokens))
        for name, value in twin.items():
            assert getattr(scores, name)[index] == pytest.approx(value, abs=1e-9), (name, index)


def test_twin_sees_right_and_wrong_labels(language_model, language_task):
    """A greedy continuation is extractable from the start, and one changed token moves k behind it."""
    sequence = [3, 5]
    with torch.no_grad():
        for _ in range(6):
            sequence.append(int(language_model(torch.tensor([sequence])).logits[0, -1].argmax()))
        # The changed token must itself be wrong; what follows it is continued greedily again.
        changed = [*sequence[:4], (sequence[4] + 1) % 23]
        for _ in range(3):
            changed.append(int(language_model(torch.tensor([changed])).logits[0, -1].argmax()))
    rows = [LanguageExample("p", str(row), tuple(row), 2) for row in (sequence, changed)]
    scores = score_examples(language_model, language_task, ExampleSet("forget", rows), batch_size=2)
    assert scores.num_correct.tolist() == [6, 5]
    assert scores.first_extractable.tolist() == [0, 3]


@pytest.mark.parametrize(
    ("flags", "k", "k_without_last"),
    [
        ([True, True, True], 0, 0),
        ([False, True, True], 1, 1),
        ([True, False, True], 2, 2),
        ([True, True, False], 3, 0),
        ([False, False, False], 3, 2),
        ([True], 0, 0),
        ([False], 1, 0),
    ],
)
def test_first_extractable(language_model, flags, k, k_without_last):
    scores = score_examples(language_model, ScriptedTask(), scripted_set([True, False], flags), batch_size=2)
    assert scores.first_extractable[1] == k
    assert scores.first_extractable_without_last[1] == k_without_last
    assert scores.num_correct[1] == sum(flags)
    assert scores.num_correct_without_last[1] == sum(flags[:-1])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_batch_size_changes_nothing(language_model, language_task, make_language_set, batch_size):
    example_set = make_language_set(count=9, seed=3)
    one = score_examples(language_model, language_task, example_set, batch_size=4)
    other = score_examples(language_model, language_task, example_set, batch_size=batch_size)
    np.testing.assert_allclose(other.nll_sum, one.nll_sum, rtol=1e-10)
    assert other.first_extractable.tolist() == one.first_extractable.tolist()


def test_results_are_in_the_order_of_the_set_and_longest_come_first(language_model, make_language_set):
    lengths = []

    class Watched(ScriptedTask):
        def collate(self, examples):
            lengths.append([example.num_labels for example in examples])
            return super().collate(examples)

    example_set = scripted_set([True], [True] * 3, [True] * 2)
    scores = score_examples(language_model, Watched(), example_set, batch_size=1)
    assert lengths == [[3], [2], [1]]
    assert scores.num_labels.tolist() == [1, 3, 2]


def test_images(image_model, image_task, make_image_set):
    example_set = make_image_set()
    scores = score_examples(image_model, image_task, example_set, batch_size=4)
    for index, example in enumerate(example_set):
        row = image_model(example.pixel_values[None]).logits[0].softmax(0).tolist()
        assert scores.predicted[index] == row.index(max(row))
        assert scores.label[index] == example.label
        assert scores.probability[index] == pytest.approx(row[example.label], rel=1e-5)
        assert scores.entropy[index] == pytest.approx(entropy_by_hand(row), rel=1e-5)


def test_leaves_the_mode_of_every_module(image_model):
    image_model.train()
    image_model.linear.eval()
    with inference(image_model):
        assert not image_model.training
        assert torch.is_inference_mode_enabled()
    assert image_model.training
    assert not image_model.linear.training
    image_model.eval()


def test_tells_progress(language_model, language_task, make_language_set):
    seen = []
    score_examples(
        language_model,
        language_task,
        make_language_set(count=5),
        batch_size=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_json_keeps_every_bit_of_each_label(language_model, language_task, make_language_set):
    scores = score_examples(language_model, language_task, make_language_set(), batch_size=4, with_tokens=True)
    awkward = np.random.default_rng(0).integers(0, 2**32, 5000, dtype=np.uint32).view(np.float32)
    for tokens in (scores.tokens, TokenScores(awkward, awkward, awkward)):
        again = TokenScores.from_json(json.loads(json.dumps(tokens.to_json())))
        for name in ("log_probability", "mean", "variance"):
            before, after = getattr(tokens, name), getattr(again, name)
            assert after.dtype == before.dtype == np.float32
            finite = ~np.isnan(before)
            assert before[finite].tobytes() == after[finite].tobytes()
            assert np.isnan(after).tolist() == np.isnan(before).tolist()
    again = LikelihoodScores.from_json(json.loads(json.dumps(scores.to_json())))
    assert again.tokens.mean.tobytes() == scores.tokens.mean.tobytes()


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_values_of_each_label_equal_the_slow_twin(language_model, language_task, make_language_set, batch_size):
    example_set = make_language_set(count=9, seed=4)
    scores = score_examples(language_model, language_task, example_set, batch_size=batch_size, with_tokens=True)
    assert len(scores.tokens.mean) == scores.num_labels.sum()
    for index, example in enumerate(example_set):
        place = slice(scores.label_starts[index], scores.label_starts[index] + scores.num_labels[index])
        twin = label_distributions(language_model, example.input_ids, example.num_prompt_tokens)
        for name, values in twin.items():
            np.testing.assert_allclose(getattr(scores.tokens, name)[place], values, rtol=1e-5, atol=1e-6)


def test_excluded_tokens_leave_the_distribution_finite(language_model):
    class Excluding(ScriptedTask):
        def predict(self, model, batch):
            found = super().predict(model, batch)
            excluded = torch.full((len(found.logits), 1), -torch.inf)
            return Predictions(torch.cat([found.logits, excluded], 1), found.labels, found.example, found.num_examples)

    flags = scripted_set([True, False], [True])
    plain = score_examples(language_model, ScriptedTask(), flags, batch_size=2, with_tokens=True).tokens
    excluding = score_examples(language_model, Excluding(), flags, batch_size=2, with_tokens=True).tokens
    np.testing.assert_allclose(excluding.mean, plain.mean, rtol=1e-6)
    np.testing.assert_allclose(excluding.variance, plain.variance, rtol=1e-6)


def test_json_keeps_every_bit(image_model, image_task, make_image_set):
    scores = score_examples(image_model, image_task, make_image_set(), batch_size=4)
    again = LikelihoodScores.from_json(json.loads(json.dumps(scores.to_json())))
    for name in scores.to_json():
        before, after = getattr(scores, name), getattr(again, name)
        if name in ("tokens", "class_log_probabilities"):
            assert before is after is None
            continue
        assert before.dtype == after.dtype
        assert before.tobytes() == after.tobytes()


def test_damaged_labels_are_refused(language_model, language_task, make_language_set):
    scores = score_examples(language_model, language_task, make_language_set(), batch_size=4, with_tokens=True)
    data = scores.to_json()
    with pytest.raises(DataError, match="labels differ in length"):
        LikelihoodScores.from_json({**data, "tokens": {**data["tokens"], "mean": [0.5]}})
    short = {name: values[:-1] for name, values in data["tokens"].items()}
    with pytest.raises(DataError, match=r"values of \d+ labels, but \d+ labels"):
        LikelihoodScores.from_json({**data, "tokens": short})


def test_damaged_columns_are_refused(image_model, image_task, make_image_set):
    columns = score_examples(image_model, image_task, make_image_set(), batch_size=4).to_json()
    with pytest.raises(DataError, match="differ in length"):
        LikelihoodScores.from_json({**columns, "num_labels": [1]})
    del columns["nll_sum"]
    with pytest.raises(DataError, match="has the columns"):
        LikelihoodScores.from_json(columns)
