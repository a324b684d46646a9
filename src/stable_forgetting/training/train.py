"""Training: an adapter that forgets, or a whole model that is taught."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from torch import nn
from transformers import TrainingArguments

from stable_forgetting.config import FinetuneConfig, TrainingConfig
from stable_forgetting.data.examples import ExampleSet
from stable_forgetting.data.pairs import ForgetRetainBatches, PairedExamples
from stable_forgetting.errors import ConfigError, NotFiniteError, unknown_name
from stable_forgetting.models.tasks import Task
from stable_forgetting.objectives import Objective, get_term
from stable_forgetting.progress import Progress, SilentProgress
from stable_forgetting.records import StepRecord
from stable_forgetting.training.callbacks import (
    AdapterHistory,
    CompleteCheckpoints,
    FiniteGradients,
    ProgressBar,
    Stop,
    StopRules,
    last_complete_checkpoint,
)
from stable_forgetting.training.history import step_records
from stable_forgetting.training.trainer import ForgetConstants, UnlearnTrainer, Validation

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingOutcome:
    """How a training went.

    Args:
        num_steps: Optimizer updates behind the weights that the model has now.
        history: One record per update.
        stopped: Why the training ended early, or None.
    """

    num_steps: int
    history: list[StepRecord]
    stopped: str | None = None


@dataclass(frozen=True)
class Sets:
    """What a training sees.

    Args:
        forget: Forget set; None in finetuning.
        retain: Retain set; None if the objective has no retain term.
        constants: What the forget term needs of each forget example.
    """

    forget: ExampleSet[Any] | None
    retain: ExampleSet[Any] | None
    constants: ForgetConstants = field(default_factory=dict)


def train(
    model: nn.Module,
    task: Task,
    objective: Objective,
    sets: Sets,
    *,
    settings: TrainingConfig,
    output_dir: Path,
    validation: Validation | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    description: str = "unlearning",
) -> TrainingOutcome:
    """Train the trainable parameters of a model on an objective, in place.

    A loss or gradient that is not finite ends the training; a model with an adapter then gets back the last complete
    checkpoint (or the fresh adapter), and the outcome says so.

    Args:
        model: Model with an adapter, or a model to be trained whole.
        task: Turns batches into predictions.
        objective: What is minimised.
        sets: What it is trained on.
        settings: Steps, rates and batches.
        output_dir: Where checkpoints are written.
        validation: Metrics on validation data, computed every `settings.evaluate_every` steps.
        resume: Whether to go on from the last complete checkpoint in `output_dir`.
        progress: Where the steps are shown.
        description: What the bar says.

    Returns:
        The outcome.

    Raises:
        NotFiniteError: In a training without an adapter, where there is nothing to go back to.
        ConfigError: A stop rule or the best metric names a metric that the validation does not have.
    """
    batches = ForgetRetainBatches(
        num_forget=len(sets.forget) if sets.forget and objective.uses_forget else None,
        num_retain=len(sets.retain) if sets.retain and objective.uses_retain else None,
        forget_batch_size=settings.forget_batch_size,
        retain_batch_size=settings.retain_batch_size,
        seed=settings.seed,
    )
    rules = StopRules([_stop(rule.metric, rule.above, rule.below) for rule in settings.stop])
    bar = ProgressBar(progress or SilentProgress(), description)
    has_adapter = isinstance(model, PeftModel)
    callbacks = [CompleteCheckpoints(), FiniteGradients(), rules, bar, *([AdapterHistory()] if has_adapter else [])]
    trainer = UnlearnTrainer(
        model,
        training_arguments(settings, output_dir, _greater_is_better(settings, validation)),
        task=task,
        objective=objective,
        examples=PairedExamples(sets.forget, sets.retain),
        batches=batches,
        constants=sets.constants,
        validation=validation if settings.evaluate_every else None,
        callbacks=callbacks,
    )
    checkpoint = last_complete_checkpoint(output_dir) if resume else None
    finished = _finished_earlier(checkpoint, rules) if checkpoint else None
    if finished is not None and checkpoint is not None:
        _load_adapter(model, checkpoint)
        return finished
    fresh = _adapter_weights(model) if has_adapter else None
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except NotFiniteError as error:
        if fresh is None:
            raise
        kept_step, stopped = _go_back(model, fresh, last_complete_checkpoint(output_dir), error)
        return TrainingOutcome(kept_step, step_records(trainer.state.log_history), stopped)
    finally:
        bar.close()
    state = trainer.state
    kept_step = state.best_global_step if settings.best_metric and state.best_global_step else state.global_step
    return TrainingOutcome(kept_step, step_records(state.log_history), rules.reason)


def finetune(
    model: nn.Module,
    task: Task,
    examples: ExampleSet[Any],
    *,
    settings: FinetuneConfig,
    output_dir: Path,
    resume: bool = False,
    progress: Progress | None = None,
    description: str = "finetuning",
) -> TrainingOutcome:
    """Teach a whole model a set of examples by ordinary training, in place.

    Args:
        model: Model whose parameters are all trained.
        task: Turns batches into predictions.
        examples: What it is taught.
        settings: Epochs, rates and batches.
        output_dir: Where checkpoints are written.
        resume: Whether to go on from the last complete checkpoint.
        progress: Where the steps are shown.
        description: What the bar says.

    Returns:
        The outcome.

    Raises:
        NotFiniteError: The loss or a gradient became infinite or NaN.
    """
    steps_per_epoch = math.ceil(len(examples) / settings.batch_size)
    training = TrainingConfig(
        epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        retain_batch_size=settings.batch_size,
        weight_decay=settings.weight_decay,
        warmup_share=settings.warmup_share,
        schedule=settings.schedule,
        save_every=max(steps_per_epoch, math.ceil(steps_per_epoch * settings.epochs / 8)),
        seed=settings.seed,
    )
    return train(
        model,
        task,
        Objective(forget=None, retain=get_term("retain", "nll")),
        Sets(forget=None, retain=examples),
        settings=training,
        output_dir=output_dir,
        resume=resume,
        progress=progress,
        description=description,
    )


def training_arguments(
    settings: TrainingConfig, output_dir: Path, greater_is_better: bool | None = None
) -> TrainingArguments:
    """The settings in transformers' words."""
    evaluate_every = settings.evaluate_every
    keep_best = settings.best_metric is not None
    length = {"max_steps": settings.steps} if settings.steps else {"num_train_epochs": settings.epochs}
    return TrainingArguments(
        output_dir=str(output_dir),
        **length,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup_share,
        gradient_accumulation_steps=settings.gradient_accumulation,
        use_cpu=not torch.cuda.is_available(),
        bf16=settings.bf16,
        activation_checkpointing=settings.gradient_checkpointing,
        eval_strategy="steps" if evaluate_every else "no",
        eval_steps=evaluate_every,
        save_strategy="steps",
        save_steps=evaluate_every if keep_best else settings.save_every,
        save_total_limit=2,
        load_best_model_at_end=keep_best,
        metric_for_best_model=settings.best_metric,
        greater_is_better=greater_is_better,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        seed=settings.seed,
        data_seed=settings.seed,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )


def _greater_is_better(settings: TrainingConfig, validation: Validation | None) -> bool | None:
    """Direction of the metric that chooses the checkpoint; checks the names of all validation metrics in use."""
    names = [rule.metric for rule in settings.stop] + ([settings.best_metric] if settings.best_metric else [])
    known = validation.greater_is_better if validation else {}
    for name in names:
        if name not in known:
            raise ConfigError(unknown_name("validation metric", name, known))
    return known[settings.best_metric] if settings.best_metric else None


def _stop(metric: str, above: float | None, below: float | None) -> Stop:
    return Stop(metric, math.inf if above is None else above, -math.inf if below is None else below)


def _finished_earlier(checkpoint: Path, rules: StopRules) -> TrainingOutcome | None:
    """The outcome, if a stop rule had already ended the training when this checkpoint was written."""
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    history = step_records(state["log_history"])
    last = history[-1].validation if history else None
    for rule in rules.rules if last else ():
        value = (last or {})[rule.metric]
        if rule.applies(value):
            reason = f"stop rule: {rule} ({value:.4g} in step {history[-1].step})"
            return TrainingOutcome(history[-1].step, history, reason)
    return None


def _adapter_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in get_peft_model_state_dict(model).items()}


def _load_adapter(model: nn.Module, checkpoint: Path) -> None:
    set_peft_model_state_dict(model, load_peft_weights(str(checkpoint)))


def _go_back(
    model: nn.Module, fresh: Mapping[str, torch.Tensor], checkpoint: Path | None, error: NotFiniteError
) -> tuple[int, str]:
    """Give the model the last good adapter; return the step that it is of, and the sentence that says so."""
    step = 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])
    if checkpoint is None:
        set_peft_model_state_dict(model, dict(fresh))
        kept = "the fresh adapter was kept, because no checkpoint had been written"
    else:
        _load_adapter(model, checkpoint)
        kept = f"the adapter of step {step} was kept"
    logger.warning("Training stopped: %s; %s.", error, kept)
    return step, f"{error}; {kept}. Lower training.learning_rate or set training.max_grad_norm."
