"""Callbacks of a training: checkpoints, statistics, weight clipping, time, progress."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from stable_forgetting import processes
from stable_forgetting.adapters import BoundedLoraLinear, adapter_statistics
from stable_forgetting.errors import ConfigError
from stable_forgetting.progress import Advance, Progress
from stable_forgetting.training.history import SECONDS, training_seconds

COMPLETE_NAME = "complete"
"""Marker that is written when everything else of a checkpoint is: a kill may leave half a checkpoint behind."""


class CompleteCheckpoints(TrainerCallback):  # type: ignore[misc]
    """Marks each checkpoint once it is written in full."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the marker, once every process has written its part."""
        processes.wait_for_all()
        if processes.is_main_process():
            (_checkpoint_dir(Path(args.output_dir), state.global_step) / COMPLETE_NAME).touch()


def _checkpoint_dir(output_dir: Path, step: int) -> Path:
    return output_dir / f"{PREFIX_CHECKPOINT_DIR}-{step}"


class WeightClipping(TrainerCallback):  # type: ignore[misc]
    """Clips the entries of A and B of the active adapters after every update: a baseline that limits weights.

    A starts at random, so the first clipping shortens its larger entries too. The limit on an entry of the change is
    that of the bound; without one, an entry of B @ A stays within rank × limit².

    Args:
        limit: Largest absolute value of an entry, more than 0.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Clip in place; the part of a divided matrix that this process holds is clipped here."""
        layers = [layer for layer in given["model"].modules() if isinstance(layer, BoundedLoraLinear)]
        with torch.no_grad():
            for layer in layers:
                for adapter in layer.active_names():
                    for factor in (layer.bounded_lora_A[adapter], layer.bounded_lora_B[adapter]):
                        factor.clamp_(-self.limit, self.limit)


def adapter_callbacks(model: nn.Module, max_weight: float | None) -> list[TrainerCallback]:
    """What is done to an adapter beside its updates; nothing for a model without one.

    Args:
        model: The model that is trained.
        max_weight: Limit of the entries of A and B; None: there is none.

    Raises:
        ConfigError: There is a limit but no bounded adapter (plain LoRA is one, with the bound ``identity``).
    """
    is_bounded = any(isinstance(layer, BoundedLoraLinear) for layer in model.modules())
    if max_weight is not None and not is_bounded:
        raise ConfigError(
            f"training.max_weight is {max_weight:g}, but the model has no adapter whose entries could be clipped. "
            "Attach one with get_peft_model(model, BoundedLoraConfig(...)), or leave training.max_weight out."
        )
    clipping = [] if max_weight is None else [WeightClipping(max_weight)]
    return [*clipping, AdapterHistory()] if isinstance(model, PeftModel) else []


class AdapterHistory(TrainerCallback):  # type: ignore[misc]
    """Adds the size of the adapter's change to the log of each step."""

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Measure the adapter and put the numbers beside the step's others."""
        entry = state.log_history[-1]
        if "loss" not in entry:
            return
        statistics = adapter_statistics(given["model"])
        entry["adapter_norm"] = statistics.frobenius_norm
        entry["largest_entry"] = statistics.largest_entry
        entry["entry_limit"] = statistics.limit
        entry["largest_share"] = statistics.largest_share
        entry["saturated_share"] = statistics.saturated_share


class TrainingTime(TrainerCallback):  # type: ignore[misc]
    """Logs the seconds of training behind each step: those before a resume are counted, those of validations are not.

    A checkpoint keeps them with the rest of the log, so that updates which a kill has undone are counted once.
    """

    def __init__(self) -> None:
        self._start: float | None = None
        self._logged = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock at what the steps so far have taken; it stands still if that is not known."""
        before = training_seconds(state.log_history) if state.global_step else 0.0
        self._start = None if before is None else time.perf_counter() - before

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Put the time beside a step's other numbers."""
        entry = state.log_history[-1]
        if "loss" in entry and self._start is not None:
            self._logged = time.perf_counter()
            entry[SECONDS] = self._logged - self._start

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave out what has passed since the step was logged, which it is right before it is validated."""
        if self._start is not None:
            self._start += time.perf_counter() - self._logged


class ProgressBar(TrainerCallback):  # type: ignore[misc]
    """Shows the steps of a training."""

    def __init__(self, progress: Progress, description: str) -> None:
        self.progress = progress
        self.description = description
        self._open = ExitStack()
        self._advance: Advance = lambda _: None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the bar; a resumed training begins where it was left."""
        self._advance = self._open.enter_context(self.progress.track(self.description, state.max_steps, "steps"))
        self._advance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One step more."""
        self._advance(1)

    def close(self) -> None:
        """Close the bar, however the training ended."""
        self._open.close()
