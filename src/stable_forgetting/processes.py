"""Several processes at one piece of work, as `accelerate launch` starts them: which one this is, waiting, agreeing.

A process that was started alone is the main process and the only one; nothing here does anything then, and no process
group is made. The main process is the one that writes files; all of them must see the same folders.
"""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from stable_forgetting.errors import ConfigError

if TYPE_CHECKING:
    from accelerate import PartialState

T = TypeVar("T")

_FSDP = "ACCELERATE_USE_FSDP"
_DEEPSPEED = "ACCELERATE_USE_DEEPSPEED"
"""How `accelerate launch` tells its processes what its config asks for."""


def num_processes() -> int:
    """How many processes work together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_index() -> int:
    """Number of this process, from 0."""
    return int(os.environ.get("RANK", "0")) if num_processes() > 1 else 0


def is_main_process() -> bool:
    """Whether this is the process that writes files and speaks to the user."""
    return process_index() == 0


def join() -> None:
    """Take part in the work of all processes, on this process's own device; further calls change nothing.

    Raises:
        ConfigError: The launcher's config asks for DeepSpeed.
    """
    if num_processes() > 1:
        if os.environ.get(_DEEPSPEED, "").lower() == "true":
            raise ConfigError(
                "The launcher's config asks for DeepSpeed, which this command cannot drive. Use "
                "configs/accelerate/fsdp.yaml, which divides the weights between processes just as well."
            )
        _state()


def wait_for_all() -> None:
    """Go on when every process has come to this place."""
    if num_processes() > 1:
        _state().wait_for_everyone()


def agree(value: T) -> T:
    """The main process's value, in every process.

    Args:
        value: Anything that can be pickled.
    """
    if num_processes() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    _state()
    values: list[T] = broadcast_object_list([value])
    return values[0]


@cache
def shards_models() -> bool:
    """Whether every process holds only its share of a model's weights: the launcher's config asks for FSDP.

    transformers divides the weights while it reads them, so that no process ever holds a whole model. accelerate would
    divide a model that is already there, and do it again in training; so the first call takes the request from it.
    """
    asked = num_processes() > 1 and os.environ.get(_FSDP, "").lower() == "true"
    if asked:
        os.environ[_FSDP] = "false"
    return asked


def leave() -> None:
    """End the work of all processes together."""
    if num_processes() > 1:
        _state().destroy_process_group()


def _state() -> PartialState:
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())
