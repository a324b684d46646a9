"""One run, from a config to a record: the place where all parts meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stable_forgetting import processes
from stable_forgetting.adapters import attach, certificate
from stable_forgetting.config import RunConfig
from stable_forgetting.data.ragged import RowValues
from stable_forgetting.errors import ConfigError, StableForgettingError
from stable_forgetting.evaluation import ModelScores
from stable_forgetting.models.load import LoadedModel, save_model
from stable_forgetting.objectives import Objective
from stable_forgetting.progress import Progress, SilentProgress
from stable_forgetting.records import ModelRole, RunRecord, finetuning_phase, write_record
from stable_forgetting.runs.adapter import bounded_config
from stable_forgetting.runs.cache import alone_in
from stable_forgetting.runs.check import (
    check_names,
    check_other_models,
    check_texts,
    configured_objective,
)
from stable_forgetting.runs.directory import RunDirectory
from stable_forgetting.runs.environment import Clock, environment, peak_memory_bytes, reset_peak_memory
from stable_forgetting.runs.files import gone_models, local_files
from stable_forgetting.runs.measuring import (
    measure_again,
    reference_models,
    scores_of_unlearned,
    unlearned_model,
    with_metrics,
    write_values,
)
from stable_forgetting.runs.models import RunModels
from stable_forgetting.runs.outcomes import (
    adapter_summary,
    layer_certificates,
)
from stable_forgetting.runs.preparation import prepare
from stable_forgetting.runs.saved_adapter import save_adapter
from stable_forgetting.runs.sets import Sets
from stable_forgetting.runs.target_values import constants_of_run
from stable_forgetting.runs.teaching import check_teaching
from stable_forgetting.runs.validation import check_validation, checkpoint_choice, validation_of_run
from stable_forgetting.training import Sets as TrainingSets
from stable_forgetting.training import TrainingOutcome, train


def run(
    config: RunConfig,
    run_dir: Path,
    *,
    given: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    resume: bool = False,
    progress: Progress | None = None,
) -> RunRecord:
    """Unlearn as a config says, and leave the adapter, the values, and the record of how it went.

    Several processes, started by `accelerate launch`, call it alike; the main one writes, all return the same record.

    Args:
        config: The run's config.
        run_dir: Where everything is written; see `RunDirectory`.
        given: The settings as the user gave them, kept in the record.
        notes: What a reader of the record has to know of the data, one sentence each.
        resume: Whether to continue what is in `run_dir`. A run that was killed gives the same adapter as one that was
            not; a finished one gives its record, if its data and models are still the same, or is measured as said now.
        progress: Where progress is shown.

    Returns:
        The record, also written to `run_dir`.

    Raises:
        StableForgettingError: The user's mistakes, before anything is written; later ones leave a failed record.
    """
    processes.join()
    with alone_in(run_dir):
        directory = RunDirectory(run_dir)
        return _run(config, directory, given or {}, notes, progress or SilentProgress(), resume=resume)


def _run(
    config: RunConfig,
    directory: RunDirectory,
    given: Mapping[str, Any],
    notes: Sequence[str],
    progress: Progress,
    *,
    resume: bool,
) -> RunRecord:
    directory.check(config, resume=resume)
    notes = [*notes, *_notes_of(config)]
    finished, files = directory.finished_record(), local_files(config)
    is_measured = finished is not None and directory.is_measured(finished, config)
    if finished is not None and is_measured and directory.has_files(files, gone_models(config)):
        return finished
    check_names(config)
    _check_merge(config)
    objective = configured_objective(config)
    models = prepare(config, progress)
    check_teaching(models.loaded.model, config.model.finetune or [])
    check_other_models(config, models.sets, models.loaded)
    check_texts(models.loaded, models.sets, config)
    check_validation(models.sets, config)
    inputs = models.inputs()
    processes.wait_for_all()  # every process has looked at the directory before one writes to it
    directory.claim(config, inputs, files)
    if finished is not None:
        return finished if is_measured else measure_again(finished, models, directory, given, notes)
    start = _new_record(config, given, notes, models.sets)
    try:
        record = processes.agree(_unlearn_and_measure(models, objective, directory, start, resume=resume))
    except Exception as error:
        problem = str(error) if isinstance(error, StableForgettingError) else f"{type(error).__name__}: {error}"
        _write_record(start.model_copy(update={"status": "failed", "error": problem}), directory.path)
        raise
    _write_record(record, directory.path)
    processes.wait_for_all()
    return record


def _write_record(record: RunRecord, run_dir: Path) -> None:
    if processes.is_main_process():
        write_record(record, run_dir)


def _notes_of(config: RunConfig) -> list[str]:
    """What the settings make of the data."""
    if config.objective.unseen_weight == 0 or config.data.targets is not None:
        return []
    return [
        "The unseen term was trained on the holdout set, with which membership attacks compare, so that their "
        "values tell less. Give other unseen examples in data.targets."
    ]


def _check_merge(config: RunConfig) -> None:
    if config.merge and processes.shards_models():
        raise ConfigError(
            "merge is true, but each process holds only its share of the weights. Set it to false, and merge the "
            "adapter afterwards in a single process: `forget merge DIR --out FOLDER`."
        )


def _new_record(config: RunConfig, given: Mapping[str, Any], notes: Sequence[str], sets: Sets) -> RunRecord:
    return RunRecord(
        name=config.name,
        task=config.task,
        status="finished",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        config=config.model_dump(mode="json"),
        given=dict(given),
        notes=list(notes),
        environment=environment(),
        sets=sets.identities(),
    )


def _unlearn_and_measure(
    models: RunModels, objective: Objective, directory: RunDirectory, start: RunRecord, *, resume: bool
) -> RunRecord:
    config, sets, clock = models.config, models.sets, Clock()
    base, identities, scores = reference_models(models, directory, clock)
    with clock.phase("base model"):
        constants = constants_of_run(models, objective, base, scores["base"], identities["base"])
    reset_peak_memory()
    unlearned, outcome = _train_adapter(base, models, objective, scores, constants, directory, resume)
    if outcome.seconds is not None:
        clock.seconds["unlearning"] = outcome.seconds
    save_adapter(unlearned.model, directory.adapter, base=base.source, config=config)
    peak_memory = peak_memory_bytes()
    with clock.phase("evaluation"):
        scores["unlearned"] = scores_of_unlearned(unlearned, models, directory.scores("unlearned"))
        measured = with_metrics(start, models, scores, directory)
    write_values(directory, scores)
    summary = adapter_summary(unlearned.model)
    checked = layer_certificates(certificate(unlearned.model))
    if config.merge:
        with clock.phase("merging"):
            merged = LoadedModel(unlearned.model.merge_and_unload(), base.task, base.source)
            if processes.is_main_process():
                save_model(merged, directory.merged)
    return measured.model_copy(
        update={
            "status": "stopped" if outcome.stopped else "finished",
            "stopped": outcome.stopped,
            "models": identities,
            "adapter": summary,
            "choice": checkpoint_choice(sets, config),
            "history": outcome.history,
            "kept_step": outcome.num_steps,
            "certificate": checked,
            "timings": clock.seconds | {finetuning_phase(role): s for role, s in models.seconds.items()},
            "peak_memory_bytes": peak_memory,
        }
    )


def _train_adapter(
    base: LoadedModel,
    models: RunModels,
    objective: Objective,
    scores: Mapping[ModelRole, ModelScores],
    constants: Mapping[str, RowValues],
    directory: RunDirectory,
    resume: bool,
) -> tuple[LoadedModel, TrainingOutcome]:
    config, sets = models.config, models.sets
    model = attach(base.model, bounded_config(config.adapter))
    # A trunk's kept outputs are those of a pass in the model's own precision.
    task = base.task.with_trunk(None) if config.training.bf16 else base.task
    outcome = train(
        model,
        task,
        objective,
        TrainingSets(sets.forget, sets.retain, constants, sets.unseen),
        settings=config.training,
        output_dir=directory.checkpoints,
        validation=validation_of_run(base.task, sets, config, scores),
        resume=resume,
        progress=models.progress,
    )
    return unlearned_model(model, base, directory), outcome
