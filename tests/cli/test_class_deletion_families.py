"""`forget bench class-deletion` with a tiny random model of every family that its documentation names."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors.torch import save_file
from transformers import (
    BeitForImageClassification,
    CLIPForImageClassification,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    Dinov2ForImageClassification,
    Dinov2WithRegistersForImageClassification,
    PreTrainedModel,
    SiglipForImageClassification,
    SwinForImageClassification,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from stable_forgetting.records import read_record
from tiny_pictures import make_archive

BLOCKS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SHAPE = {**BLOCKS, "image_size": 8, "patch_size": 4}
WINDOWS = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "image_size": 8, "patch_size": 2, "window_size": 2}
FAMILIES = {
    ViTForImageClassification: SHAPE,
    DeiTForImageClassification: SHAPE,
    DeiTForImageClassificationWithTeacher: SHAPE,
    BeitForImageClassification: SHAPE,
    SwinForImageClassification: WINDOWS,
    Dinov2ForImageClassification: SHAPE,
    Dinov2WithRegistersForImageClassification: SHAPE,
    CLIPForImageClassification: {"vision_config": SHAPE},
    SiglipForImageClassification: {"vision_config": SHAPE},
}


def make_model(folder: Path, family: type[PreTrainedModel]) -> Path:
    family(family.config_class(**FAMILIES[family], num_labels=3)).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder)
    return folder


def make_timm_model(folder: Path) -> Path:
    """As the hub has models of timm: its config, and no preprocessor_config.json."""
    import timm

    name = "vit_tiny_patch16_224"
    shape = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    scaling = {"input_size": [3, 8, 8], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0, "classifier": "head"}
    config = {"architecture": name, "num_classes": 3, "model_args": shape, "pretrained_cfg": scaling}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(timm.create_model(name, num_classes=3, **shape).state_dict(), folder / "model.safetensors")
    return folder


def delete_crab(forget, model: Path, archive: Path):
    changes = (
        "model.finetune=[{trains: head, epochs: 2, learning_rate: 0.05}, {trains: adapter, epochs: 1}]",
        "training.steps=2",
        "evaluation.num_resamples=100",
        "adapter.rank=2",
    )
    ended = forget(
        "bench", "class-deletion", "--model", model, "--data", make_archive(archive), "--forget", "crab",
        "--methods", "gradient_difference:sine:1e-2", "--out", "runs",
        *[part for change in changes for part in ("--set", change)],
    )  # fmt: skip
    assert ended.code == 0, ended.err
    record = read_record(Path("runs/crab-gradient_difference-sine-seed0"))
    assert record.status == "finished"
    assert len(record.adapter.scales) == 4, "two linear layers in the MLP of each of two blocks"
    base, unlearned = (record.evaluation(role).metric("forget_nll").value for role in ("base", "unlearned"))
    assert unlearned > base


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_every_family_goes_from_the_model_to_the_record(forget, tmp_path, family):
    delete_crab(forget, make_model(tmp_path / "model", family), tmp_path / "pictures.npz")


@pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed (extra 'timm')")
def test_so_does_a_model_of_timm(forget, tmp_path):
    delete_crab(forget, make_timm_model(tmp_path / "model"), tmp_path / "pictures.npz")
