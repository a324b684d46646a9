"""Training: an adapter that forgets, or a whole model that is taught."""

from __future__ import annotations

import math
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import TrainingArguments

from stable_forgetting import processes
from stable_forgetting.config import FinetuneConfig, TrainingConfig
from stable_forgetting.data.examples import ExampleSet
from stable_forgetting.data.pairs import ForgetRetainBatches, PairedExamples
from stable_forgetting.errors import ConfigError, NotFiniteError, unknown_name
from stable_forgetting.models.tasks import Task
from stable_forgetting.objectives import Objective, get_term
from stable_forgetting.progress import Progress, SilentProgress
from stable_forgetting.training.callbacks import (
    CompleteCheckpoints,
    ProgressBar,
    TrainingTime,
    adapter_callbacks,
)
from stable_forgetting.training.checkpoints import (
    adapter_weights,
    check_no_checkpoints,
    finished_earlier,
    go_back,
    good_checkpoint,
    last_complete_checkpoint,
    load_weights,
)
from stable_forgetting.training.history import TrainingOutcome, step_records, training_seconds
from stable_forgetting.training.sets import Sets
from stable_forgetting.training.stop_rules import Stop, StopRules, wrong_peaks
from stable_forgetting.training.surroundings import as_it_was, own_verbosity, warn_of_few_batches, warn_of_float16
from stable_forgetting.training.trainer import UnlearnTrainer, Validation


@own_verbosity()
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

    A loss or gradient that is not finite ends the training; a model with an adapter then gets back the best or else the
    last complete checkpoint before the weights that gave it (or the fresh adapter), and the outcome says so. Afterwards
    all but the trained weights is as it was (`as_it_was` says what that is), and transformers logs as before.

    Several processes divide every batch, so that their number changes results by rounding only.

    Args:
        model: Model with an adapter, or a model to be trained whole.
        task: Turns batches into predictions.
        objective: What is minimised.
        sets: What it is trained on.
        settings: Steps, rates and batches.
        output_dir: Where checkpoints are written; it may hold some only if `resume`.
        validation: Metrics on validation data, computed every `settings.evaluate_every` steps.
        resume: Whether to go on from the last complete checkpoint in `output_dir`.
        progress: Where the steps are shown.
        description: What the bar says.

    Returns:
        The outcome.

    Raises:
        NotFiniteError: In a training without an adapter, where there is nothing to go back to.
        ConfigError: A stop rule or the best metric names a metric that the validation does not have, a rule waits for
            the peak of one of which less is better, validations are asked for and there is nothing to measure, a set
            or constants that the objective needs are missing, or weights are to be clipped without a bounded adapter.
        RunDirectoryError: `output_dir` holds checkpoints that are not to be resumed, or lacks the best one.
    """
    greater_is_better = _greater_is_better(settings, validation)
    sets.check_complete(objective)
    if not resume:
        check_no_checkpoints(output_dir)
    processes.wait_for_all()  # every process has looked at the folder before one writes to it
    batches = _batches(objective, sets, settings)
    warn_of_few_batches(len(batches), settings.gradient_accumulation)
    num_steps = _num_steps(batches, settings)
    rules = StopRules([Stop.of(rule) for rule in settings.stop])
    bar = ProgressBar(progress if progress and processes.is_main_process() else SilentProgress(), description)
    adapters = adapter_callbacks(model, settings.max_weight)
    with as_it_was(model):
        trainer = UnlearnTrainer(
            model,
            training_arguments(settings, output_dir, num_steps, greater_is_better),
            task=task,
            objective=objective,
            examples=PairedExamples(sets.forget, sets.retain, sets.unseen),
            batches=batches,
            constants=sets.constants,
            validation=validation if settings.evaluate_every else None,
            callbacks=[CompleteCheckpoints(), TrainingTime(), rules, bar, *adapters],
        )
        checkpoint = processes.agree(last_complete_checkpoint(output_dir)) if resume else None
        keeps_best = settings.best_metric is not None
        if checkpoint is not None:
            finished = finished_earlier(checkpoint, rules.rules, num_steps=num_steps, keeps_best=keeps_best)
            if finished is not None:
                load_weights(model, finished[1])
                return finished[0]
        with closing(bar):
            gone_back = _train_or_go_back(trainer, checkpoint, output_dir, settings.best_metric)
    state = trainer.state
    best_step = state.best_global_step if keeps_best else None
    early = rules.reason if state.global_step < num_steps else None  # in the last step a rule ends nothing
    kept_step, stopped = gone_back or (best_step or state.global_step, early)
    return TrainingOutcome(kept_step, step_records(state.log_history), stopped, training_seconds(state.log_history))


def _scores(trainer: UnlearnTrainer, best_metric: str) -> dict[int, float]:
    """How good the weights of each validated step are by this metric, higher for better."""
    sign = 1 if trainer.args.greater_is_better else -1
    validated = [step for step in step_records(trainer.state.log_history) if step.validation]
    return {step.step: sign * step.validation[best_metric] for step in validated if step.validation}


def _num_steps(batches: ForgetRetainBatches, settings: TrainingConfig) -> int:
    return settings.steps or math.ceil(settings.epochs * math.ceil(len(batches) / settings.gradient_accumulation))


def _batches(objective: Objective, sets: Sets, settings: TrainingConfig) -> ForgetRetainBatches:
    return ForgetRetainBatches(
        num_forget=len(sets.forget) if sets.forget else None,
        num_retain=len(sets.retain) if sets.retain and objective.uses_retain else None,
        forget_batch_size=settings.forget_batch_size,
        retain_batch_size=settings.retain_batch_size,
        seed=settings.seed,
        draws_forget=objective.uses_forget,
        num_unseen=len(sets.unseen) if sets.unseen and objective.uses_unseen else None,
        unseen_batch_size=settings.unseen_batch_size,
    )


def _train_or_go_back(
    trainer: UnlearnTrainer, checkpoint: Path | None, output_dir: Path, best_metric: str | None
) -> tuple[int, str] | None:
    """Train to the end, or go back to the last good adapter.

    Returns:
        The step gone back to and the reason; None if all went well.
    """
    model: Any = trainer.model
    warn_of_float16(model)
    fresh = adapter_weights(model) if isinstance(model, PeftModel) else None
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except NotFiniteError as error:
        if fresh is None:
            raise
        state = trainer.state
        # The checkpoint of the current step, if any, holds the very weights that gave what is not finite.
        good = good_checkpoint(
            output_dir,
            before=state.global_step,
            best_step=state.best_global_step,
            scores=_scores(trainer, best_metric) if best_metric else {},
        )
        return go_back(model, fresh, processes.agree(good), error, at_start=state.global_step == 0)
    return None


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
    settings: TrainingConfig, output_dir: Path, num_steps: int, greater_is_better: bool | None = None
) -> TrainingArguments:
    """The settings in transformers' words, for a training of `num_steps` steps."""
    evaluate_every = settings.evaluate_every
    keep_best = settings.best_metric is not None
    length = {"max_steps": settings.steps} if settings.steps else {"num_train_epochs": settings.epochs}
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        **length,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        lr_scheduler_type=settings.schedule,
        # The first step of a warmup has the rate 0: a single step with one would change nothing.
        warmup_steps=settings.warmup_share if num_steps > 1 else 0,
        gradient_accumulation_steps=settings.gradient_accumulation,
        use_cpu=not torch.cuda.is_available(),
        bf16=settings.bf16,
        activation_checkpointing=settings.gradient_checkpointing,
        eval_strategy="steps" if evaluate_every else "no",
        eval_steps=evaluate_every,
        save_strategy="steps",
        save_steps=evaluate_every if keep_best else settings.save_every,
        # The oldest is deleted before the newest is complete, and the best one may be neither of the last two.
        save_total_limit=3 if keep_best else 2,
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
        ddp_find_unused_parameters=False,
    )
    # One process, one GPU: with several, transformers would use DataParallel, which changes what the head's hook sees.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _greater_is_better(settings: TrainingConfig, validation: Validation | None) -> bool | None:
    """Direction of the metric that chooses the checkpoint; checks the names of all validation metrics in use."""
    if settings.evaluate_every and validation is None:
        raise ConfigError(
            f"training.evaluate_every is {settings.evaluate_every}, but this training has no validation metrics to "
            "compute. Give train() a validation, or leave training.evaluate_every out."
        )
    names = [rule.metric for rule in settings.stop] + ([settings.best_metric] if settings.best_metric else [])
    known = validation.greater_is_better if validation else {}
    for name in names:
        if name not in known:
            raise ConfigError(unknown_name("validation metric", name, known))
    wrong = wrong_peaks(settings.stop, known)
    if wrong:
        raise ConfigError(" ".join(wrong))
    return known[settings.best_metric] if settings.best_metric else None
