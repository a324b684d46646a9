"""Per-example values of the three models, measured once and kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.distributed.tensor import DTensor

from stable_forgetting import processes
from stable_forgetting.config import EvaluationConfig
from stable_forgetting.data.examples import ExampleSet
from stable_forgetting.data.splits import subset
from stable_forgetting.errors import DataError, ModelError
from stable_forgetting.evaluation import (
    ModelScores,
    ScoringOptions,
    SetScores,
    score_model,
)
from stable_forgetting.evaluation.linear_probe import PROBE_FORMAT
from stable_forgetting.evaluation.scores import FORMAT
from stable_forgetting.models.load import LoadedModel, cache_dir, model_sha256
from stable_forgetting.models.processors import tokenizer_sha256
from stable_forgetting.models.tasks import LanguageTask, Task
from stable_forgetting.progress import Advance, Progress
from stable_forgetting.records import ModelRole, write_text
from stable_forgetting.runs.cache import content_hash, made_once
from stable_forgetting.runs.sets import TARGETS, Sets


def unit_of(task: Task) -> str:
    """What bars count."""
    return "images" if task.name == "image" else "answers"


class ProgressOfSets:
    """Shows one bar for each set that is measured.

    Args:
        progress: Where the bars are shown.
        unit: What is counted.
    """

    def __init__(self, progress: Progress, unit: str) -> None:
        self.progress = progress
        self.unit = unit
        self._open = ExitStack()
        self._description = ""
        self._done = 0
        self._advance: Advance = lambda _: None

    def __call__(self, description: str, done: int, total: int) -> None:
        """So many of so many are done; another description begins another bar."""
        if description != self._description:
            self._open.close()
            self._advance = self._open.enter_context(self.progress.track(description, total, self.unit))
            self._description, self._done = description, 0
        self._advance(done - self._done)
        self._done = done

    def close(self) -> None:
        """Close the last bar."""
        self._open.close()


def measured_sets(sets: Sets, settings: EvaluationConfig) -> Sets:
    """The sets as they are measured: what is kept may be limited, and be another retain set than the taught one."""
    by_name = dict(sets.by_name)
    by_name.pop(TARGETS, None)
    given = by_name.pop("retain_evaluation", None)
    retain = sets.retain if given is None else ExampleSet("retain", given.examples, given.source)
    by_name["retain"] = subset(retain, settings.retain_limit, settings.seed)
    if "retain_test" in by_name:
        by_name["retain_test"] = subset(by_name["retain_test"], settings.test_limit, settings.seed)
    return Sets(by_name)


@contextmanager
def merged_adapters(model: nn.Module) -> Iterator[bool]:
    """Measure a model with its adapters merged: their change is then computed once and not in every forward pass.

    Afterwards the base weights are as before, bit for bit. Nothing is merged into quantised models, into those whose
    weights are divided between processes, nor where something is merged already.

    Yields:
        Whether the model, as it is now, computes with plain weights only: neither quantised nor under an adapter.
    """
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    weights = list(model.parameters())
    plain = all(weight.is_floating_point() and not isinstance(weight, DTensor) for weight in weights)
    waiting = any(not layer.merged and not layer.disable_adapters for layer in layers)
    if not plain or not waiting or any(layer.merged for layer in layers):
        yield plain and not waiting
        return
    tuner: Any = model
    try:
        tuner.merge_adapter()  # what is out of memory here has merged some layers
        yield True
    finally:
        for layer in layers:
            if layer.merged:
                layer.unmerge()


def measuring_task(task: Task, settings: EvaluationConfig) -> Task:
    """The task as models are measured with it: a published protocol may hide tokens that training sees."""
    if settings.compat == "open-unlearning" and isinstance(task, LanguageTask):
        return task.hiding_pad_tokens()
    return task


def score(
    loaded: LoadedModel,
    sets: Sets,
    role: ModelRole,
    *,
    settings: EvaluationConfig,
    progress: Progress,
    path: Path | None = None,
) -> ModelScores:
    """Measure one model on all sets.

    Args:
        loaded: The model.
        sets: The sets of the run.
        role: Which of the three models it is.
        settings: How it is measured.
        progress: Where that is shown.
        path: Where the values of a language model are written after each set; what is there already is gone on from.

    Raises:
        ModelError: Gradient norms are asked for, but the model does not compute with plain weights.
    """
    options = ScoringOptions(
        batch_size=settings.batch_size,
        generate=settings.generate,
        max_new_tokens=settings.max_new_tokens,
        gradient_norm=settings.gradient_norm,
        linear_probe=settings.linear_probe,
    )
    bars = ProgressOfSets(progress, unit_of(loaded.task))
    with ExitStack() as stack:
        stack.callback(bars.close)
        is_plain = stack.enter_context(merged_adapters(loaded.model))
        if settings.gradient_norm and not is_plain:
            raise ModelError(
                f"The gradient norm needs plain weights, but the {role} model is quantised or partly merged. "
                "Set evaluation.gradient_norm to false, or load the model in float32."
            )
        return score_model(
            loaded.model,
            measuring_task(loaded.task, settings),
            measured_sets(sets, settings).by_name,
            role=role,
            source=loaded.source,
            options=options,
            progress=bars,
            known=processes.agree(_known_sets(path)),
            keep=partial(_keep, path),
        )


def _known_sets(path: Path | None) -> Mapping[str, SetScores]:
    kept = None if path is None else _read_scores(path)
    return {} if kept is None else kept.sets


def _keep(path: Path | None, scores: ModelScores) -> None:
    if path is not None and processes.is_main_process():
        write_scores(path, scores)


def kept_scores(path: Path, sets: Sets, compute: Callable[[Path], ModelScores]) -> ModelScores:
    """Read the values from a file, or compute them and write it.

    Args:
        path: The file. One that is damaged or of other examples is written anew.
        sets: The sets as they are measured.
        compute: Measures the model; is given a file for what is there before all of it is.
    """
    kept = kept_of(path, sets)
    if kept is not None:
        return kept
    part = path.with_suffix(".part.json")
    scores = compute(part)
    if processes.is_main_process():
        write_scores(path, scores)
        part.unlink(missing_ok=True)
    return scores


def kept_of(path: Path, sets: Sets) -> ModelScores | None:
    """What is kept of exactly these sets, if it is."""
    kept = _read_scores(path)
    hashes = {name: examples.sha256 for name, examples in sets.by_name.items()}
    return kept if kept is not None and {name: part.sha256 for name, part in kept.sets.items()} == hashes else None


def write_scores(path: Path, scores: ModelScores) -> None:
    """Write the per-example values of one model."""
    write_text(path, json.dumps(scores.to_json()))


def _read_scores(path: Path) -> ModelScores | None:
    if not path.is_file():
        return None
    try:
        return ModelScores.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (DataError, json.JSONDecodeError, UnicodeDecodeError):
        return None


def _of_task(task: Task) -> dict[str, Any]:
    """What decides on the values beside model and sets: answers are decoded, and a protocol may hide pad tokens."""
    if isinstance(task, LanguageTask):
        return {"tokenizer": tokenizer_sha256(task.tokenizer)}
    return {"probe": PROBE_FORMAT}


def decisive(settings: EvaluationConfig) -> dict[str, Any]:
    """The settings that decide on the values of given sets."""
    return settings.model_dump(include=_DECISIVE)


_DECISIVE = {"batch_size", "generate", "max_new_tokens", "gradient_norm", "linear_probe", "compat"}
"""Settings that decide on the values of given sets."""


def reference_scores(
    loaded: LoadedModel, sets: Sets, role: ModelRole, *, settings: EvaluationConfig, progress: Progress
) -> ModelScores:
    """Values of a base or retain model, which many runs share: kept by the content of the model and of the sets."""
    key = {
        "model": model_sha256(loaded.model),
        "role": role,
        "source": loaded.source,
        "sets": [identity.model_dump() for identity in measured_sets(sets, settings).identities()],
        "evaluation": decisive(settings),
        "values": FORMAT,
        **_of_task(loaded.task),
    }
    path = cache_dir() / "scores" / f"{content_hash(key)}.json"
    measured = measured_sets(sets, settings)

    def compute(part: Path) -> ModelScores:
        return score(loaded, sets, role, settings=settings, progress=progress, path=part)

    kept = processes.agree(kept_of(path, measured))
    if kept is not None:
        return kept
    with made_once(path.stem, what=f"the values of the {role} model"):
        return kept_scores(path, measured, compute)
