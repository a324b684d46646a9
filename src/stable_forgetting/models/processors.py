"""Tokenizers and image processors: what stands before a model."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, ViTImageProcessorPil
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from stable_forgetting.errors import ConfigError, DataError, ModelError

_TIMM_PROCESSOR = "TimmWrapperImageProcessor"


def load_processor(
    kind: Literal["language", "image"], name: str, folder: str, options: Mapping[str, Any], image_size: int | None
) -> Any:
    """The tokenizer, or the image processor with the size that was asked for.

    Args:
        kind: What the model reads.
        name: The model's name, for messages.
        folder: Where it is, or its hub name.
        options: Revision and the like.
        image_size: Pixels of a side that images are scaled to; None: as the processor's file says.

    Raises:
        ModelError: The folder has no image processor, or one that leaves images at different sizes, and no size was
            given; or timm says how images are scaled and a size was given.
    """
    if kind == "language":
        return AutoTokenizer.from_pretrained(folder, **options)
    processor = _image_processor(name, folder, options, image_size)
    sizes = {pixel_values(processor, [np.zeros((*size, 3), dtype=np.uint8)]).shape[1:] for size in ((64, 64), (48, 80))}
    if len(sizes) > 1:
        raise ModelError(
            f"The image processor of '{name}' leaves images at different sizes, which no batch can hold. Give "
            "model.image_size: images are then scaled to that many pixels a side."
        )
    return processor


def _image_processor(name: str, folder: str, options: Mapping[str, Any], image_size: int | None) -> Any:
    has_own = not Path(folder).is_dir() or (Path(folder) / "preprocessor_config.json").is_file()
    if not has_own and not _is_of_timm(Path(folder)):
        return _usual_processor(name, image_size)
    processor = AutoImageProcessor.from_pretrained(folder, **options)
    if image_size is None:
        return processor
    if type(processor).__name__ == _TIMM_PROCESSOR:
        raise ModelError(
            f"The images of the timm model '{name}' are scaled as timm says, so model.image_size ({image_size}) would "
            "count for nothing. Leave it out, or give the same model in transformers' own form."
        )
    square = {"height": image_size, "width": image_size}
    crops = getattr(processor, "do_center_crop", False)
    crops_itself = hasattr(processor, "crop_pct")  # ConvNeXt, to the shortest edge
    by_edge = (crops or crops_itself) and "shortest_edge" in (getattr(processor, "size", None) or {})
    sizes: dict[str, Any] = {"size": {"shortest_edge": image_size} if by_edge else square, "do_resize": True}
    if crops:
        sizes["crop_size"] = square
    return AutoImageProcessor.from_pretrained(folder, **options, **sizes)


def pixel_values(processor: Any, images: Sequence[Any]) -> Tensor:
    """What a model is given of some images.

    Args:
        processor: Its image processor.
        images: uint8, (H, W, 3) each.

    Returns:
        (E, C, H, W), float32.

    Raises:
        DataError: The processor leaves them at different sizes, so that no batch can hold them.
    """
    options: dict[str, Any] = {"return_tensors": "pt"}
    accepted = inspect.signature(getattr(processor, "preprocess", processor)).parameters.values()
    if any(part.name == "input_data_format" or part.kind == part.VAR_KEYWORD for part in accepted):
        options["input_data_format"] = "channels_last"  # guessed otherwise, and wrongly for images three pixels high
    try:
        values = processor(images=list(images), **options)["pixel_values"]
    except ValueError as error:
        shapes = sorted({tuple(processor(images=[image], **options)["pixel_values"][0].shape) for image in images})
        if len(shapes) < 2:
            raise
        raise DataError(
            f"The model's image processor leaves images at different sizes (channels, height and width {shapes[0]} and "
            f"{shapes[-1]}), which no batch can hold. Set model.image_size, or give images of one size."
        ) from error
    return torch.as_tensor(values, dtype=torch.float32)


def _is_of_timm(folder: Path) -> bool:
    """Whether a folder without an image processor needs none: timm's scaling is in the model's config."""
    config = folder / "config.json"
    return config.is_file() and "pretrained_cfg" in json.loads(config.read_text(encoding="utf-8"))


def _usual_processor(name: str, image_size: int | None) -> Any:
    """For weights without an image processor: images are scaled to a square and get ImageNet's mean and spread."""
    if image_size is None:
        raise ModelError(
            f"The folder '{name}' has no preprocessor_config.json, which says how images are scaled. Give "
            "model.image_size: images are then scaled to it and get the mean and standard deviation of ImageNet."
        )
    return ViTImageProcessorPil(
        size={"height": image_size, "width": image_size},
        resample=Image.Resampling.BICUBIC,
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )


def tokenizer_sha256(tokenizer: Any) -> str:
    """Identity of a tokenizer: how it reads and writes texts, and its special tokens.

    Args:
        tokenizer: A fast tokenizer of transformers.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    how = {name: value for name, value in backend.items() if name not in ("truncation", "padding")}  # of the last call
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return hashlib.sha256(json.dumps([how, special], sort_keys=True).encode()).hexdigest()


def with_pad_token(tokenizer: Any, whose: str = "") -> Any:
    """The tokenizer with a pad token: its end token, if it has none of its own.

    Args:
        tokenizer: A transformers tokenizer; it is changed.
        whose: For the message, with a space behind.

    Raises:
        ConfigError: It has no end token either.
    """
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise ConfigError(f"The tokenizer {whose}has neither a pad token nor an end token. Set its pad_token.")
    return tokenizer
