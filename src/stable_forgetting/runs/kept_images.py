"""What is kept on disk of images: their scaled pixels, and what the frozen blocks of a model make of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from peft import PeftModel

from stable_forgetting import processes
from stable_forgetting.adapters.families import block_number
from stable_forgetting.data.array_store import ArrayStore
from stable_forgetting.data.rows import Rows
from stable_forgetting.models.load import LoadedModel, cache_dir
from stable_forgetting.models.tasks import ImageTask, Task
from stable_forgetting.models.trunk import FrozenTrunk, find_trunk
from stable_forgetting.runs.cache import content_hash
from stable_forgetting.runs.sets import Sets, process_with

_BYTES_PER_GIB = 2**30
_FLOAT_BYTES = 4


def pixel_store(task: Task, rows: Mapping[str, Rows], limit_gib: float) -> ArrayStore | None:
    """Where the scaled pixels of all sets are kept; None for language, and if they take more room than allowed.

    Args:
        task: Holds the image processor.
        rows: The sets.
        limit_gib: Room on disk in GiB.
    """
    if not isinstance(task, ImageTask):
        return None
    values = process_with(task)([np.zeros((64, 64, 3), dtype=np.uint8)])
    count = sum(len(found) for found in rows.values())
    if count * values[0].numel() * _FLOAT_BYTES > limit_gib * _BYTES_PER_GIB:
        return None
    key = json.loads(json.dumps(task.processor.to_dict(), default=str, sort_keys=True))
    return ArrayStore(cache_dir() / "images" / content_hash({"processor": key}), batch_size=256)


def with_kept_trunk(loaded: LoadedModel, num_blocks: int, num_images: int, limit_gib: float) -> LoadedModel:
    """The same model, with the outputs of its first blocks kept where that is possible and takes no more room.

    Args:
        loaded: The model; its weights below the first block that changes must stay as they are.
        num_blocks: Blocks below it.
        num_images: How many images it will see.
        limit_gib: Room on disk in GiB.
    """
    task = loaded.task
    if not isinstance(task, ImageTask) or processes.shards_models():
        return loaded
    trunk = find_trunk(loaded.model, num_blocks, task.options, cache_dir() / "activations")
    if trunk is None or num_images * _bytes_per_image(trunk, task) > limit_gib * _BYTES_PER_GIB:
        return loaded
    return LoadedModel(loaded.model, task.with_trunk(trunk), loaded.source)


def _bytes_per_image(trunk: FrozenTrunk, task: ImageTask) -> int:
    return trunk.output_size(process_with(task)([np.zeros((64, 64, 3), dtype=np.uint8)])) * _FLOAT_BYTES


def first_adapted_block(model: PeftModel) -> int:
    """Number of the lowest block with an adapter; 0 if a layer outside of the blocks has one."""
    config: Any = model.peft_config[model.active_adapter]
    numbers = [block_number(name) for name in config.resolved_scales]
    return min(0 if number is None else number for number in numbers)


def num_images(sets: Sets) -> int:
    """Images of all sets together."""
    return sum(len(examples) for examples in sets.by_name.values())
