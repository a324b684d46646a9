"""What a run leaves behind: one versioned, typed record that every table, plot and page is made from.

A record never holds a stand-in for a number that could not be computed: such a metric has ``value=None`` and the
``reason``. Records are read and written as JSON, and written to a temporary name first.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stable_forgetting.errors import RunDirectoryError

FORMAT = 1
"""Number of the record's format; it grows whenever an old reader would misunderstand a new record."""

RECORD_NAME = "record.json"

Direction = Literal["higher", "lower", "retain"]
"""Which way is better: more, less, or close to the retain model's value."""

ModelRole = Literal["base", "unlearned", "retain"]
"""Base model (before), unlearned model (after), retain model (never saw the forget set)."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")


class MetricValue(_Record):
    """One metric of one model: a value with its count and interval, or the reason why there is none."""

    name: str
    value: float | None = None
    reason: str | None = None
    """Why the metric is not available; None when it is."""
    count: int | None = None
    """Number of examples behind the value."""
    low: float | None = None
    high: float | None = None
    """95 % interval over the examples: Wilson's of a share, else a bootstrap's."""
    direction: Direction
    details: dict[str, float] = Field(default_factory=dict)
    """Further numbers of the same test, such as the KS statistic D beside its p-value."""


class ModelEvaluation(_Record):
    """All metrics of one of the three models."""

    role: ModelRole
    source: str
    """Where the model came from, in words: a name, a path, or how it was made."""
    metrics: list[MetricValue]

    def metric(self, name: str) -> MetricValue | None:
        """The metric of that name, or None if this model has none."""
        return next((metric for metric in self.metrics if metric.name == name), None)


class StepRecord(_Record):
    """One optimizer update. Fields that do not apply to the run are None."""

    step: int
    epoch: float
    loss: float | None = None
    forget_term: float | None = None
    retain_term: float | None = None
    unseen_term: float | None = None
    grad_norm: float | None = None
    learning_rate: float | None = None
    adapter_norm: float | None = None
    """Frobenius norm of the change over all adapted layers."""
    largest_entry: float | None = None
    """Largest absolute entry of the change in any layer."""
    entry_limit: float | None = None
    """The most that an entry can be in any layer; None for an unbounded adapter."""
    largest_share: float | None = None
    """Largest absolute entry as a share of its layer's limit; None for an unbounded adapter."""
    saturated_share: float | None = None
    """Share of entries within 1 % of their limit; None for an unbounded adapter."""
    validation: dict[str, float] | None = None


class LayerCertificate(_Record):
    """The bound's guarantee for one layer, checked at the end of the run."""

    layer: str
    rank: int
    scale: float
    largest_entry: float
    entry_limit: float | None
    frobenius_norm: float
    frobenius_limit: float | None
    holds: bool | None
    """Whether both norms are within their limits; None for an unbounded adapter, which has none."""


class SetIdentity(_Record):
    """One example set by content."""

    name: str
    source: str
    count: int
    sha256: str


class ExampleOutcome(_Record):
    """One example before and after: what each model answers or predicts."""

    set_name: str
    prompt: str
    expected: str
    outputs: dict[ModelRole, str]
    image_png: str | None = None
    """The image itself, PNG in base64; `expected` and `outputs` are then class numbers."""


class ClassAccuracy(_Record):
    """How many images of one class each model puts into it."""

    label: int
    deleted: bool
    """Whether the class is in the forget set and not in the retain set."""
    images: Literal["test", "training"]
    """Test images, or training images of a class without test images."""
    count: int
    accuracy: dict[ModelRole, float]
    """From 0 to 1, by model."""


class AdapterSummary(_Record):
    """What was adapted."""

    bound: str
    rank: int
    omega: float
    scales: dict[str, float]
    """Scale of each adapted layer by its module path."""
    num_trainable: int
    num_base: int


class CheckpointChoice(_Record):
    """By what the checkpoint was chosen during the training."""

    metrics: list[str]
    """Validation metrics of the best checkpoint and of the rules that wait for a peak."""
    counts: dict[str, int]
    """Examples of each set that they looked at, all of them among those that are measured at the end."""


class Environment(_Record):
    """Where the run was executed."""

    versions: dict[str, str]
    commit: str | None
    platform: str
    device: str
    num_threads: int


class MeasuredAgain(Environment):
    """When and where a finished run was measured with other settings than at first."""

    created: str
    """UTC, ISO 8601."""


def finetuning_phase(role: str) -> str:
    """Name, in `RunRecord.timings`, of the finetuning of a base or retain model, by whichever run it was done."""
    return f"finetuning of the {role} model"


class RunRecord(_Record):
    """Everything a run leaves, complete enough to make the report and to repeat the run."""

    format: int = FORMAT
    name: str
    task: Literal["language", "image"]
    status: Literal["finished", "stopped", "failed"]
    """``stopped``: a stop rule or a loss that was not finite ended the training early; the reason is in ``stopped``."""
    stopped: str | None = None
    error: str | None = None
    verdicts: list[str] = Field(default_factory=list)
    """Sentences that the run says about itself, such as that nothing was forgotten."""
    notes: list[str] = Field(default_factory=list)
    """What a reader has to know of how a benchmark made the data, one sentence each."""
    created: str
    """UTC, ISO 8601."""
    config: dict[str, Any]
    """All settings as used."""
    given: dict[str, Any] = Field(default_factory=dict)
    """The settings as given, before defaults."""
    environment: Environment
    measured_again: MeasuredAgain | None = None
    """The last time, if there was one: all but the values is of the run before."""
    models: dict[ModelRole, str] = Field(default_factory=dict)
    """Identity (hash of weights or name and revision) of each model."""
    sets: list[SetIdentity] = Field(default_factory=list)
    adapter: AdapterSummary | None = None
    choice: CheckpointChoice | None = None
    """None: no metric chose the checkpoint."""
    history: list[StepRecord] = Field(default_factory=list)
    kept_step: int | None = None
    """Optimizer updates behind the adapter that was kept; None in records of earlier versions."""
    certificate: list[LayerCertificate] = Field(default_factory=list)
    evaluations: list[ModelEvaluation] = Field(default_factory=list)
    examples: list[ExampleOutcome] = Field(default_factory=list)
    class_names: dict[int, str] = Field(default_factory=dict)
    """Name of each class by its number, where the data name them."""
    class_accuracies: list[ClassAccuracy] = Field(default_factory=list)
    """Image classifiers: one entry for each class, by its number."""
    timings: dict[str, float] = Field(default_factory=dict)
    """Seconds of each phase; of unlearning those of its updates, over all resumes and without validations."""
    peak_memory_bytes: int | None = None
    """Of the unlearning alone: on the GPU, else of the whole process; None where it cannot be measured."""
    per_example_paths: dict[ModelRole, str] = Field(default_factory=dict)
    """Files of per-example values, relative to the run directory."""

    def evaluation(self, role: ModelRole) -> ModelEvaluation | None:
        """The evaluation of one model, or None if that model was not evaluated."""
        return next((entry for entry in self.evaluations if entry.role == role), None)


def write_text(path: Path, text: str) -> None:
    """Write a file so that a kill at any moment leaves the old file or the new one, never a half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            os.fchmod(handle, 0o666 & ~_umask())  # a temporary file is for its owner alone
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    """What new files are kept from; it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_record(record: RunRecord, run_dir: Path) -> Path:
    """Write ``record.json`` into the run directory and return its path."""
    path = run_dir / RECORD_NAME
    write_text(path, record.model_dump_json(indent=1))
    return path


def _advice(run_dir: Path) -> str:
    inside = sorted(found.parent.name for found in run_dir.glob(f"*/{RECORD_NAME}"))
    if inside:
        return f"The folder holds {len(inside)} runs, such as '{inside[0]}'. Give these: {run_dir}/*/"
    return "Give the directory of a finished run, as `forget run` and `forget bench` leave them."


_REPAIR = "Delete this file and run again with --resume: what the run has done so far is kept beside it."


def read_record(run_dir: Path) -> RunRecord:
    """Read the record of a run directory.

    Args:
        run_dir: The run directory, or the path of the record itself.

    Raises:
        RunDirectoryError: There is no record, it is damaged, or it is of a newer format.
    """
    path = run_dir if run_dir.suffix == ".json" else run_dir / RECORD_NAME
    if not path.is_file():
        raise RunDirectoryError(f"No record at '{path}'. {_advice(run_dir)}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunDirectoryError(f"The record '{path}' is damaged ({error}). {_REPAIR}") from error
    except OSError as error:
        raise RunDirectoryError(f"The record '{path}' cannot be read: {error.strerror}. Make it readable.") from error
    found = data.get("format") if isinstance(data, dict) else None
    if found != FORMAT:
        raise RunDirectoryError(
            f"The record '{path}' has format {found!r}; this version reads {FORMAT}. Use the version that wrote it."
        )
    try:
        return RunRecord.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RunDirectoryError(f"The record '{path}' is damaged at '{place}': {first['msg']}. {_REPAIR}") from error
