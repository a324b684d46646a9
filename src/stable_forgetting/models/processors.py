"""Tokenizers and image processors: what stands before a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, ViTImageProcessorPil
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from stable_forgetting.errors import ConfigError, ModelError


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
        ModelError: The folder has no image processor, and no size was given.
    """
    if kind == "language":
        return AutoTokenizer.from_pretrained(folder, **options)
    if Path(folder).is_dir() and not (Path(folder) / "preprocessor_config.json").is_file():
        return _usual_processor(name, image_size)
    processor = AutoImageProcessor.from_pretrained(folder, **options)
    if image_size is None:
        return processor
    square = {"height": image_size, "width": image_size}
    is_cut = bool(getattr(processor, "do_center_crop", False))
    sizes = {"size": {"shortest_edge": image_size}, "crop_size": square} if is_cut else {"size": square}
    return AutoImageProcessor.from_pretrained(folder, **options, **sizes)


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
