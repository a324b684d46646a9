"""The trunk of language models: skipped with its kept outputs, a model reads, learns and answers as it did."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import get_peft_model
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from stable_forgetting.adapters import BoundedLoraConfig
from stable_forgetting.data.examples import ExampleSet
from stable_forgetting.evaluation.alternatives import score_answers
from stable_forgetting.evaluation.generation import GreedyDecoder
from stable_forgetting.evaluation.gradient import gradient_norms
from stable_forgetting.models.load import LoadedModel
from stable_forgetting.models.tasks import LanguageTask
from stable_forgetting.models.trunk import find_trunk
from stable_forgetting.runs.kept import with_kept_trunk
from tiny_models import VOCABULARY, FakeTokenizer, language_set

CONFIGS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
}
WINDOWS = {
    "mistral": {"sliding_window": 4},
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
}


@pytest.fixture(params=CONFIGS)
def language_model(request):
    torch.manual_seed(0)
    config = CONFIGS[request.param](**SHAPE, **WINDOWS.get(request.param, {}))
    return AutoModelForCausalLM.from_config(config).eval()


def tasks(model, folder, depth=2) -> tuple[LanguageTask, LanguageTask]:
    plain = LanguageTask(FakeTokenizer())
    trunk = find_trunk(model, depth, {}, folder)
    assert trunk is not None
    return plain, plain.with_trunk(trunk)


def with_answers(examples) -> ExampleSet:
    """Each example with two wrong answers to its prompt."""
    wrong = [(5, 3), (4, 4, 7, 2)]
    return ExampleSet(
        "forget",
        [
            replace(
                example,
                perturbed=tuple(
                    replace(example, input_ids=(*example.input_ids[: example.num_prompt_tokens], *ids)) for ids in wrong
                ),
            )
            for example in examples
        ],
    )


def test_texts_give_the_same_logits(language_model, tmp_path):
    examples = language_set("retain", 6)
    plain, _ = tasks(language_model, tmp_path)
    expected = plain.predict(language_model, plain.collate(examples))
    for _ in range(2):  # computed, and read
        _, kept = tasks(language_model, tmp_path)
        found = kept.predict(language_model, kept.collate(examples))
        torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-5)
        assert torch.equal(found.labels, expected.labels)
    assert torch.equal(plain.predict(language_model, plain.collate(examples)).logits, expected.logits)


@pytest.mark.parametrize("batch_size", [2, 50])
def test_answers_that_share_a_prompt(language_model, tmp_path, batch_size):
    """What skipped blocks keep of a prompt counts its tokens and nothing else."""
    examples = with_answers(language_set("forget", 5))
    plain, kept = tasks(language_model, tmp_path)
    expected = score_answers(language_model, plain, examples, batch_size=1)
    found = score_answers(language_model, kept, examples, batch_size=batch_size)
    np.testing.assert_allclose(found.likelihood.nll_sum, expected.likelihood.nll_sum, rtol=1e-5)
    np.testing.assert_allclose(found.perturbed.nll_sum, expected.perturbed.nll_sum, rtol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_texts_give_the_same_gradients(language_model, tmp_path, checkpointing):
    adapted = get_peft_model(language_model, BoundedLoraConfig(r=2, init_seed=0, layers_to_transform=[2])).train()
    if checkpointing:
        language_model.activation_checkpointing_enable({"use_reentrant": False})
    trained = {name: weight for name, weight in adapted.named_parameters() if weight.requires_grad}
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for weight in trained.values():
            weight.normal_(std=0.01, generator=generator)
    examples = language_set("forget", 5)
    gradients = []
    for task in tasks(adapted, tmp_path):
        adapted.zero_grad()
        task.predict(adapted, task.collate(examples)).nll_sum.sum().backward()
        gradients.append({name: weight.grad.clone() for name, weight in trained.items()})
    for name, expected in gradients[0].items():
        assert expected.any()
        # The trunk's outputs were computed on padded texts, and a sine of frequency 100 makes their rounding larger.
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_answers_are_generated_by_the_whole_model(language_model, tmp_path):
    """What the blocks above a trunk keep of texts is not enough to go on from."""
    examples = with_answers(language_set("retain", 3))
    tokenizer = SimpleNamespace(pad_token_id=0, decode=lambda ids, **_: str(ids))
    found = []
    for task in tasks(language_model, tmp_path):
        task.tokenizer = tokenizer
        task.collate(examples)
        decoder = GreedyDecoder(language_model, task, examples, max_new_tokens=4, batch_size=8)
        score_answers(language_model, task, examples, batch_size=8, decoder=decoder)
        found.append(decoder.answers())
    assert found[0] == found[1]


def test_gradient_norms_count_the_trunk(language_model, tmp_path):
    examples = language_set("forget", 3)
    plain, kept = tasks(language_model, tmp_path)
    expected = gradient_norms(language_model, plain, examples)
    np.testing.assert_allclose(gradient_norms(language_model, kept, examples), expected, rtol=1e-6)


def test_language_models_whose_embeddings_are_changed_afterwards_have_no_trunk(tmp_path):
    shape = {**SHAPE, "head_dim": 8}
    assert find_trunk(AutoModelForCausalLM.from_config(GemmaConfig(**shape)), 1, {}, tmp_path) is None
    dropout = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE, attention_dropout=0.1))
    assert find_trunk(dropout, 1, {}, tmp_path) is None


class ScalingModel(LlamaModel):
    """Code of its own under the name of a known family."""


def test_models_with_code_of_their_own_have_no_trunk(tmp_path):
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE))
    assert find_trunk(model, 1, {}, tmp_path) is not None
    model.model = ScalingModel(model.config)
    assert find_trunk(model, 1, {}, tmp_path) is None


def test_the_windows_are_those_that_are_meant(language_model):
    kinds = set(getattr(language_model.config, "layer_types", None) or ["full_attention"])
    slides = language_model.config.model_type in WINDOWS
    assert ("sliding_attention" in kinds or getattr(language_model.config, "sliding_window", None) == 4) == slides


def test_texts_of_every_length_are_in_one_store(tmp_path):
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE))
    _, kept = tasks(model, tmp_path)
    kept.collate(language_set("retain", 12))
    assert len({len(example.input_ids) for example in language_set("retain", 12)}) > 3
    assert {path.name for path in next(tmp_path.iterdir()).iterdir()} == {
        "keys.txt",
        "values.bin",
        "shape.json",
        "lock",
    }


@pytest.mark.parametrize(
    ("rope", "is_kept"),
    [
        ({"rope_type": "default"}, True),
        (
            {
                "rope_type": "longrope",
                "short_factor": [1.0] * 4,
                "long_factor": [8.0] * 4,
                "original_max_position_embeddings": 12,
            },
            False,
        ),
    ],
)
def test_what_depends_on_the_other_texts_of_a_batch_is_not_kept(tmp_path, monkeypatch, rope, is_kept):
    monkeypatch.setenv("STABLE_FORGETTING_CACHE", str(tmp_path))
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE, rope_parameters=rope | {"rope_theta": 1e4})).eval()
    loaded = with_kept_trunk(LoadedModel(model, LanguageTask(FakeTokenizer()), "tiny"), 2, 100, limit_gib=1.0)
    assert (loaded.task.trunk is not None) == is_kept
