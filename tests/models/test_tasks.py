"""Tasks: the same predictions as the full computation, for every way of batching."""

import pytest
import torch
import transformers
from transformers import BeitConfig, BeitForImageClassification, SwinConfig, SwinForImageClassification

from reference import objective_twins as twins
from stable_forgetting.models.tasks import ImageTask, LanguageTask
from tiny_models import CONFIGS, FakeTokenizer, image_set, language_set, tiny_image_model, tiny_language_model


@pytest.mark.parametrize("family", CONFIGS)
def test_logits_at_label_positions_equal_the_full_computation(family):
    model, task = tiny_language_model(family), LanguageTask(FakeTokenizer())
    batch = task.collate(language_set("forget", 5).examples)
    predictions = task.predict(model, batch)
    full = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    slow = twins.nll_by_example(full.detach(), batch["labels"])
    assert predictions.nll.tolist() == pytest.approx([value for values in slow for value in values], abs=1e-5)
    assert predictions.nll_sum.tolist() == pytest.approx([sum(values) for values in slow], abs=1e-4)
    assert predictions.num_labels.tolist() == [len(values) for values in slow]


def test_a_head_that_is_no_module_gives_the_same(monkeypatch):
    model, task = tiny_language_model(), LanguageTask(FakeTokenizer())
    batch = task.collate(language_set("forget", 3).examples)
    expected = task.predict(model, batch)
    monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    found = task.predict(model, batch)
    torch.testing.assert_close(found.logits, expected.logits)
    assert found.example.tolist() == expected.example.tolist()


def test_the_head_is_left_as_it_was():
    model, task = tiny_language_model(), LanguageTask(FakeTokenizer())
    batch = task.collate(language_set("forget", 3).examples)
    task.predict(model, batch)
    assert not model.get_output_embeddings()._forward_pre_hooks
    with pytest.raises(AttributeError):
        task.predict(model, {**batch, "attention_mask": "no tensor"})
    assert not model.get_output_embeddings()._forward_pre_hooks


@pytest.mark.parametrize("family", CONFIGS)
def test_padding_and_batch_mates_change_nothing(family):
    model, task = tiny_language_model(family), LanguageTask(FakeTokenizer())
    examples = language_set("forget", 6).examples
    together = task.predict(model, task.collate(examples)).nll_sum
    alone = torch.cat([task.predict(model, task.collate([example])).nll_sum for example in examples])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_a_pad_token_inside_an_example_counts():
    task = LanguageTask(FakeTokenizer())
    examples = language_set("forget", 2).examples
    end_is_pad = type(examples[0])("q", "a", (5, 6, 0), 1)
    batch = task.collate([end_is_pad, examples[1]])
    assert batch["attention_mask"][0].sum() == 3
    assert batch["labels"][0, :4].tolist() == [-100, 6, 0, -100]


def test_images_have_one_label_position_each():
    model, task = tiny_image_model(), ImageTask(processor=None)
    examples = image_set("forget", 5)
    predictions = task.predict(model, task.collate(examples.examples))
    expected = torch.nn.functional.cross_entropy(
        predictions.logits, torch.tensor([example.label for example in examples]), reduction="none"
    )
    torch.testing.assert_close(predictions.nll_sum, expected)
    assert predictions.num_labels.tolist() == [1] * 5


@pytest.mark.parametrize("family", ["CLIP", "Siglip"])
def test_models_of_images_and_texts_interpolate_too(family):
    vision = {**dict.fromkeys(("hidden_size", "intermediate_size"), 8), "num_hidden_layers": 1, "image_size": 8}
    config = getattr(transformers, f"{family}Config")
    settings = config(vision_config={**vision, "num_attention_heads": 2, "patch_size": 4}, num_labels=3)
    model = getattr(transformers, f"{family}ForImageClassification")(settings).eval()
    for size in (8, 12):
        processor = transformers.ViTImageProcessorPil(size={"height": size, "width": size})
        task = ImageTask.of(model, processor)
        assert task.interpolate == (size == 12)
        batch = {"pixel_values": torch.zeros(2, 3, size, size), "labels": torch.tensor([0, 1])}
        assert task.predict(model, batch).logits.shape == (2, 3)


def test_images_come_in_the_precision_of_the_model():
    """ViT sees to that itself, others do not."""
    common = {"image_size": 8, "patch_size": 2, "num_labels": 3}
    swin = SwinConfig(**common, embed_dim=8, depths=[1], num_heads=[2], window_size=2)
    beit = BeitConfig(**common, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    batch = {"pixel_values": torch.zeros(2, 3, 8, 8), "labels": torch.tensor([0, 2])}
    for model in (SwinForImageClassification(swin), BeitForImageClassification(beit)):
        predictions = ImageTask(processor=None).predict(model.to(torch.bfloat16).eval(), batch)
        assert predictions.logits.dtype == torch.bfloat16
        assert predictions.nll_sum.isfinite().all()
