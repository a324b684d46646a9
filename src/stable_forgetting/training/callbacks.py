"""Callbacks of a training: checkpoints, statistics, stop rules, finite gradients, weight clipping, progress."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from stable_forgetting import processes
from stable_forgetting.adapters import BoundedLoraLinear, adapter_statistics
from stable_forgetting.errors import ConfigError, NotFiniteError
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
        ConfigError: There is a limit but no adapter.
    """
    if isinstance(model, PeftModel):
        return [*([] if max_weight is None else [WeightClipping(max_weight)]), AdapterHistory()]
    if max_weight is not None:
        raise ConfigError(
            f"training.max_weight is {max_weight:g}, but the model has no adapter whose entries could be clipped. "
            "Attach one with get_peft_model(model, BoundedLoraConfig(...)), or leave training.max_weight out."
        )
    return []


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


class Measured(NamedTuple):
    """A validation metric after a step."""

    step: int
    value: float


@dataclass(frozen=True)
class Stop:
    """A stop rule: the training ends when a validation metric has passed a value, or has passed one and falls again.

    Args:
        metric: Name of the metric.
        above: Ends it when the metric is greater.
        below: Ends it when the metric is smaller.
        peak: Ends it when the metric's best is greater, and `patience` validations since then are below the best.
        patience: At least 1.
    """

    metric: str
    above: float = math.inf
    below: float = -math.inf
    peak: float = math.inf
    patience: int = 1

    def reason(self, found: Sequence[Measured]) -> str | None:
        """What is said of a training that this rule ends after the last of the validations so far; None: it goes on.

        It depends on nothing else, so that a resumed training ends where an uninterrupted one does.

        Args:
            found: The metric's values in order, at least one.
        """
        step, value = found[-1]
        if value > self.above:
            return f"stop rule: {self.metric} above {self.above:g} ({value:.4g} in step {step})"
        if value < self.below:
            return f"stop rule: {self.metric} below {self.below:g} ({value:.4g} in step {step})"
        best = max(measured.value for measured in found)
        last_best = max(place for place, measured in enumerate(found) if measured.value == best)
        if best <= self.peak or len(found) - 1 - last_best < self.patience:
            return None
        return (
            f"stop rule: {self.metric} was above {self.peak:g} and falls again "
            f"({best:.4g} in step {found[last_best].step}, {value:.4g} in step {step})"
        )


class StopRules(TrainerCallback):  # type: ignore[misc]
    """Ends the training when one of the rules applies; `reason` then says which."""

    def __init__(self, rules: Sequence[Stop]) -> None:
        self.rules = tuple(rules)
        self.reason: str | None = None

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        """Try all rules on the validations so far, of which a checkpoint's state keeps those before it."""
        for rule in self.rules:
            name = f"eval_{rule.metric}"
            found = [Measured(entry["step"], entry[name]) for entry in state.log_history if name in entry]
            reason = rule.reason(found)
            if reason is not None:
                self.reason = reason
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
