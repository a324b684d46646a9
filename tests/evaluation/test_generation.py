import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    FalconH1Config,
    GraniteMoeHybridConfig,
    LlamaConfig,
    RobertaConfig,
)

from data_paths import shared_data
from evaluation.conftest import END
from reference.metric_twins import greedy_tokens
from stable_forgetting.data.examples import ExampleSet, LanguageExample
from stable_forgetting.errors import ModelError
from stable_forgetting.evaluation.alternatives import score_answers
from stable_forgetting.evaluation.generation import greedy_answers
from stable_forgetting.models.tasks import LanguageTask


def twin(model, example_set, max_new_tokens):
    return [
        " ".join(
            map(
                str,
                greedy_tokens(model, e.input_ids[: e.num_prompt_tokens], e.input_ids[-1], max_new_tokens),
            )
        )
        for e in example_set
    ]


def frequent_ends(model, example_set):
    """The same prompts, each with an end token that its own greedy answer reaches after a few tokens."""
    examples = []
    for index, example in enumerate(example_set):
        prompt = example.input_ids[: example.num_prompt_tokens]
        tokens = greedy_tokens(model, prompt, end=-1, max_new_tokens=8)
        end = tokens[index % 8]
        examples.append(LanguageExample(str(index), "a", (*prompt, 1, end), len(prompt), end))
    return ExampleSet("forget", examples)


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_equals_one_by_one(language_model, language_task, make_language_set, batch_size):
    example_set = make_language_set(count=8, seed=5)
    answers = greedy_answers(language_model, language_task, example_set, max_new_tokens=10, batch_size=batch_size)
    assert answers == twin(language_model, example_set, 10)
    assert len(set(answers)) > 1


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_each_row_stops_at_its_own_end(language_model, language_task, make_language_set, batch_size):
    example_set = frequent_ends(language_model, make_language_set(count=8, seed=6))
    answers = greedy_answers(language_model, language_task, example_set, max_new_tokens=8, batch_size=batch_size)
    assert answers == twin(language_model, example_set, 8)
    lengths = [len(answer.split()) for answer in answers]
    assert min(lengths) < 3
    assert max(lengths) > 3


def test_end_token_in_a_prompt_is_not_padding(language_model, language_task):
    rows = [
        LanguageExample("a", "a", (END, 4, END, 5, 7, END), 4, END),
        LanguageExample("b", "b", (4, 5, 7, 8, 9, 7, END), 6, END),
    ]
    example_set = ExampleSet("forget", rows)
    answers = greedy_answers(language_model, language_task, example_set, max_new_tokens=6, batch_size=2)
    assert answers == twin(language_model, example_set, 6)
    without = ExampleSet("forget", [LanguageExample("a", "a", (4, 5, 7, END), 2, END)])
    assert greedy_answers(language_model, language_task, without, max_new_tokens=6, batch_size=1) != answers[:1]


def test_generation_config_is_neither_used_nor_changed(language_model, language_task, make_language_set):
    example_set = make_language_set(count=3)
    plain = greedy_answers(language_model, language_task, example_set, max_new_tokens=6, batch_size=3)
    before = language_model.generation_config
    language_model.generation_config = type(before)(do_sample=True, temperature=0.6, repetition_penalty=5.0)
    settings = json.dumps(language_model.generation_config.to_dict(), default=str)
    try:
        again = greedy_answers(language_model, language_task, example_set, max_new_tokens=6, batch_size=3)
        assert json.dumps(language_model.generation_config.to_dict(), default=str) == settings
    finally:
        language_model.generation_config = before
    assert again == plain


def test_models_with_absolute_positions(language_task, make_language_set):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=23, n_positions=32, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5, eos_token_id=END
    )
    model = GPT2LMHeadModel(config).double().eval()
    example_set = make_language_set(count=6, seed=2)
    answers = greedy_answers(model, language_task, example_set, max_new_tokens=8, batch_size=4)
    assert answers == twin(model, example_set, 8)


KINDS = {
    "places behind the pad token": RobertaConfig(
        vocab_size=23, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.5, is_decoder=True, pad_token_id=END,
    ),
    "places that are counted by the model": BartConfig(
        vocab_size=23, d_model=16, decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=24,
        max_position_embeddings=64, init_std=0.5, dropout=0.0,
    ),
    "recurrent and attention layers": GraniteMoeHybridConfig(
        vocab_size=23, hidden_size=32, intermediate_size=24, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, layer_types=["mamba", "attention"] * 2, num_local_experts=2, mamba_n_heads=8,
        mamba_d_head=8, mamba_n_groups=1, mamba_d_state=4, max_position_embeddings=64, initializer_range=0.5,
    ),
    "both in one layer": FalconH1Config(
        vocab_size=23, hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, mamba_n_heads=8, mamba_d_head=8, mamba_n_groups=1, mamba_d_state=4, mamba_d_ssm=64,
        max_position_embeddings=64, initializer_range=0.5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_places_and_caches(language_task, kind, batch_size):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(KINDS[kind]).eval()
    generator = np.random.default_rng(1)
    prompts = [tuple(generator.integers(3, 23, size=length).tolist()) for length in (2, 5, 5, 9, 3, 5)]
    rows = [LanguageExample(str(prompt), "a", (*prompt, 4, END), len(prompt), END) for prompt in prompts]
    example_set = frequent_ends(model, ExampleSet("forget", rows))
    answers = greedy_answers(model, language_task, example_set, max_new_tokens=8, batch_size=batch_size)
    assert answers == twin(model, example_set, 8)
    assert len({len(answer.split()) for answer in answers}) > 1, "rows leave the batch at different steps"


def test_what_stretches_rotary_positions_is_answered_alone(language_task, make_language_set):
    """The keys of a prompt are kept as they were read, so that an answer depends on what else is in the batch."""
    torch.manual_seed(0)
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [8.0] * 4, "rope_theta": 1e4}
    config = LlamaConfig(
        vocab_size=23, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.5,
        rope_parameters=rope | {"original_max_position_embeddings": 12},
    )  # fmt: skip
    model, example_set = AutoModelForCausalLM.from_config(config).eval(), make_language_set(count=8, seed=5)
    alone, together = (
        greedy_answers(model, language_task, example_set, max_new_tokens=8, batch_size=size) for size in (1, 8)
    )
    assert alone == together
    short = greedy_answers(model, language_task, example_set, max_new_tokens=2, batch_size=8)
    assert [answer.split()[:2] for answer in alone] == [answer.split() for answer in short]


# PEFT 0.21 asks transformers for a property by its old name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_peft_models(language_model, language_task, make_language_set):
    import copy

    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["up_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(copy.deepcopy(language_model), config).double().eval()
    example_set = make_language_set(count=6, seed=2)
    answers = greedy_answers(model, language_task, example_set, max_new_tokens=8, batch_size=4)
    assert answers == twin(model, example_set, 8)
    assert answers != twin(language_model, example_set, 8)


def test_too_long_for_the_model(language_model, language_task, make_language_set):
    with pytest.raises(ModelError, match=r"64 positions. Set evaluation.max_new_tokens to at most 5\d"):
        greedy_answers(language_model, language_task, make_language_set(), max_new_tokens=64, batch_size=2)


def test_real_model_tells_the_same_story_in_a_batch():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared_data("models/stories260K")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    starts = ["Once upon a time", "Lily and Tom went to the park. They", "The dog"]
    rows = []
    for start in starts:
        prompt = tokenizer(start)["input_ids"]
        rows.append(LanguageExample(start, "…", (*prompt, tokenizer.eos_token_id), len(prompt), tokenizer.eos_token_id))
    example_set, task = ExampleSet("forget", rows), LanguageTask(tokenizer)
    together = greedy_answers(model, task, example_set, max_new_tokens=24, batch_size=3)
    alone = greedy_answers(model, task, example_set, max_new_tokens=24, batch_size=1)
    assert together == alone
    assert "there was a little girl" in together[0]


@pytest.mark.parametrize("batch_size", [1, 3, 50])
@pytest.mark.parametrize("max_new_tokens", [1, 4, 8])
def test_what_the_likelihood_pass_found_is_not_generated_again(
    language_model, language_task, make_language_set, monkeypatch, batch_size, max_new_tokens
):
    """Right answers that the model itself gives in part, as a whole without the end, and with it."""
    examples, expected_known = [], []
    for index, example in enumerate(make_language_set(count=9, seed=7)):
        prompt = example.input_ids[: example.num_prompt_tokens]
        own = greedy_tokens(language_model, prompt, end=-1, max_new_tokens=8)
        known, end = own[: index % 5], own[index % 5]
        if index % 3 == 0:  # known with its end token
            answer = (*known, end)
            expected_known.append(answer.index(end) + 1)
            answer = answer[: answer.index(end) + 1]
        else:
            wrong = next(token for token in range(3, 23) if token not in own)
            answer, end = (*known, wrong, END), END
            expected_known.append(len(known))
        examples.append(LanguageExample(str(index), "a", (*prompt, *answer), len(prompt), end))
    example_set = ExampleSet("forget", examples)
    found = score_answers(language_model, language_task, example_set, batch_size=batch_size).num_leading_correct
    assert found.tolist() == expected_known
    read = []
    forward = type(language_model).forward

    def counted(self, input_ids, **given):
        read.append(len(input_ids))
        return forward(self, input_ids, **given)

    monkeypatch.setattr(type(language_model), "forward", counted)
    length = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    answers = greedy_answers(language_model, language_task, example_set, num_known=found.tolist(), **length)
    rows_read = sum(read)
    assert answers == greedy_answers(language_model, language_task, example_set, **length)
    saved = sum(min(known, max_new_tokens) for known in expected_known)
    assert sum(read) - rows_read == rows_read + saved
    assert answers == twin(language_model, example_set, max_new_tokens)


def test_an_answer_ends_at_the_first_end_token_that_is_known(language_model, language_task, make_language_set):
    example = make_language_set(count=1, seed=7)[0]
    prompt = example.input_ids[: example.num_prompt_tokens]
    own = greedy_tokens(language_model, prompt, end=-1, max_new_tokens=6)
    end = own[2]
    within = ExampleSet("forget", [LanguageExample("q", "a", (*prompt, *own[:5], end), len(prompt), end)])
    known = score_answers(language_model, language_task, within, batch_size=1).num_leading_correct.tolist()
    assert known[0] >= 5
    answers = greedy_answers(language_model, language_task, within, max_new_tokens=8, batch_size=1, num_known=known)
    assert answers == greedy_answers(language_model, language_task, within, max_new_tokens=8, batch_size=1)
    assert answers == twin(language_model, within, 8)


def test_nothing_runs_for_answers_that_are_known_by_heart(
    language_model, language_task, make_language_set, monkeypatch
):
    example_set = frequent_ends(language_model, make_language_set(count=4, seed=6))
    known = []
    for example in example_set:
        own = greedy_tokens(language_model, example.input_ids[: example.num_prompt_tokens], example.end_token, 8)
        ids = (*example.input_ids[: example.num_prompt_tokens], *own, example.end_token)
        known.append(replace(example, input_ids=ids))
    by_heart = ExampleSet("forget", known)
    expected = greedy_answers(language_model, language_task, by_heart, max_new_tokens=9, batch_size=2)
    monkeypatch.setattr(type(language_model), "forward", lambda *_, **__: pytest.fail("it runs"))
    steps = []
    answers = greedy_answers(
        language_model, language_task, by_heart, max_new_tokens=9, batch_size=2,
        num_known=[example.num_labels for example in known], progress=lambda *step: steps.append(step),
    )  # fmt: skip
    assert answers == expected
    assert steps == [(4, 4)]
