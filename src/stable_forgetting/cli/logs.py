"""`forget score` and `forget export`: metrics from logs, and logs of runs in a peer's format; no model is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from rich.console import Console

from stable_forgetting.cli.listings import metric_table
from stable_forgetting.cli.places import check_file
from stable_forgetting.cli.shown import show_tables, tell
from stable_forgetting.errors import ConfigError, DataError
from stable_forgetting.evaluation.metrics import METRICS
from stable_forgetting.evaluation.open_unlearning import read_log
from stable_forgetting.evaluation.open_unlearning_export import write_log
from stable_forgetting.evaluation.suite import evaluate_scores
from stable_forgetting.evaluation.text import Compat
from stable_forgetting.evaluation.tofu import Aggregation
from stable_forgetting.evaluation.values import Definitions, ModelValues
from stable_forgetting.records import ModelEvaluation, ModelRole
from stable_forgetting.runs import RunDirectory
from stable_forgetting.runs.retain_log import log_sha256

console = Console()

_TOFU_SETS = frozenset({"forget", "retain", "real_authors", "world_facts", "holdout"})
_NUM_RESAMPLES = 1000
_SEED = 0


def score_tofu(
    log: Path, retain_log: Path | None, *, truth_ratio: Aggregation, compat: Compat | None, as_json: bool
) -> None:
    """`forget score tofu`."""
    own, base, place = _read(log, "unlearned"), _read_base(log), _retain_place(log, retain_log)
    retain = _read_retain(place)
    compat = compat or _compat_of(log)
    definitions = Definitions(truth_ratio=truth_ratio, compat=compat)
    evaluation = _evaluate(own, retain, base, definitions)
    reference = None if retain is None else _evaluate(retain, None, base, definitions)
    if as_json:
        found = {
            "log": str(log),
            "retain_log": None if place is None else str(place),
            "truth_ratio": truth_ratio,
            "compat": compat,
            "examples": {name: values.size for name, values in own.sets.items()},
            "metrics": [metric.model_dump() for metric in evaluation.metrics],
            "retain_metrics": None if reference is None else [metric.model_dump() for metric in reference.metrics],
        }
        typer.echo(json.dumps(found, indent=1))
        return
    examples = ", ".join(f"{name} {values.size}" for name, values in own.sets.items())
    tell(console, f"Truth ratio: {truth_ratio}. Protocol: {compat or 'this package'}. Examples: {examples}.")
    show_tables(console, [metric_table(evaluation, reference)])


def export(run_dir: Path, role: ModelRole, out: Path, retain_log: Path | None) -> None:
    """`forget export`."""
    if role == "retain" and retain_log is not None:
        raise ConfigError(
            "--retain-log is what a model is compared with, but with --model retain it is the retain model that is "
            "written. Leave one of the two out."
        )
    check_file(out / "TOFU_EVAL.json")
    values = _read(run_dir, role)
    retain = None if role == "retain" else _read_retain(_retain_place(run_dir, retain_log))
    for path in write_log(values, out, retain):
        tell(console, f"Written: {path}")
    if role != "retain" and retain is None:
        tell(console, "Left out: forget_quality, privleak, mia_reference. They need a retain model; give --retain-log.")


def _read(path: Path, role: ModelRole) -> ModelValues:
    """Values of a log, of a file of values, or of a run directory's model of that role."""
    file = RunDirectory(path).scores(role) if path.is_dir() else path
    if not file.is_file():
        what = (
            f"'{path}' has no values of its {role} model ({file.name})"
            if path.is_dir()
            else f"There is no file '{path}'"
        )
        raise DataError(f"{what}. Give a TOFU_EVAL.json or the directory of a finished run.")
    values = read_log(file, role)
    if values.task != "language":
        raise DataError(f"'{path}' holds values of an image model. Give a log or a run of a language model.")
    return values


def _read_retain(place: Path | None) -> ModelValues | None:
    return None if place is None else _read(place, "retain")


def _retain_place(log: Path, retain_log: Path | None) -> Path | None:
    """Where the retain model's values are: the log that is given, else what a run was compared with."""
    if retain_log is not None or not log.is_dir():
        return retain_log
    directory = RunDirectory(log)
    if directory.scores("retain").is_file():
        return log
    record = directory.finished_record()
    used = None if record is None else record.config.get("retain_log")
    if used is None:
        return None
    place = Path(used).expanduser().absolute()
    if not place.is_file():
        raise DataError(
            f"The run '{log}' was compared with the log '{used}', but there is no file '{place}'. Give it with "
            "--retain-log."
        )
    if directory.known_input("retain log") not in (None, log_sha256(place)):
        raise DataError(
            f"The log '{place}' has changed since the run '{log}' was compared with it. Give the one to compare "
            "with by --retain-log."
        )
    return place


def _compat_of(log: Path) -> Compat | None:
    """The protocol that a run was measured with; a log does not say."""
    record = RunDirectory(log).finished_record() if log.is_dir() else None
    return None if record is None else record.config.get("evaluation", {}).get("compat")


def _read_base(log: Path) -> ModelValues | None:
    """Values of a run's base model, where the run left them; a log has none."""
    return _read(log, "base") if log.is_dir() and RunDirectory(log).scores("base").is_file() else None


def _evaluate(
    values: ModelValues, retain: ModelValues | None, base: ModelValues | None, definitions: Definitions
) -> ModelEvaluation:
    found = evaluate_scores(
        values, retain, num_resamples=_NUM_RESAMPLES, seed=_SEED, definitions=definitions, base_scores=base
    )
    of_tofu = [
        metric for metric in found.metrics if {need.set_name for need in METRICS[metric.name].needs} <= _TOFU_SETS
    ]
    return found.model_copy(update={"metrics": of_tofu})
