"""What the commands do: read, call the library, show."""

from __future__ import annotations

import logging
import math
import shutil
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
import typer
from rich.console import Console

from stable_forgetting import processes
from stable_forgetting.bench import (
    PROBLEMS,
    Comparison,
    load_comparison,
    make_comparison,
    problem_path,
    run_comparison,
)
from stable_forgetting.cli.places import check_file, check_new_folder, check_place
from stable_forgetting.cli.progress import Notes, RichProgress
from stable_forgetting.cli.shown import say, show_tables, tell
from stable_forgetting.config import FinetuneConfig, RunConfig, load_config, parse_change
from stable_forgetting.config.benchmark_options import ClassDeletionOptions, TofuOptions
from stable_forgetting.errors import ConfigError, ModelError, RunDirectoryError
from stable_forgetting.evaluation import ModelScores, evaluate_scores
from stable_forgetting.evaluation.values import Definitions, ModelValues
from stable_forgetting.models.load import save_model, weights_sha256
from stable_forgetting.records import RECORD_NAME, ModelRole, RunRecord, read_record, write_text
from stable_forgetting.report import render_table, write_figures, write_report
from stable_forgetting.runs import RunDirectory, prepare
from stable_forgetting.runs import run as run_unlearning
from stable_forgetting.runs.adapted import load_adapted, merge_adapter, read_adapter_config
from stable_forgetting.runs.cache import alone_in, content_hash
from stable_forgetting.runs.check import check_config, check_other_models, check_texts
from stable_forgetting.runs.memory import Devices, Sharding
from stable_forgetting.runs.retain_log import logged_retain_values
from stable_forgetting.runs.scoring import score

console = Console()
logger = logging.getLogger(__name__)

REFUSED = 2
"""Exit code of a command that found the user's mistakes."""


def _quiet() -> None:
    """Leave the terminal to our own bars and sentences, of the main process only."""
    processes.join()
    console.quiet = not processes.is_main_process()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of each attempt to reach the hub
    ours = logging.getLogger("stable_forgetting")
    # A library that logs without a logger gives the root one a handler, which would show every note again.
    ours.handlers, ours.propagate = [Notes(console)], False
    warnings.filterwarnings("ignore", module="(transformers|peft|accelerate|torch)")


def _read(path: Path, changes: Sequence[str]) -> tuple[RunConfig, dict[str, Any]]:
    _quiet()
    return load_config(path, [parse_change(change) for change in changes])


def run_config(path: Path, changes: Sequence[str], out: Path | None, *, resume: bool) -> None:
    """`forget run`."""
    config, given = _read(path, changes)
    run_dir = out or Path("runs") / config.name
    check_place(run_dir / "report.html" if run_dir.is_dir() else run_dir)
    start = datetime.now(UTC)
    record = run_unlearning(config, run_dir, given=given, resume=resume, progress=RichProgress(console))
    directory = RunDirectory(run_dir)
    if processes.is_main_process():
        write_report([record], directory.report)
    if _is_earlier(record, start):
        tell(console, f"Nothing was run: this run of {_when(record)} was finished before.")
    _show([record])
    tell(console, f"Adapter: {directory.adapter}\nReport:  {directory.report}")


def compare(path: Path, changes: Sequence[str], out: Path | None) -> None:
    """`forget compare`."""
    _quiet()
    comparison = load_comparison(path, [parse_change(change) for change in changes])
    _end(_compare(comparison, out or Path("runs") / path.stem))


def run_benchmark(options: TofuOptions | ClassDeletionOptions, out: Path) -> None:
    """`forget bench`."""
    _quiet()
    check_file(out / "report.html")
    _end(_compare(make_comparison(options, out, progress=RichProgress(console)), out))


def demo(problem: str, out: Path) -> None:
    """`forget demo`."""
    _quiet()
    torch.set_num_threads(1)  # these models are too small to share, and one thread gives the same bits everywhere
    names = list(PROBLEMS) if problem == "all" else [problem]
    records = []
    for name in names:
        console.rule(f"{name}", align="left")
        records += _compare(load_comparison(problem_path(name)), out / name)
    if len(names) > 1:
        write_report(records, out / "report.html")
        tell(console, f"Both problems on one page: {out / 'report.html'}")
    _end(records)


def _compare(comparison: Comparison, out_dir: Path) -> list[RunRecord]:
    check_file(out_dir / "report.html")
    for note in comparison.notes:
        tell(console, f"Note: {note}")
    records, start = [], datetime.now(UTC)
    try:
        for record in run_comparison(comparison, out_dir, progress=RichProgress(console)):
            records.append(record)
            write_report([record], RunDirectory(out_dir / record.name).report)
            before = f"finished before ({_when(record)}). " if _is_earlier(record, start) else ""
            found = " ".join(record.verdicts) or record.error or record.status
            tell(console, f"{record.name}: {before}{found}")
    finally:  # also what is there when a method cannot begin
        if records:
            write_report([*records, *_others_in(out_dir, records)], out_dir / "report.html")
            _show(records)
            tell(console, f"Report: {out_dir / 'report.html'}")
    if all(_is_earlier(record, start) for record in records):
        tell(console, f"Nothing was run: all of it ({len(records)}) was finished before, in '{out_dir}'.")
    return records


def _others_in(out_dir: Path, records: Sequence[RunRecord]) -> list[RunRecord]:
    """Records of other runs in the folder, which its page is not to lose: of earlier commands, or not come to yet."""
    known, found = {record.name for record in records}, []
    for path in sorted(out_dir.glob(f"*/{RECORD_NAME}")):
        if path.parent.name not in known:
            try:
                found.append(read_record(path.parent))
            except RunDirectoryError as error:
                logger.warning("%s It is left out of the report.", error)
    return found


def _end(records: Sequence[RunRecord]) -> None:
    """Exit code 1 if a method has no result, so that scripts need not read the report to know."""
    if any(record.status == "failed" for record in records):
        raise typer.Exit(1)


def _is_earlier(record: RunRecord, start: datetime) -> bool:
    """Whether a run began before this command did, which then only read its record."""
    return _began(record) < start.replace(microsecond=0)


def _began(record: RunRecord) -> datetime:
    """When the run, or its last measuring, began."""
    return datetime.fromisoformat((record.measured_again or record).created)


def _when(record: RunRecord) -> str:
    return f"{_began(record):%Y-%m-%d %H:%M} UTC"


def _show(records: Sequence[RunRecord]) -> None:
    for table in render_table(records):
        console.print(table)
    if len(records) == 1:
        for sentence in [*records[0].verdicts, records[0].stopped and f"Stopped early: {records[0].stopped}"]:
            if sentence:
                tell(console, sentence)


def check(path: Path, changes: Sequence[str], *, gpus: int, sharding: Sharding, gpu_memory_gib: float | None) -> None:
    """`forget check`."""
    from stable_forgetting.cli.listings import check_tables

    config, _ = _read(path, changes)
    if gpu_memory_gib is not None and not 0 < gpu_memory_gib < math.inf:
        raise ConfigError(f"--gpu-memory is {gpu_memory_gib}; give the GiB of one GPU, more than 0.")
    memory_bytes = None if gpu_memory_gib is None else int(gpu_memory_gib * 2**30)
    found = check_config(config, Devices(gpus, sharding, memory_bytes))
    for problem in found.problems:
        say(problem)
    show_tables(console, check_tables(found))
    for note in found.notes:
        tell(console, f"Note: {note}")
    if found.problems:
        raise typer.Exit(REFUSED)
    tell(console, "No problems found.")


def finetune(path: Path, changes: Sequence[str], out: Path, *, on: str) -> None:
    """`forget finetune`."""
    config, _ = _read(path, changes)
    trainings = config.model.finetune
    if trainings is None:
        raise ConfigError(f"The config '{path}' has no section model.finetune, which says how to finetune. Add it.")
    with alone_in(out):
        check_new_folder(out)
        _finetune(config, trainings, out, on)
    tell(console, f"Model: {out}")


def _finetune(config: RunConfig, trainings: Sequence[FinetuneConfig], out: Path, on: str) -> None:
    models = prepare(config, RichProgress(console))
    check_texts(models.loaded, models.sets, config)
    taught = models.sets.retain if on == "retain" else models.taught_to_base
    weights = weights_sha256(models.loaded.model)
    settings = [training.model_dump() for training in trainings]
    lesson = content_hash({"model": weights, "taught": taught.taught_sha256, "finetune": settings, "on": on})
    work_dir = out.with_name(f".{out.name}.{lesson}.training")  # only an interrupted run of the same is resumed
    taught_model, _ = models.teach(taught, trainings, work_dir, "finetuning")
    save_model(taught_model, out)
    shutil.rmtree(work_dir, ignore_errors=True)


def evaluate(
    path: Path,
    changes: Sequence[str],
    *,
    model: str | None,
    adapter: Path | None,
    retain_model: str | None,
    out: Path | None,
) -> None:
    """`forget eval`."""
    from stable_forgetting.cli.listings import metric_table

    if out is not None:
        check_file(out)
    if adapter is not None:
        read_adapter_config(adapter)
    config, _ = _read(path, changes)
    if retain_model is not None:
        config = config.model_copy(update={"retain_model": retain_model, "retain_log": None})
    if model is not None:
        config = config.model_copy(update={"base_model": model})
    progress, settings = RichProgress(console), config.evaluation
    models = prepare(config, progress)
    check_other_models(config, models.sets, models.loaded)
    check_texts(models.loaded, models.sets, config)
    reference = models.retain()
    retain_scores: ModelScores | ModelValues | None = logged_retain_values(config)
    if reference is not None:
        retain_scores = score(reference, models.sets, "retain", settings=settings, progress=progress)
    loaded = models.base()
    if adapter is not None:
        loaded = load_adapted(loaded, adapter)
    role: ModelRole = "base" if adapter is None else "unlearned"
    own = score(loaded, models.sets, role, settings=settings, progress=progress)
    found = evaluate_scores(
        own,
        retain_scores,
        num_resamples=settings.num_resamples,
        seed=settings.seed,
        definitions=Definitions(compat=settings.compat),
    )
    show_tables(console, [metric_table(found)])
    if out is not None:
        write_text(out, found.model_dump_json(indent=1))


def report(run_dirs: Sequence[Path], out: Path | None, figures: Path | None) -> None:
    """`forget report`."""
    records = [read_record(run_dir) for run_dir in run_dirs]
    page = out or (RunDirectory(run_dirs[0]).report if len(run_dirs) == 1 else Path("report.html"))
    check_file(page)
    if figures is not None:
        check_place(figures / "figure.svg", "--figures")
    write_report(records, page)
    tell(console, f"Report:  {page}")
    if figures is not None:
        tell(console, f"Figures: {len(write_figures(records, figures))} in {figures}")


def merge(run_dir: Path, out: Path, base: str | None) -> None:
    """`forget merge`."""
    _quiet()
    check_new_folder(out)
    if not run_dir.is_dir():
        raise ModelError(f"No directory at '{run_dir}'. Give a run directory or the folder of an adapter.")
    merge_adapter(run_dir, out, base=base, progress=RichProgress(console))
    tell(console, f"Merged model: {out}")
