"""Teaching before forgetting: what is trained, what stays, and trainings in a row."""

import pytest
import torch
from peft import get_peft_model
from transformers import (
    CLIPConfig,
    CLIPForImageClassification,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    SiglipConfig,
    SiglipForImageClassification,
    SwinConfig,
    SwinForImageClassification,
)

from stable_forgetting.adapters import BoundedLoraConfig
from stable_forgetting.config import FinetuneConfig
from stable_forgetting.errors import ModelError
from stable_forgetting.models.heads import find_head, head_names
from stable_forgetting.models.load import LoadedModel
from stable_forgetting.models.tasks import ImageTask, LanguageTask
from stable_forgetting.runs import teaching
from stable_forgetting.runs.teaching import teach
from stable_forgetting.training import TrainingOutcome
from tiny_models import FakeTokenizer, image_set, language_set, tiny_image_model, tiny_language_model

EXAMPLES = image_set("retain", 8)
QUICK = {"epochs": 4, "learning_rate": 0.02, "batch_size": 4}
ADAPTER = {"bound": "identity", "omega": 1.0, "scale": 1.0, "rank": 2, "blocks": [1]}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STABLE_FORGETTING_CACHE", str(tmp_path / "cache"))


class Pixels:
    """Image processor of `tiny_image_model`: only its image size counts here."""

    def __call__(self, images, return_tensors):
        return {"pixel_values": torch.zeros(len(images), 3, 8, 8)}


def taught(tmp_path, *trainings: dict, disk_cache_gib: float = 1.0, **changes) -> dict[str, torch.Tensor]:
    model = tiny_image_model()
    model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.0
    loaded, _ = teach(
        LoadedModel(model, ImageTask(Pixels()), "tiny"),
        EXAMPLES,
        [FinetuneConfig(**{**QUICK, **training, **changes}) for training in trainings],
        work_dir=tmp_path / "work",
        disk_cache_gib=disk_cache_gib,
    )
    return {name: value.clone() for name, value in loaded.model.state_dict().items()}


def changed(weights: dict[str, torch.Tensor]) -> set[str]:
    before = tiny_image_model().state_dict()
    assert set(before) == set(weights), "adapters are merged: plain weights only"
    return {name for name, value in weights.items() if not torch.equal(value, before[name])}


def test_the_head_alone(tmp_path):
    assert changed(taught(tmp_path, {"trains": "head"})) == {"classifier.weight", "classifier.bias"}


def test_adapters_and_head(tmp_path):
    found = changed(taught(tmp_path, {"trains": "adapter", "adapter": ADAPTER}))
    assert {"classifier.weight", "classifier.bias"} < found
    layers = {name for name in found if "classifier" not in name}
    assert layers
    assert all(".1." in name and name.endswith("weight") for name in layers), layers


def test_the_whole_model(tmp_path):
    assert len(changed(taught(tmp_path, {"trains": "all"}))) > 20


def test_trainings_follow_on_each_other(tmp_path):
    head, adapter = {"trains": "head"}, {"trains": "adapter", "adapter": ADAPTER}
    both = taught(tmp_path, head, adapter)
    alone = taught(tmp_path / "alone", adapter)
    assert changed(both) == changed(alone)
    assert not torch.equal(both["classifier.weight"], alone["classifier.weight"])


@pytest.mark.parametrize("training", [{"trains": "head"}, {"trains": "adapter", "adapter": ADAPTER}, {"trains": "all"}])
def test_a_share_of_the_change_can_be_kept(tmp_path, training):
    whole = taught(tmp_path / "whole", training)
    share = taught(tmp_path / "share", training, change_kept=0.25)
    for name, before in tiny_image_model().state_dict().items():
        torch.testing.assert_close(share[name], 0.75 * before + 0.25 * whole[name])
        assert torch.equal(share[name], before) == torch.equal(whole[name], before), name


def test_tied_weights_are_taken_back_once(tmp_path):
    def tied(change_kept: float) -> torch.Tensor:
        model = tiny_language_model()
        model.lm_head.weight = model.model.embed_tokens.weight
        training = FinetuneConfig(trains="all", change_kept=change_kept, **QUICK)
        loaded = LoadedModel(model, LanguageTask(FakeTokenizer()), "tiny")
        work_dir = tmp_path / str(change_kept)
        taught_one, _ = teach(loaded, language_set("retain", 6), [training], work_dir=work_dir, disk_cache_gib=0)
        return taught_one.model.lm_head.weight.detach().clone()

    before = tiny_language_model().model.embed_tokens.weight
    torch.testing.assert_close(tied(0.25), 0.75 * before + 0.25 * tied(1.0))


@pytest.mark.parametrize("training", [{"trains": "head"}, {"trains": "adapter", "adapter": ADAPTER}])
def test_kept_outputs_change_nothing_but_time(tmp_path, training):
    with_cache = taught(tmp_path / "kept", training)
    assert (tmp_path / "cache" / "activations").is_dir()
    without = taught(tmp_path / "plain", training, disk_cache_gib=0.0)
    for name, expected in without.items():
        torch.testing.assert_close(with_cache[name], expected, rtol=1e-4, atol=1e-5)


def test_a_language_model_gets_adapters_and_keeps_its_head(tmp_path):
    model = tiny_language_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training = FinetuneConfig(trains="adapter", adapter={**ADAPTER, "blocks": None}, **QUICK)
    loaded, _ = teach(
        LoadedModel(model, LanguageTask(FakeTokenizer()), "tiny"),
        language_set("retain", 6),
        [training],
        work_dir=tmp_path / "work",
        disk_cache_gib=0,
    )
    found = {name for name, value in loaded.model.state_dict().items() if not torch.equal(value, before[name])}
    assert found
    assert all("mlp" in name for name in found)


@pytest.mark.parametrize("training", [{"trains": "head"}, {"trains": "adapter", "adapter": ADAPTER}, {"trains": "all"}])
def test_a_finished_training_is_not_trained_on(tmp_path, training):
    """A kill in the second training enters the first one again, whose last update must not be made twice."""
    given = {**training, "epochs": 2.5, "schedule": "constant_with_warmup"}
    first = taught(tmp_path, given)
    again = taught(tmp_path, given)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_heads_are_found_under_adapters_and_in_every_family():
    model = tiny_image_model()
    assert head_names(model) == ["classifier"]
    assert head_names(get_peft_model(model, BoundedLoraConfig())) == ["classifier"]
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**shape, "image_size": 8, "patch_size": 4}
    distilled = DeiTForImageClassificationWithTeacher(DeiTConfig(**vision, num_labels=3))
    assert head_names(distilled) == ["cls_classifier", "distillation_classifier"]
    for clip in (
        CLIPForImageClassification(CLIPConfig(vision_config=vision, num_labels=3)),
        SiglipForImageClassification(SiglipConfig(vision_config=vision, num_labels=3)),
    ):
        assert head_names(clip) == ["classifier"]
        assert find_head(clip) is clip.classifier
    swin = SwinConfig(image_size=8, patch_size=2, embed_dim=8, depths=[1], num_heads=[2], num_labels=3)
    assert head_names(SwinForImageClassification(swin)) == ["classifier"]


def test_a_model_without_a_head_is_refused(tmp_path):
    headless = tiny_image_model().vit
    with pytest.raises(ModelError, match=r"has no head under one of the names.*trains to all"):
        teach(
            LoadedModel(headless, ImageTask(Pixels()), "tiny"),
            EXAMPLES,
            [FinetuneConfig(trains="head")],
            work_dir=tmp_path,
            disk_cache_gib=0,
        )


def test_the_seconds_of_a_teaching_are_those_of_all_its_updates(tmp_path, monkeypatch):
    trainings = [FinetuneConfig(**QUICK, trains="head"), FinetuneConfig(**QUICK, trains="adapter", adapter=ADAPTER)]
    found = iter([3.0, 4.0, 3.0, None])
    monkeypatch.setattr(teaching, "finetune", lambda *_, **__: TrainingOutcome(8, [], seconds=next(found)))

    def seconds() -> float | None:
        loaded = LoadedModel(tiny_image_model(), ImageTask(Pixels()), "tiny")
        return teach(loaded, EXAMPLES, trainings, work_dir=tmp_path, disk_cache_gib=0)[1]

    assert seconds() == 7.0
    assert seconds() is None, "the time of one of them is not known"
