"""Answers that go on from what the likelihood pass keeps, and rows that join others: equal to each answer alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig

from evaluation.conftest import END
from reference.metric_twins import greedy_tokens
from stable_forgetting.data.examples import ExampleSet, LanguageExample
from stable_forgetting.evaluation.alternatives import score_answers
from stable_forgetting.evaluation.generation import GreedyDecoder, greedy_answers
from stable_forgetting.evaluation.likelihood import inference
from stable_forgetting.evaluation.prompts import ReadPrompts, read_prompts, side_by_side

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
        " ".join(map(str, greedy_tokens(model, prompt, example.end_token, NEW)))
        for prompt, example in zip(prompts, examples, strict=True)
    ]


def question_set(model, *, beginning=0, count=9, shortest=1):
    """Questions with wrong answers; the model gives nothing, a part, or all of the right ones by itself."""
    generator = np.random.default_rng(3)

    def tokens(least, most):
        return tuple(generator.integers(3, 23, size=int(generator.integers(least, most))).tolist())

    common, examples = tokens(beginning, beginning + 1), []
    for index in range(count):
        prompt = (*common, *tokens(shortest, shortest + 9))
        own = greedy_tokens(model, prompt, end=-1, max_new_tokens=NEW)
        known, end = tuple(own[: index % 5]), own[index % 7]
        wrong = tuple((*prompt, *known[:1], *tokens(1, 6), end) for _ in range(2 + index % 2))
        others = tuple(LanguageExample("q", str(ids), ids, len(prompt), end) for ids in wrong)
        right = (*prompt, *known, end)
        examples.append(replace(LanguageExample("q", str(right), right, len(prompt), end), perturbed=others))
    return ExampleSet("forget", examples)


def answers_behind_likelihoods(model, task, example_set, batch_size, read=None):
    """Answers of a decoder that goes on from what is read, and the columns of all passes that it needs itself."""
    decoder = GreedyDecoder(model, task, example_set, max_new_tokens=NEW, batch_size=batch_size)
    found = score_answers(model, task, example_set, batch_size=batch_size, decoder=decoder)
    num_before = 0 if read is None else len(read)
    return decoder.answers(found.num_leading_correct.tolist()), [] if read is None else read[num_before:]


def columns_read(model):
    sizes = []
    model.register_forward_pre_hook(lambda _, __, given: sizes.append(given["input_ids"].shape[1]), with_kwargs=True)
    return sizes


@pytest.mark.parametrize("batch_size", [3, 8, 50])
@pytest.mark.parametrize("beginning", [0, 20])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_prompts_that_were_read_for_likelihoods_are_not_read_again(
    language_task, implementation, beginning, batch_size
):
    model = make_model(implementation)
    example_set = question_set(model, beginning=beginning)
    read = columns_read(model)
    answers, read_later = answers_behind_likelihoods(model, language_task, example_set, batch_size, read)
    if batch_size > 3:  # a family of four answers needs a batch of four
        assert set(read_later) <= {1}
    assert answers == twin(model, example_set)
    assert len({len(answer.split()) for answer in answers}) > 3
    plain = score_answers(model, language_task, example_set, batch_size=batch_size)
    found = score_answers(
        model, language_task, example_set, batch_size=batch_size,
        decoder=GreedyDecoder(model, language_task, example_set, max_new_tokens=NEW, batch_size=batch_size),
    )  # fmt: skip
    np.testing.assert_allclose(found.likelihood.nll_sum, plain.likelihood.nll_sum, rtol=1e-6)


def test_a_prompt_of_one_token_is_answered_behind_nothing(language_task):
    model = make_model()
    example_set = question_set(model, shortest=0, beginning=1, count=24)
    lengths = [example.num_prompt_tokens for example in example_set]
    assert lengths.count(1) > 1
    only = ExampleSet("x", [example for example in example_set if example.num_prompt_tokens == 1])
    for chosen in (example_set, only):
        answers, _ = answers_behind_likelihoods(model, language_task, chosen, 8)
        assert answers == twin(model, chosen)


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(**SHAPE, sliding_window=4),
        MistralConfig(**SHAPE, sliding_window=24),  # texts fit into it, trees do not
        GPT2Config(vocab_size=23, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.5),
    ],
    ids=["short window", "window", "absolute positions"],
)
def test_models_whose_trees_cannot_be_gone_on_from(language_task, config):
    model = make_model(config=config)
    example_set = question_set(model, count=10)
    answers, _ = answers_behind_likelihoods(model, language_task, example_set, 8)
    assert answers == twin(model, example_set)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_under_adapters(language_task):
    config = LoraConfig(r=2, target_modules=["up_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(make_model(), config).double().eval()
    example_set = question_set(model, beginning=18)
    assert answers_behind_likelihoods(model, language_task, example_set, 8)[0] == twin(model, example_set)


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
    expected, steps = twin(model, example_set), []
    model.register_forward_pre_hook(
        lambda _, __, given: steps.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    answers = greedy_answers(model, language_task, example_set, max_new_tokens=NEW, batch_size=4)
    assert answers == expected
    last_read = max(place for place, (_, columns) in enumerate(steps) if columns > 1)
    sizes = [rows for rows, columns in steps[:last_read] if columns == 1]
    assert min(sizes) > 4
    assert max(sizes) <= 12


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
    short = read.rows(torch.tensor([1]))
    trimmed = short.without_padding()
    assert short.num_tokens == 4
    assert trimmed.num_tokens == 2
    assert torch.equal(trimmed.cache.layers[1].keys, read.cache.layers[1].keys[1:, :, 2:])
    assert read.cache.layers[1].keys.shape[2] == 4
    full = ReadPrompts(read.attention_mask, read.cache)
    assert full.without_padding() is full
