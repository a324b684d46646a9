"""What a run measures of its models, and finished runs that are measured again with other settings."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stable_forgetting import processes
from stable_forgetting.config import RunConfig
from stable_forgetting.evaluation import ModelScores, evaluate_scores, verdicts
from stable_forgetting.evaluation.values import Definitions, ModelValues
from stable_forgetting.models.load import LoadedModel, model_sha256
from stable_forgetting.records import MeasuredAgain, ModelEvaluation, ModelRole, RunRecord, write_record
from stable_forgetting.runs.adapted import load_adapted
from stable_forgetting.runs.cache import content_hash
from stable_forgetting.runs.directory import RunDirectory
from stable_forgetting.runs.environment import Clock, environment
from stable_forgetting.runs.models import RunModels
from stable_forgetting.runs.outcomes import class_accuracies, class_names, example_outcomes
from stable_forgetting.runs.retain_log import logged_retain_values
from stable_forgetting.runs.scoring import (
    decisive,
    kept_of,
    kept_scores,
    measured_sets,
    reference_scores,
    score,
    write_scores,
)

Measured = ModelScores | ModelValues
"""Values by example, measured here or read from a log."""

logger = logging.getLogger(__name__)


def reference_models(
    models: RunModels, directory: RunDirectory, clock: Clock
) -> tuple[LoadedModel, dict[ModelRole, str], dict[ModelRole, ModelScores]]:
    """Measure retain and base model.

    Returns:
        The base model; hash and values of each of the two that is there.

    Raises:
        RunDirectoryError: The run was begun on another base model.
    """
    identities: dict[ModelRole, str] = {}
    scores: dict[ModelRole, ModelScores] = {}
    with clock.phase("retain model"):
        if (retain := models.retain()) is not None:
            identities["retain"] = model_sha256(retain.model)
            scores["retain"] = _reference(retain, "retain", models)
            del retain
    with clock.phase("base model"):
        base = models.base()
        identities["base"] = model_sha256(base.model)
        directory.claim_base(processes.agree(identities["base"]))
        scores["base"] = _reference(base, "base", models)
    return base, identities, scores


def _reference(loaded: LoadedModel, role: ModelRole, models: RunModels) -> ModelScores:
    """Values of a base or retain model: those of the main process, because forget terms are made of them."""
    settings = models.config.evaluation
    return processes.agree(reference_scores(loaded, models.sets, role, settings=settings, progress=models.progress))


def unlearned_model(model: Any, base: LoadedModel, directory: RunDirectory) -> LoadedModel:
    """The base model with the run's adapter, and where it came from in words."""
    model.eval()
    return LoadedModel(model, base.task, f"{base.source}, unlearned with {directory.adapter.name}/")


def scores_of_unlearned(unlearned: LoadedModel, models: RunModels, path: Path) -> ModelScores:
    """Values of the unlearned model, read from a file or measured and written there."""
    sets, settings, progress = models.sets, models.config.evaluation, models.progress
    return kept_scores(
        path,
        measured_sets(sets, settings),
        lambda part: score(unlearned, sets, "unlearned", settings=settings, progress=progress, path=part),
    )


def with_metrics(
    record: RunRecord, models: RunModels, scores: Mapping[ModelRole, ModelScores], directory: RunDirectory
) -> RunRecord:
    """The record with everything that follows from the per-example values."""
    config = models.config
    settings, sets = config.evaluation, measured_sets(models.sets, config.evaluation)
    retain = logged_retain_values(config) or scores.get("retain")
    measured: Mapping[ModelRole, Measured] = scores if retain is None else {**scores, "retain": retain}
    evaluations = {role: _evaluate(found, retain, scores["base"], config) for role, found in measured.items()}
    return record.model_copy(
        update={
            "verdicts": verdicts(
                evaluations["base"], evaluations["unlearned"], evaluations.get("retain"), num_classes=models.classes
            ),
            "evaluations": [evaluations[role] for role in ("base", "unlearned", "retain") if role in evaluations],
            "examples": example_outcomes(sets, scores, settings.num_examples),
            "class_names": class_names(models.sets),
            "class_accuracies": class_accuracies(models.sets, scores),
            "per_example_paths": {role: str(directory.scores(role).relative_to(directory.path)) for role in scores},
        }
    )


def _evaluate(scores: Measured, retain: Measured | None, base: ModelScores, config: RunConfig) -> ModelEvaluation:
    settings = config.evaluation
    return evaluate_scores(
        scores,
        retain,
        base_scores=base,
        num_resamples=settings.num_resamples,
        seed=settings.seed,
        definitions=Definitions(compat=settings.compat),
    )


def write_values(directory: RunDirectory, scores: Mapping[ModelRole, ModelScores]) -> None:
    """Write the values that a record is made from, beside it."""
    if processes.is_main_process():
        for role, found in scores.items():
            write_scores(directory.scores(role), found)


def measure_again(
    record: RunRecord, models: RunModels, directory: RunDirectory, given: Mapping[str, Any], notes: Sequence[str]
) -> RunRecord:
    """Measure a finished run with the settings of `models`, and replace its values and record by what comes out.

    Until all of it is measured the run stays as it was; what an interruption leaves is gone on from.

    Args:
        record: Of the finished run.
        models: The models of the run, with the new settings.
        directory: Of the run; its adapter is what is measured.
        given: The new settings as the user gave them.
        notes: What a reader has to know of the data; if there is nothing, what the record says stays.

    Raises:
        StableForgettingError: The adapter is gone or damaged, or the model cannot be measured so; all is as before.
    """
    config, clock = models.config, Clock()
    differences = directory.differences(record, config)
    logger.warning("The run in '%s' is measured again, not trained again (%s).", directory.path, differences)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    again = MeasuredAgain(**environment().model_dump(), created=now)
    base, identities, scores = reference_models(models, directory, clock)
    unlearned = unlearned_model(load_adapted(base, directory.adapter).model, base, directory)
    with clock.phase("evaluation"):
        scores["unlearned"] = _scores_again(record, unlearned, models, directory)
        found = with_metrics(record, models, scores, directory)
    found = found.model_copy(
        update={
            "config": config.model_dump(mode="json"),
            "given": dict(given),
            "notes": list(notes) or record.notes,
            "models": identities,
            "measured_again": again,
            "timings": record.timings | clock.seconds,
        }
    )
    if processes.is_main_process():
        with directory.replaced(config):
            write_values(directory, scores)
            write_record(found, directory.path)
        for path in directory.path.glob("per_example/again.*"):
            path.unlink()
    processes.wait_for_all()
    return processes.agree(found)


def _scores_again(record: RunRecord, unlearned: LoadedModel, models: RunModels, directory: RunDirectory) -> ModelScores:
    """Values of the unlearned model: those that are there, if they would be the same, or measured beside them."""
    now, before = models.config.evaluation, RunConfig.model_validate(record.config)
    sets, there = measured_sets(models.sets, now), directory.scores("unlearned")
    # After an interruption the values that are there may be of other settings than the record.
    is_same = directory.is_measured(record, before) and decisive(now) == decisive(before.evaluation)
    kept = processes.agree(kept_of(there, sets) if is_same else None)
    if kept is not None:
        return kept
    return scores_of_unlearned(unlearned, models, there.with_name(f"again.{content_hash(decisive(now))}.json"))
