"""How a training went: its outcome and its history, one record per update, from what the Trainer logs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from stable_forgetting.records import StepRecord


@dataclass(frozen=True)
class TrainingOutcome:
    """How a training went.

    Args:
        num_steps: Optimizer updates behind the weights that the model has now.
        history: One record per update.
        stopped: Why the training ended early, or None.
        seconds: What the updates took, those before a resume included and validations left out; None if not known.
    """

    num_steps: int
    history: list[StepRecord]
    stopped: str | None = None
    seconds: float | None = field(default=None, compare=False)


SECONDS = "training_seconds"
"""Name, in the Trainer's log, of the seconds of training behind a step."""


def training_seconds(log_history: list[dict[str, Any]]) -> float | None:
    """Seconds behind the last update of the Trainer's log; None if there is none, or its time was not logged."""
    steps = [entry for entry in log_history if "loss" in entry]
    return steps[-1].get(SECONDS) if steps else None


def step_records(log_history: list[dict[str, Any]]) -> list[StepRecord]:
    """One record per update from the Trainer's log; validation metrics join the step that they follow."""
    steps: dict[int, dict[str, Any]] = {}
    for entry in log_history:
        number = int(entry["step"])
        step = steps.setdefault(number, {"step": number, "epoch": entry.get("epoch", 0.0)})
        if "loss" in entry:
            step |= {name: _finite_or_none(entry.get(name)) for name in StepRecord.model_fields}
            step |= {"step": number, "epoch": entry["epoch"]}
        validation = {name.removeprefix("eval_"): value for name, value in entry.items() if name.startswith("eval_")}
        if validation:
            step["validation"] = validation
    return [StepRecord(**step) for _, step in sorted(steps.items())]


def _finite_or_none(value: float | None) -> float | None:
    """The value if it is a finite number, else None: records hold no infinities in the step history."""
    return value if value is not None and math.isfinite(value) else None
