"""Checkpoints of a training: which are complete, what a finished training left, and the way back to good weights."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from torch import nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from stable_forgetting.errors import NotFiniteError, RunDirectoryError
from stable_forgetting.records import StepRecord
from stable_forgetting.training.callbacks import COMPLETE_NAME
from stable_forgetting.training.history import TrainingOutcome, step_records, training_seconds
from stable_forgetting.training.stop_rules import Measured, Stop

logger = logging.getLogger(__name__)

STATE_NAME = "trainer_state.json"
"""Where transformers keeps the log and the best step of a checkpoint."""


def last_complete_checkpoint(output_dir: Path, before: int | None = None) -> Path | None:
    """The latest checkpoint that was written in full, or None.

    Args:
        output_dir: Where the checkpoints are.
        before: Only those of earlier steps than this one count. None: all count.
    """
    return max(_complete_checkpoints(output_dir, before), key=_step, default=None)


def _complete_checkpoints(output_dir: Path, before: int | None) -> list[Path]:
    """In the order of their steps."""
    complete = [marker.parent for marker in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{COMPLETE_NAME}")]
    return sorted((found for found in complete if before is None or _step(found) < before), key=_step)


def check_no_checkpoints(output_dir: Path) -> None:
    """Whether a training can begin here; the checkpoints of another one could be taken for its own.

    Raises:
        RunDirectoryError: There are checkpoints.
    """
    found = sorted(path.name for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*"))
    if found:
        raise RunDirectoryError(
            f"The output directory '{output_dir}' already holds checkpoints of a training ({', '.join(found)}), but a "
            "new training needs one without. Choose another output_dir, or continue that training with resume=True."
        )


def finished_earlier(
    checkpoint: Path, rules: Sequence[Stop], *, num_steps: int, keeps_best: bool
) -> tuple[TrainingOutcome, Path] | None:
    """What a training that had ended left behind; transformers would add one more step to it.

    Args:
        checkpoint: The last complete checkpoint of the training.
        rules: Its stop rules.
        num_steps: Its length in updates, if no rule ends it.
        keeps_best: Whether the weights of the best validation are its result, and not the last ones.

    Returns:
        The outcome and the checkpoint that holds its weights, or None if the training had not ended.

    Raises:
        RunDirectoryError: The best checkpoint is not there.
    """
    state = json.loads((checkpoint / STATE_NAME).read_text(encoding="utf-8"))
    history = step_records(state["log_history"])
    was_last = _step(checkpoint) >= num_steps
    stopped = None if was_last else _stop_reason(history, rules)
    if stopped is None and not was_last:
        return None
    best = state["best_global_step"] if keeps_best else None
    kept = _best_checkpoint(checkpoint.parent, best) if best else checkpoint
    return TrainingOutcome(_step(kept), history, stopped, training_seconds(state["log_history"])), kept


def _stop_reason(history: Sequence[StepRecord], rules: Sequence[Stop]) -> str | None:
    """Why a stop rule ended the training after the last validation, or None."""
    last = history[-1] if history else None
    if last is None or not last.validation:
        return None
    for rule in rules:
        found = [Measured(step.step, step.validation[rule.metric]) for step in history if step.validation]
        reason = rule.reason(found)
        if reason is not None:
            return reason
    return None


def good_checkpoint(
    output_dir: Path, *, before: int, best_step: int | None, scores: Mapping[int, float]
) -> Path | None:
    """The best or else the last complete checkpoint of the steps before this one, or None.

    Args:
        output_dir: Where the checkpoints are.
        before: Step whose weights are not good.
        best_step: Step of the best checkpoint; None if no metric says which is best.
        scores: How good the weights of each validated step are, higher for better; may be empty if no metric says.

    Raises:
        RunDirectoryError: The best checkpoint is not there.
    """
    if best_step is None:
        return last_complete_checkpoint(output_dir, before=before)
    if best_step < before:
        return _best_checkpoint(output_dir, best_step)
    # Of the others only the last few are still there.
    others = _complete_checkpoints(output_dir, before)
    return max(others, key=lambda found: scores.get(_step(found), -math.inf), default=None)


def _best_checkpoint(output_dir: Path, step: int) -> Path:
    """The best checkpoint under its name in this folder: the path in the state is wrong once the folder was moved."""
    best = output_dir / f"{PREFIX_CHECKPOINT_DIR}-{step}"
    if not (best / COMPLETE_NAME).is_file():
        raise RunDirectoryError(
            f"The best checkpoint '{best}' of this training is missing or incomplete, but its adapter is the "
            "result. Restore it, or train again in another output_dir."
        )
    return best


def adapter_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the adapter's parameters by name."""
    return {name: value.detach().clone() for name, value in get_peft_model_state_dict(model).items()}


def load_weights(model: Any, checkpoint: Path) -> None:
    """Give a model the trained weights of a checkpoint, in place: those of its adapter, if it has one."""
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, load_peft_weights(str(checkpoint)))
    else:
        model.load_state_dict(type(model).from_pretrained(checkpoint, dtype=model.dtype).state_dict())


def go_back(
    model: nn.Module,
    fresh: Mapping[str, torch.Tensor],
    checkpoint: Path | None,
    error: NotFiniteError,
    *,
    at_start: bool,
) -> tuple[int, str]:
    """Give the model the last good adapter, in place.

    Args:
        model: Model with an adapter.
        fresh: The adapter before the training.
        checkpoint: The best checkpoint, or the last one known to be good; None: go back to the fresh adapter.
        error: What happened.
        at_start: Whether it happened before the first update.

    Returns:
        The step that the adapter is of, and the sentence that says so.
    """
    if checkpoint is None:
        step = 0
        set_peft_model_state_dict(model, dict(fresh))
        kept = "the fresh adapter was kept, because no earlier checkpoint is known to be good"
    else:
        step = _step(checkpoint)
        load_weights(model, checkpoint)
        kept = f"the adapter of step {step} was kept"
    logger.warning("Training stopped: %s; %s.", error, kept)
    advice = (
        "No weight had been changed yet: look for what is not finite in the base model or in the data"
        if at_start
        else "Lower training.learning_rate or set training.max_grad_norm"
    )
    return step, f"{error}; {kept}. {advice}."


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
