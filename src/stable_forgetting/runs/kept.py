"""What is kept on disk: the scaled pixels of images, and what the frozen blocks of a model make of images and texts."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from stable_forgetting import processes
from stable_forgetting.adapters.families import block_number
from stable_forgetting.data.array_store import CAN_GROW, ArrayStore
from stable_forgetting.data.examples import ExampleSet, LanguageExample
from stable_forgetting.data.rows import Rows
from stable_forgetting.models.load import LoadedModel, cache_dir
from stable_forgetting.models.reading import stretching_length
from stable_forgetting.models.tasks import ImageTask, Task
from stable_forgetting.models.trunk import find_trunk
from stable_forgetting.runs.cache import content_hash
from stable_forgetting.runs.sets import process_with

STORE_FORMAT = 2
"""Grows whenever scaled images are written in another form than before."""

_FLOAT_BYTES = 4
_SQUARE = np.zeros((64, 64, 3), dtype=np.uint8)

logger = logging.getLogger(__name__)


def pixel_store(task: Task, rows: Mapping[str, Rows], limit_gib: float) -> ArrayStore | None:
    """Where the scaled pixels of all sets are kept; None for language, and if they take more room than allowed.

    Args:
        task: Holds the image processor.
        rows: The sets.
        limit_gib: Room on disk in GiB.
    """
    if not isinstance(task, ImageTask) or not CAN_GROW or limit_gib == 0:
        return None
    shape = tuple(process_with(task)([_SQUARE])[0].shape)
    count = sum(len(found) for found in rows.values())
    if not _fits(f"The {count} scaled images", count * math.prod(shape), limit_gib):
        return None
    processor = task.processor
    made_by = {name: _version(name) for name in ("pillow", "torchvision")}
    key = {
        "format": STORE_FORMAT,
        "processor": processor.to_dict(),
        "class": type(processor).__qualname__,
        "shape": shape,
        **made_by,
    }
    name = content_hash(json.loads(json.dumps(key, default=str, sort_keys=True)))
    return ArrayStore(cache_dir() / "images" / name, batch_size=256)


def _fits(what: str, num_floats: int, limit_gib: float) -> bool:
    gib = num_floats * _FLOAT_BYTES / 2**30
    if gib > limit_gib:
        logger.warning(
            "%s take %.1f GiB, more than model.disk_cache_gib = %g: they are computed anew whenever they are needed.",
            what,
            gib,
            limit_gib,
        )
    return gib <= limit_gib


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def with_kept_trunk(loaded: LoadedModel, num_blocks: int, num_inputs: int, limit_gib: float) -> LoadedModel:
    """The same model, with the outputs of its first blocks kept where that is possible and takes no more room.

    Args:
        loaded: The model; its weights below the first block that changes must stay as they are.
        num_blocks: Blocks below it.
        num_inputs: Images, or tokens of texts, that it will see.
        limit_gib: Room on disk in GiB.
    """
    task = loaded.task
    if limit_gib == 0 or processes.shards_models():
        return loaded
    if task.name == "language" and stretching_length(loaded.model) is not None:
        return loaded  # what a text gives depends on the longest one that it is read with
    options = task.options if isinstance(task, ImageTask) else {}
    trunk = find_trunk(loaded.model, num_blocks, options, cache_dir() / "activations")
    if trunk is None:
        return loaded
    if isinstance(task, ImageTask):
        unit, one = "images", process_with(task)([_SQUARE])[0]
    else:
        unit, one = "tokens", torch.zeros(1, dtype=torch.long)
    what = f"The outputs of {num_blocks} frozen blocks for {num_inputs} {unit}"
    if not _fits(what, num_inputs * trunk.output_size(one), limit_gib):
        return loaded
    return LoadedModel(loaded.model, task.with_trunk(trunk), loaded.source)


def inputs_of(examples: ExampleSet[Any], *, with_alternatives: bool) -> int:
    """Number of images, or of tokens of texts: of each answer with its prompt.

    Args:
        examples: Of either kind.
        with_alternatives: Whether the paraphrased and wrong answers are read too, as in measuring.
    """
    if not len(examples) or not isinstance(examples[0], LanguageExample):
        return len(examples)
    answers = [
        answer for example in examples for answer in (example, *(example.alternatives if with_alternatives else ()))
    ]
    return sum(len(answer.input_ids) for answer in answers)


def first_adapted_block(model: PeftModel) -> int:
    """Number of the lowest block with an adapter; 0 if a layer outside of the blocks has one."""
    config: Any = model.peft_config[model.active_adapter]
    numbers = [block_number(name) for name in config.resolved_scales]
    return min(0 if number is None else number for number in numbers)
