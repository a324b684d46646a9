"""Callbacks of a training: complete checkpoints, step statistics, stop rules, finite gradients, progress."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from stable_forgetting import processes
from stable_forgetting.adapters import adapter_statistics
from stable_forgetting.errors import NotFiniteError
from stable_forgetting.progress import Advance, Progress

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


class FiniteGradients(TrainerCallback):  # type: ignore[misc]
    """Stops before an update with a gradient that is infinite or not a number: such an update cannot be undone."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Check all gradients: after they were averaged over the processes, so all of them find the same.

        Raises:
            NotFiniteError: One is not finite.
        """
        for name, parameter in given["model"].named_parameters():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                raise NotFiniteError(f"the gradient of '{name}' became infinite or NaN in step {state.global_step + 1}")


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
        entry["saturated_share"] = statistics.saturated_share


@dataclass(frozen=True)
class Stop:
    """A stop rule: the training ends when a validation metric has passed a value."""

    metric: str
    above: float = math.inf
    below: float = -math.inf

    def applies(self, value: float) -> bool:
        """Whether the value has passed the limit."""
        return value > self.above or value < self.below

    def reason(self, value: float, step: int) -> str:
        """What is said of a training that this rule ended."""
        return f"stop rule: {self} ({value:.4g} in step {step})"

    def __str__(self) -> str:
        return f"{self.metric} above {self.above:g}" if self.above < math.inf else f"{self.metric} below {self.below:g}"


class StopRules(TrainerCallback):  # type: ignore[misc]
    """Ends the training when one of the rules applies; `reason` then says which."""

    def __init__(self, rules: Sequence[Stop]) -> None:
        self.rules = tuple(rules)
        self.reason: str | None = None

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        """Try all rules on the metrics of a validation."""
        for rule in self.rules:
            value = metrics[f"eval_{rule.metric}"]
            if rule.applies(value):
                self.reason = rule.reason(value, state.global_step)
                control.should_training_stop = True
                control.should_save = True


class ProgressBar(TrainerCallback):  # type: ignore[misc]
    """Shows the steps of a training."""

    def __init__(self, progress: Progress, description: str) -> None:
        self.progress = progress
        self.description = description
        self._open = ExitStack()
        self._advance: Advance = lambda _: None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the bar; a resumed training begins where it was left."""
        self._advance = self._open.enter_context(self.progress.track(self.description, state.max_steps))
        self._advance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One step more."""
        self._advance(1)

    def close(self) -> None:
        """Close the bar, however the training ended."""
        self._open.close()
