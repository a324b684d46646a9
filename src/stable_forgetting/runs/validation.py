"""What is measured during training, and whether it can be."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from stable_forgetting.config import RunConfig, TrainingConfig
from stable_forgetting.errors import ConfigError, unknown_name
from stable_forgetting.evaluation import (
    ModelScores,
    ValidationData,
    validation_data,
    validation_metrics,
    without_alternatives,
)
from stable_forgetting.evaluation.metrics_validation import (
    VALIDATED_SETS,
    VALIDATION_METRICS,
    VALIDATION_NAMES,
    columns_of_examples,
    columns_of_values,
    missing,
    reads_alternatives,
)
from stable_forgetting.evaluation.scores import TaskName
from stable_forgetting.evaluation.values import ModelValues, SetValues, values_of
from stable_forgetting.models.tasks import Task
from stable_forgetting.records import CheckpointChoice, ModelRole
from stable_forgetting.runs.retain_log import logged_retain_values
from stable_forgetting.runs.scoring import measured_sets, measuring_task, merged_adapters
from stable_forgetting.runs.sets import Sets
from stable_forgetting.training import Validation
from stable_forgetting.training.stop_rules import wrong_peaks


def named_metrics(training: TrainingConfig) -> list[str]:
    """The validation metrics that stop rules and the best checkpoint go by, each once."""
    names = [rule.metric for rule in training.stop] + ([training.best_metric] if training.best_metric else [])
    return list(dict.fromkeys(names))


def wrong_metrics(training: TrainingConfig, task: TaskName) -> list[str]:
    """One sentence for each name that no metric of the task has, and for each peak of one that should fall."""
    known = VALIDATION_NAMES[task]
    unknown = [unknown_name("validation metric", name, known) for name in named_metrics(training) if name not in known]
    return unknown + wrong_peaks(training.stop, {name: VALIDATION_METRICS[name].greater_is_better for name in known})


def checkpoint_choice(sets: Sets, config: RunConfig) -> CheckpointChoice | None:
    """By what a run's checkpoint is chosen; None without a best metric and a rule that waits for a peak."""
    training, settings = config.training, config.evaluation
    metrics = [rule.metric for rule in training.stop if rule.peak is not None]
    metrics = list(dict.fromkeys(([training.best_metric] if training.best_metric else []) + metrics))
    measured = measured_sets(sets, settings).by_name
    counts = {name: min(settings.validation_size, len(measured[name])) for name in VALIDATED_SETS}
    return CheckpointChoice(metrics=metrics, counts=counts) if metrics else None


def check_validation(sets: Sets, config: RunConfig) -> None:
    """Check that the metrics that decide something in the training will be there.

    Raises:
        ConfigError: One will not, and why.
        DataError: The log of a retain model is missing or no such log.
    """
    measured = measured_sets(sets, config.evaluation).by_name
    own = {name: columns_of_examples(measured[name]) for name in VALIDATED_SETS}
    logged = logged_retain_values(config)
    if logged is not None:
        retain = {name: columns_of_values(values) for name, values in logged.sets.items()}
    else:
        retain = own if config.retain_model is not None or config.model.finetune else {}
    for name in named_metrics(config.training):
        reason = missing(name, own, retain) if name in VALIDATION_NAMES[config.task] else None
        if reason is not None:
            raise _not_available(name, reason)


def _not_available(name: str, reason: str) -> ConfigError:
    return ConfigError(
        f"The validation metric '{name}' is not available, because {reason}. Give that, or name another metric in "
        "training.stop and training.best_metric."
    )


def validation_of_run(
    task: Task, sets: Sets, config: RunConfig, scores: Mapping[ModelRole, ModelScores]
) -> Validation | None:
    """What is measured during the training of a run; None if it has no validations.

    Args:
        task: The model's task.
        sets: The sets of the run.
        config: Its config.
        scores: Values of the base model, and of the retain model if there is one and no log of it is given.

    Raises:
        ConfigError: A metric that decides something is not available.
        DataError: The retain model's log is of other examples.
    """
    if config.training.evaluate_every is None:
        return None
    settings = config.evaluation
    data = validation_data(
        measured_sets(sets, settings).by_name,
        size=settings.validation_size,
        seed=settings.seed,
        base=values_of(scores["base"]).sets,
        retain=_retain_values(logged_retain_values(config), scores.get("retain")),
    )
    return validation_on(measuring_task(task, settings), data, config.training, settings.batch_size)


def _retain_values(logged: ModelValues | None, scores: ModelScores | None) -> Mapping[str, SetValues] | None:
    if logged is not None:
        return logged.sets
    return None if scores is None else values_of(scores).sets


def validation_on(task: Task, data: ValidationData, training: TrainingConfig, batch_size: int) -> Validation:
    """Measure models in training, with their adapters merged meanwhile, as at the end.

    If metrics decide something and none of them is made from paraphrased and wrong answers, these are not read.

    Args:
        task: The model's task.
        data: What can be measured.
        training: Says which metrics decide something.
        batch_size: Answers per forward pass.

    Raises:
        ConfigError: A metric that decides something is not available.
    """
    wrong = wrong_metrics(training, task.name)
    if wrong:
        raise ConfigError(" ".join(wrong))
    deciding = named_metrics(training)
    for name in deciding:
        if name not in data.names:
            raise _not_available(name, _why_not(name, data))
    if deciding and not any(reads_alternatives(name) for name in deciding):
        data = without_alternatives(data)

    def measure(model: nn.Module) -> dict[str, float]:
        with merged_adapters(model):
            return validation_metrics(model, task, data, batch_size)

    return Validation(measure, {name: VALIDATION_METRICS[name].greater_is_better for name in data.names})


def _why_not(name: str, data: ValidationData) -> str:
    of_retain = {set_name: columns_of_values(values) for set_name, values in data.retain.items()}
    reason = missing(name, data.columns, of_retain)
    return reason or "the base model's utility on the validation examples, which it is relative to, is 0"
