"""Image processors: sizes that are asked for, images of unusual form, and processors that need no file of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BitImageProcessor, ConvNextImageProcessorPil, ViTImageProcessorPil

from stable_forgetting.errors import DataError, ModelError
from stable_forgetting.models import processors
from stable_forgetting.models.processors import load_processor, pixel_values
from stable_forgetting.models.tasks import ImageTask
from tiny_models import tiny_image_model


def pictures(*sizes: tuple[int, int]) -> list[np.ndarray]:
    values = np.random.default_rng(0)
    return [values.integers(0, 256, (*size, 3)).astype(np.uint8) for size in sizes]


def load(folder: Path, image_size: int | None) -> Any:
    return load_processor("image", "a model", str(folder), {}, image_size)


@pytest.mark.parametrize("kind", [ViTImageProcessorPil, ConvNextImageProcessorPil, BitImageProcessor])
def test_images_are_scaled_to_the_size_that_was_asked_for(kind: Any, tmp_path: Path) -> None:
    kind().save_pretrained(tmp_path)
    values = pixel_values(load(tmp_path, 16), pictures((20, 20), (9, 30)))
    assert values.shape == (2, 3, 16, 16)
    assert values.dtype == torch.float32


def test_images_are_height_width_channels_whatever_their_height() -> None:
    red = np.zeros((3, 16, 3), dtype=np.uint8)
    red[..., 0] = 255
    values = pixel_values(ViTImageProcessorPil(size={"height": 8, "width": 8}), [red])
    assert values[0].mean(dim=(1, 2)).tolist() == pytest.approx([1, -1, -1])


@pytest.mark.parametrize(
    "processor",
    [
        ViTImageProcessorPil(do_resize=False),
        BitImageProcessor(size={"shortest_edge": 16}, do_center_crop=False),
    ],
)
def test_images_of_several_sizes_need_a_processor_that_makes_them_one(processor: Any) -> None:
    with pytest.raises(DataError, match=r"leaves images at different sizes .*Set model.image_size"):
        pixel_values(processor, pictures((20, 20), (20, 40)))
    assert len(pixel_values(processor, pictures((20, 40), (20, 40)))) == 2


@pytest.mark.parametrize(
    "processor",
    [
        ViTImageProcessorPil(do_resize=False),
        BitImageProcessor(size={"shortest_edge": 20}, do_center_crop=False),
    ],
)
def test_a_processor_that_leaves_images_at_several_sizes_needs_a_size(processor: Any, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"of 'a model' leaves images at different sizes.*Give model\.image_size"):
        load(tmp_path, None)
    assert pixel_values(load(tmp_path, 16), pictures((20, 20), (9, 30))).shape == (2, 3, 16, 16)


def test_a_model_of_grey_images_is_refused() -> None:
    model = tiny_image_model()
    model.config.num_channels = 1
    with pytest.raises(ModelError, match="reads images of 1 channels and its image processor gives 3"):
        ImageTask.of(model, ViTImageProcessorPil(size={"height": 8, "width": 8}))


def test_timm_s_models_have_their_scaling_in_their_config(tmp_path: Path, monkeypatch: Any) -> None:
    class TimmWrapperImageProcessor:
        @classmethod
        def from_pretrained(cls, folder: str) -> TimmWrapperImageProcessor:
            assert folder == str(tmp_path)
            return cls()

        def preprocess(self, images: list[Any], return_tensors: str) -> dict[str, torch.Tensor]:
            return {"pixel_values": torch.zeros(len(images), 3, 8, 8)}

        __call__ = preprocess

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "timm_wrapper"}))
    with pytest.raises(ModelError, match=r"has no preprocessor_config.json"):
        load(tmp_path, None)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "timm_wrapper", "pretrained_cfg": {}}))
    monkeypatch.setattr(processors, "AutoImageProcessor", TimmWrapperImageProcessor)
    assert isinstance(load(tmp_path, None), TimmWrapperImageProcessor)
    with pytest.raises(ModelError, match=r"scaled as timm says, so model.image_size \(16\) would count for nothing"):
        load(tmp_path, 16)
