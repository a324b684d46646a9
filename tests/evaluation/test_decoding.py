"""Answers that go on from what the likelihood pass keeps, and rows that join others: equal to each answer alone."""

import weakref
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, DynamicCache, GPT2Config, GPTNeoConfig, LlamaConfig, MistralConfig

from evaluation.conftest import END
from reference.metric_twins import greedy_tokens
from stable_forgetting.data.examples import ExampleSet, LanguageExample
from stable_forgetting.evaluation import generation
from stable_forgetting.evaluation.alternatives import score_answers
from stable_forgetting.evaluation.answer_trees import tree_batches
from stable_forgetting.evaluation.decoding import Rows
from stable_forgetting.evaluation.generation import GreedyDecoder, greedy_answers
from stable_forgetting.evaluation.likelihood import inference
from stable_forgetting.evaluation.prompts import keeps_all, read_prompts, side_by_side

NEW = 7
"""Tokens of an answer at most."""

SHAPE = {
    "vocab_size": 23, "hidden_size": 64, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "initializer_range": 0.25,
}  # fmt: skip


def make_model(implementation="sdpa", config=None):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config or LlamaConfig(**SHAPE), attn_implementation=implementation)
    # transformers' eager attention takes float32 scores, in which a mask of the least float64 is minus infinity.
    return (model if implementation == "eager" else model.double()).eval()


def twin(model, examples):
    prompts = [example.input_ids[: example.num_prompt_tokens] for example in examples]
    return [
        " ".join(map(str, greedy_tokens(model, prompt, -1 if example.end_token is None else example.end_token, NEW)))
        for prompt, example in zip(prompts, examples, strict=True)
    ]


def question_set(model, *, beginning=0, count=9, shortest=1):
    """Questions with wrong answers; the model gives 0 to 4 tokens of a right one, or all of it, and ends some early."""
    generator = np.random.default_rng(3)

    def tokens(least, most):
        return tuple(generator.integers(3, 23, size=int(generator.integers(least, most))).tolist())

    common, examples = tokens(beginning, beginning + 1), []
    for index in range(count):
        prompt = (*common, *tokens(shortest, shortest + 9))
        own = greedy_tokens(model, prompt, end=-1, max_new_tokens=NEW)
        other, never = [token for token in range(3, 23) if token not in own][:2]
        known, end = (*own[: index % 5], other), own[index % NEW] if index % 3 == 0 else never
        if index % 6 == 0:
            known = tuple(own[: own.index(end)])
        wrong = tuple((*prompt, *known[:1], *tokens(1, 6), end) for _ in range(2 + index % 2))
        others = tuple(LanguageExample("q", str(ids), ids, len(prompt), end) for ids in wrong)
        right = (*prompt, *known, end)
        examples.append(replace(LanguageExample("q", str(right), right, len(prompt), end), perturbed=others))
    return ExampleSet("forget", examples)


def shapes_read(model):
    """Rows and columns of all passes from now on, and tokens that they may look at."""
    shapes = []

    def note(_, __, given):
        mask = given.get("attention_mask")
        shapes.append((*given["input_ids"].shape, None if mask is None else mask.shape[-1]))

    model.register_forward_pre_hook(note, with_kwargs=True)
    return shapes


def answers_behind_likelihoods(model, task, example_set, batch_size):
    """Answers of a decoder that goes on from what is read for likelihoods."""
    decoder = GreedyDecoder(model, task, example_set, max_new_tokens=NEW, batch_size=batch_size)
    found = score_answers(model, task, example_set, batch_size=batch_size, decoder=decoder)
    return decoder.answers(found.num_leading_correct.tolist())


@cache
def case(implementation, beginning):
    """A model, questions, and the answer to each alone."""
    model = make_model(implementation)
    example_set = question_set(model, beginning=beginning, count=24)
    return model, example_set, twin(model, example_set)


@pytest.mark.parametrize("batch_size", [3, 4, 8, 50])
@pytest.mark.parametrize("beginning", [0, 20])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_answers_behind_likelihoods(language_task, implementation, beginning, batch_size):
    model, example_set, expected = case(implementation, beginning)
    answers = answers_behind_likelihoods(model, language_task, example_set, batch_size)
    assert answers == expected
    assert len({len(answer.split()) for answer in answers}) > 3


@pytest.mark.parametrize("beginning", [0, 20])
def test_prompts_are_not_read_again_and_not_kept(language_task, beginning):
    """Decoding goes on between the passes of the likelihoods; what is kept never comes to more than three batches."""
    model = make_model()
    example_set = question_set(model, beginning=beginning, count=30, shortest=8)  # enough in common for trees
    plain = score_answers(model, language_task, example_set, batch_size=4)
    shapes = shapes_read(model)
    decoder = GreedyDecoder(model, language_task, example_set, max_new_tokens=NEW, batch_size=4)
    found = score_answers(model, language_task, example_set, batch_size=4, decoder=decoder)
    within = [rows for rows, columns, _ in shapes if columns == 1]
    assert len(within) > NEW
    assert max(within) <= 12
    num_before = len(shapes)
    decoder.answers(found.num_leading_correct.tolist())
    assert {columns for _, columns, _ in shapes[num_before:]} == {1}
    np.testing.assert_allclose(found.likelihood.nll_sum, plain.likelihood.nll_sum, rtol=1e-12)


def test_what_is_kept_of_a_batch_is_gone_before_the_next(language_task):
    model, alive, kept = make_model(), [], []
    numbered = [[(i, e), (i + 99, e.perturbed[0])] for i, e in enumerate(question_set(model, count=6))]

    def keep(numbers, predictions, texts):
        alive.append(sum(reference() is not None for reference in kept))
        kept.append(weakref.ref(texts.cache))

    with inference(model) as device:
        for _ in tree_batches(model, language_task, numbered, 4, device, keep):
            pass
    assert alive == [0, 0, 0]


def test_caches_of_rows_that_joined_are_gone(language_task, monkeypatch):
    model, caches, alive = make_model(), [], []
    join, step = generation.joined, Rows.step

    def noted(parts):
        caches.extend(weakref.ref(part.read.cache) for part in parts)
        return join(parts)

    def counted(rows, model):
        alive.append(sum(reference() is not None for reference in caches))
        return step(rows, model)

    monkeypatch.setattr(generation, "joined", noted)
    monkeypatch.setattr(Rows, "step", counted)
    answers_behind_likelihoods(model, language_task, question_set(model, count=30, shortest=8), 4)
    assert len(caches) > 12
    assert set(alive) == {0}


def test_a_prompt_of_one_token_is_answered_behind_nothing(language_task):
    model = make_model()
    example_set = question_set(model, shortest=0, beginning=1, count=24)
    only = ExampleSet("x", [example for example in example_set if example.num_prompt_tokens == 1])
    assert 1 < len(only) < len(example_set)
    for chosen in (example_set, only):
        assert answers_behind_likelihoods(model, language_task, chosen, 8) == twin(model, chosen)


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(**SHAPE, sliding_window=4),  # nothing is read as a tree
        MistralConfig(**SHAPE, sliding_window=15),  # some texts fit into it, trees and answers do not
        GPT2Config(vocab_size=23, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.5),
    ],
    ids=["short window", "window", "absolute positions"],
)
def test_other_caches_and_positions(language_task, config):
    model = make_model(config=config)
    example_set = question_set(model, count=16)
    answers = answers_behind_likelihoods(model, language_task, example_set, 4)
    assert answers == twin(model, example_set)
    lengths = [e.num_prompt_tokens + len(a.split()) for e, a in zip(example_set, answers, strict=True)]
    longest = max(lengths)
    assert longest > (getattr(config, "sliding_window", None) or 0)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_under_adapters(language_task):
    config = LoraConfig(r=2, target_modules=["up_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(make_model(), config).double().eval()
    example_set = question_set(model, beginning=18)
    assert answers_behind_likelihoods(model, language_task, example_set, 8) == twin(model, example_set)


def test_hidden_tokens_are_read_anew(language_task):
    """Their places count in another way behind prompts than in whole texts."""
    model, task = make_model(), language_task.hiding_pad_tokens()
    example_set = question_set(model)
    with_ends = ExampleSet(
        "x", [replace(e, input_ids=(END, *e.input_ids), num_prompt_tokens=e.num_prompt_tokens + 1) for e in example_set]
    )
    decoder = GreedyDecoder(model, task, with_ends, max_new_tokens=NEW, batch_size=8)
    score_answers(model, task, with_ends, batch_size=8, decoder=decoder)
    expected = greedy_answers(model, task, with_ends, max_new_tokens=NEW, batch_size=1)
    assert decoder.answers() == expected


def test_rows_join_while_prompts_wait(language_task):
    """As long as prompts wait, no step has fewer rows than a batch."""
    model = make_model()
    example_set = question_set(model, count=40, shortest=2)
    expected, shapes = twin(model, example_set), shapes_read(model)
    answers = greedy_answers(model, language_task, example_set, max_new_tokens=NEW, batch_size=4)
    assert answers == expected
    last_read = max(place for place, (_, columns, _) in enumerate(shapes) if columns > 1)
    sizes = [rows for rows, columns, _ in shapes[:last_read] if columns == 1]
    assert min(sizes) > 4
    assert max(sizes) <= 12


@pytest.mark.parametrize("ends", [True, False])
def test_no_column_is_read_in_vain(language_task, ends):
    """Also where all rows leave in one step, as those of a model that never ends its answers do."""
    model = make_model()
    example_set = question_set(model, count=40, shortest=2)
    if not ends:
        example_set = ExampleSet("x", [replace(example, end_token=None) for example in example_set])
    expected, shapes = twin(model, example_set), shapes_read(model)
    assert greedy_answers(model, language_task, example_set, max_new_tokens=NEW, batch_size=4) == expected
    longest = max(example.num_prompt_tokens for example in example_set)
    assert max(tokens for _, _, tokens in shapes) <= longest + NEW - 1


def test_models_with_room_for_no_more_than_a_prompt_and_its_answer(language_task):
    config = GPTNeoConfig(
        vocab_size=23, hidden_size=16, num_layers=2, attention_types=[[["global"], 2]], num_heads=2,
        max_position_embeddings=11 + NEW, initializer_range=0.5,
    )  # fmt: skip
    model = make_model("eager", config)
    example_set = question_set(model, count=24, shortest=3)
    assert max(example.num_prompt_tokens for example in example_set) == 11
    answers = greedy_answers(model, language_task, example_set, max_new_tokens=NEW, batch_size=2)
    assert answers == twin(model, example_set)


def test_progress_goes_on_with_the_answers(language_task):
    model, told = make_model(), []
    example_set = question_set(model, count=24)
    greedy_answers(
        model, language_task, example_set, max_new_tokens=NEW, batch_size=16, progress=lambda *step: told.append(step)
    )
    done = [number for number, _ in told]
    assert done == sorted(set(done))
    assert done[-1] == 24
    assert len(done) >= NEW / 2
    assert {total for _, total in told} == {24}


@pytest.mark.parametrize("lengths", [[(3, 5), (2,)], [(4,), (6, 1), (2, 2)]])
def test_rows_side_by_side_are_as_read_together(lengths):
    model = make_model()
    generator = torch.Generator().manual_seed(0)
    parts, together = [], []
    with inference(model) as device:
        for part in lengths:
            prompts = [torch.randint(3, 23, (length,), generator=generator) for length in part]
            parts.append(read_prompts(model, prompts, device))
            together += prompts
        found, expected = side_by_side(parts), read_prompts(model, together, device)
    assert torch.equal(found.attention_mask, expected.attention_mask)
    visible = expected.attention_mask.bool()[:, None, :, None]
    for ours, theirs in zip(found.cache.layers, expected.cache.layers, strict=True):
        torch.testing.assert_close(ours.keys * visible, theirs.keys * visible)
        torch.testing.assert_close(ours.values * visible, theirs.values * visible)


def test_columns_without_any_token_are_dropped():
    model = make_model()
    with inference(model) as device:
        read = read_prompts(model, [torch.tensor([3, 4, 5, 6]), torch.tensor([3, 4])], device)
    assert read.without_padding() is read
    short = read.rows(torch.tensor([1]))
    trimmed = short.without_padding()
    assert (short.num_tokens, trimmed.num_tokens) == (4, 2)
    assert torch.equal(trimmed.cache.layers[1].keys, read.cache.layers[1].keys[1:, :, 2:])
    assert read.cache.layers[1].keys.shape[2] == 4


def test_caches_that_were_not_filled_keep_nothing():
    assert not keeps_all(DynamicCache())
    assert not keeps_all(DynamicCache(config=LlamaConfig(**SHAPE)))
