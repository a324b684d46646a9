"""The trunk: skipped with its kept outputs, a model gives what it gives from the examples, and learns the same."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import get_peft_model
from transformers import (
    AutoModelForCausalLM,
    BeitConfig,
    BeitForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    SwinConfig,
    SwinForImageClassification,
)

from stable_forgetting.adapters import BoundedLoraConfig
from stable_forgetting.data.examples import ExampleSet, ImageExample
from stable_forgetting.evaluation.alternatives import score_answers
from stable_forgetting.evaluation.generation import greedy_answers
from stable_forgetting.evaluation.gradient import gradient_norms
from stable_forgetting.models.tasks import ImageTask, LanguageTask
from stable_forgetting.models.trunk import find_trunk
from tiny_models import VOCABULARY, FakeTokenizer, image_set, language_set, tiny_image_model

SHAPE = {
    "image_size": 8,
    "patch_size": 4,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_labels": 4,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def vit():
    model = tiny_image_model()
    model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.0
    return model


def dinov2():
    torch.manual_seed(0)
    return Dinov2ForImageClassification(Dinov2Config(**SHAPE, mlp_ratio=2)).eval()


def deit():
    torch.manual_seed(0)
    return DeiTForImageClassification(DeiTConfig(**SHAPE, intermediate_size=32)).eval()


FAMILIES = {"vit": (vit, 1), "dinov2": (dinov2, 2), "deit": (deit, 2)}


@pytest.fixture(params=FAMILIES)
def model_and_depth(request):
    make, depth = FAMILIES[request.param]
    return make(), depth


def tasks(model, depth, folder) -> tuple[ImageTask, ImageTask]:
    plain = ImageTask(processor=None)
    trunk = find_trunk(model, depth, {}, folder)
    assert trunk is not None
    return plain, plain.with_trunk(trunk)


def test_the_same_logits(model_and_depth, tmp_path):
    model, depth = model_and_depth
    examples = image_set("retain", 6)
    for _ in range(2):  # computed, and read
        plain, kept = tasks(model, depth, tmp_path)
        expected = plain.predict(model, plain.collate(examples)).logits
        torch.testing.assert_close(kept.predict(model, kept.collate(examples)).logits, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(plain.predict(model, plain.collate(examples)).logits, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(model_and_depth, tmp_path, dtype):
    model, depth = model_and_depth
    model = model.to(dtype)
    examples = image_set("retain", 4)
    plain, kept = tasks(model, depth, tmp_path)
    batch = plain.collate(examples)
    batch["pixel_values"] = batch["pixel_values"].to(dtype)
    expected = plain.predict(model, batch).logits
    torch.testing.assert_close(kept.predict(model, kept.collate(examples)).logits, expected, rtol=1e-2, atol=1e-2)


def test_a_trunk_that_is_trained_is_refused(tmp_path):
    model = dinov2()
    _, kept = tasks(model, 2, tmp_path)
    batch = kept.collate(image_set("retain", 2))
    with pytest.raises(AssertionError, match="its weights are trained"):
        kept.predict(model.train(), batch)
    with torch.no_grad():
        kept.predict(model, batch)


def test_the_same_gradients_under_adapters_above(model_and_depth, tmp_path):
    model, depth = model_and_depth
    adapted = get_peft_model(model, BoundedLoraConfig(r=2, init_seed=0, layers_to_transform=[depth])).train()
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if weight.requires_grad and "_B" in name:
                weight.normal_(std=0.01)
    trained = {name: weight for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert trained
    examples = image_set("forget", 5)
    gradients = []
    for task in tasks(model, depth, tmp_path):
        adapted.zero_grad()
        task.predict(adapted, task.collate(examples)).nll_sum.sum().backward()
        gradients.append({name: weight.grad.clone() for name, weight in trained.items()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-4, atol=1e-6)


def test_blocks_of_the_trunk_do_not_run_again(model_and_depth, tmp_path):
    model, depth = model_and_depth
    _, kept = tasks(model, depth, tmp_path)
    examples = image_set("retain", 3)
    kept.collate(examples)
    ran = []
    for part in (kept.trunk.embeddings, *kept.trunk.blocks):
        for inner in part.children():
            inner.register_forward_hook(lambda *_: ran.append(1))
    kept.predict(model, kept.collate(examples))
    assert not ran
    kept.collate(image_set("retain", 3, seed=1))
    assert ran


def test_another_trunk_has_outputs_of_its_own(model_and_depth, tmp_path):
    model, depth = model_and_depth
    examples = image_set("retain", 2)
    _, kept = tasks(model, depth, tmp_path)
    before = kept.collate(examples)["pixel_values"].clone()
    with torch.no_grad():
        next(kept.trunk.blocks[0].parameters()).add_(0.1)
    plain, kept = tasks(model, depth, tmp_path)
    assert not torch.equal(kept.collate(examples)["pixel_values"], before)
    expected = plain.predict(model, plain.collate(examples)).logits
    torch.testing.assert_close(kept.predict(model, kept.collate(examples)).logits, expected, rtol=1e-5, atol=1e-6)


def test_images_of_two_sizes_under_one_trunk(tmp_path):
    model = dinov2()
    plain, kept = tasks(model, 2, tmp_path)
    small = list(image_set("retain", 3))
    large = [ImageExample(example.pixels, example.label, example.pixel_values.repeat(1, 2, 2)) for example in small]
    for examples in (small, large, small):
        expected = plain.predict(model, plain.collate(examples)).logits
        torch.testing.assert_close(kept.predict(model, kept.collate(examples)).logits, expected, rtol=1e-5, atol=1e-6)


def test_a_change_above_leaves_the_trunk_alone(model_and_depth, tmp_path):
    """Other weights above, another head, and what a training leaves in the config."""
    model, depth = model_and_depth
    _, kept = tasks(model, depth, tmp_path)
    kept.collate(image_set("retain", 2))
    with torch.no_grad():
        model.classifier.weight.add_(1.0)
    model.config.use_cache = False
    model.config.num_labels = 7
    tasks(model, depth, tmp_path)[1].collate(image_set("retain", 2))
    assert len(list(tmp_path.iterdir())) == 1


def test_no_trunk_where_there_is_none(tmp_path):
    assert find_trunk(vit(), 0, {}, tmp_path) is None
    random = vit()
    random.config.hidden_dropout_prob = 0.1
    assert find_trunk(random, 1, {}, tmp_path) is None
    others = [
        BeitForImageClassification(BeitConfig(**SHAPE, intermediate_size=32)),
        SwinForImageClassification(SwinConfig(image_size=8, patch_size=2, embed_dim=8, depths=[1], num_heads=[2])),
    ]
    assert [find_trunk(model, 1, {}, tmp_path) for model in others] == [None, None]


@pytest.mark.parametrize("size", [8, 12])
def test_position_embeddings_are_interpolated_where_images_have_another_size(size):
    from transformers import ViTImageProcessorPil

    task = ImageTask.of(tiny_image_model(), ViTImageProcessorPil(size={"height": size, "width": size}))
    assert task.interpolate == (size == 12)
    values = task.processor(images=[image_set("retain", 1)[0].pixels], return_tensors="pt")["pixel_values"]
    batch = {"pixel_values": torch.as_tensor(values), "labels": torch.tensor([0])}
    assert task.predict(tiny_image_model(), batch).logits.shape == (1, 4)


LANGUAGE_CONFIGS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
LANGUAGE_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
}
WINDOWS = {"mistral": {"sliding_window": 4}, "qwen2": {"use_sliding_window": True, "sliding_window": 4}}


@pytest.fixture(params=LANGUAGE_CONFIGS)
def language_model(request):
    torch.manual_seed(0)
    config = LANGUAGE_CONFIGS[request.param](**LANGUAGE_SHAPE, **WINDOWS.get(request.param, {}))
    return AutoModelForCausalLM.from_config(config).eval()


def language_tasks(model, folder, depth=2) -> tuple[LanguageTask, LanguageTask]:
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
    plain, _ = language_tasks(language_model, tmp_path)
    expected = plain.predict(language_model, plain.collate(examples))
    for _ in range(2):  # computed, and read
        _, kept = language_tasks(language_model, tmp_path)
        found = kept.predict(language_model, kept.collate(examples))
        torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-5)
        assert torch.equal(found.labels, expected.labels)
    assert torch.equal(plain.predict(language_model, plain.collate(examples)).logits, expected.logits)


@pytest.mark.parametrize("batch_size", [2, 50])
def test_answers_that_share_a_prompt(language_model, tmp_path, batch_size):
    """What skipped blocks keep of a prompt counts its tokens and nothing else."""
    examples = with_answers(language_set("forget", 5))
    plain, kept = language_tasks(language_model, tmp_path)
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
        for weight in trained.values():
            weight.normal_(std=0.01)
    examples = language_set("forget", 5)
    gradients = []
    for task in language_tasks(adapted, tmp_path):
        adapted.zero_grad()
        task.predict(adapted, task.collate(examples)).nll_sum.sum().backward()
        gradients.append({name: weight.grad.clone() for name, weight in trained.items()})
    for name, expected in gradients[0].items():
        assert expected.any()
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-4, atol=1e-6)


def test_answers_are_generated_by_the_whole_model(language_model, tmp_path):
    examples = language_set("retain", 3)
    tokenizer = SimpleNamespace(pad_token_id=0, decode=lambda ids, **_: str(ids))
    found = []
    for task in language_tasks(language_model, tmp_path):
        task.tokenizer = tokenizer
        task.collate(examples)
        found.append(greedy_answers(language_model, task, examples, max_new_tokens=4, batch_size=2))
    assert found[0] == found[1]


def test_gradient_norms_count_the_trunk(language_model, tmp_path):
    examples = language_set("forget", 3)
    plain, kept = language_tasks(language_model, tmp_path)
    expected = gradient_norms(language_model, plain, examples)
    np.testing.assert_allclose(gradient_norms(language_model, kept, examples), expected, rtol=1e-6)


def test_language_models_whose_embeddings_are_changed_afterwards_have_no_trunk(tmp_path):
    shape = {**LANGUAGE_SHAPE, "head_dim": 8}
    assert find_trunk(AutoModelForCausalLM.from_config(GemmaConfig(**shape)), 1, {}, tmp_path) is None
    dropout = AutoModelForCausalLM.from_config(LlamaConfig(**LANGUAGE_SHAPE, attention_dropout=0.1))
    assert find_trunk(dropout, 1, {}, tmp_path) is None
