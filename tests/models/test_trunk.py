"""The trunk: skipped with its kept outputs, a model gives what it gives from the images, and learns the same."""

import pytest
import torch
from peft import get_peft_model
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    SwinConfig,
    SwinForImageClassification,
)

from stable_forgetting.adapters import BoundedLoraConfig
from stable_forgetting.data.examples import ImageExample
from stable_forgetting.models.tasks import ImageTask
from stable_forgetting.models.trunk import find_trunk
from tiny_models import image_set, tiny_image_model

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
