"""Likelihoods of whole sets that the objective needs before the training, and nothing else of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from stable_forgetting import processes
from stable_forgetting.data.examples import ExampleSet
from stable_forgetting.errors import DataError
from stable_forgetting.evaluation import LikelihoodScores, score_examples
from stable_forgetting.evaluation.scores import FORMAT
from stable_forgetting.models.load import LoadedModel, cache_dir
from stable_forgetting.models.tasks import Task
from stable_forgetting.progress import Progress
from stable_forgetting.records import write_text
from stable_forgetting.runs.cache import content_hash, made_once
from stable_forgetting.runs.scoring import ProgressOfSets, unit_of


@dataclass(frozen=True)
class Measuring:
    """How likelihoods are measured, and shown.

    Args:
        with_tokens: Whether the values of single labels are needed.
        batch_size: Examples per forward pass.
        progress: Where a bar for each set is shown.
        description: What the bars call the model.
    """

    with_tokens: bool
    batch_size: int
    progress: Progress
    description: str


def set_likelihoods(
    model: nn.Module, task: Task, sets: Mapping[str, ExampleSet[Any]], how: Measuring
) -> dict[str, LikelihoodScores]:
    """Likelihoods under a model, by the name of the set."""
    bars, found = ProgressOfSets(how.progress, unit_of(task)), {}
    for name, examples in sets.items():
        found[name] = score_examples(
            model,
            task,
            examples,
            batch_size=how.batch_size,
            with_tokens=how.with_tokens,
            progress=partial(bars, f"{how.description}: likelihood of {name}"),
        )
    bars.close()
    return found


def reference_likelihoods(
    load: Callable[[], LoadedModel], sets: Mapping[str, ExampleSet[Any]], how: Measuring, *, model: str
) -> dict[str, LikelihoodScores]:
    """The same under a model that many runs share, kept by the content of the model and of the sets.

    Args:
        load: Loads the model, if it is needed.
        sets: What is measured, by name.
        how: How it is measured.
        model: Hash of the model.
    """
    hashes = {name: examples.sha256 for name, examples in sets.items()}
    key = {"model": model, "sets": hashes, "tokens": how.with_tokens, "batch_size": how.batch_size, "values": FORMAT}
    path = cache_dir() / "likelihoods" / f"{content_hash(key)}.json"
    kept = processes.agree(_read_likelihoods(path, sets))
    if kept is not None:
        return kept
    with made_once(path.stem, what="the likelihoods that targets come from"):
        kept = processes.agree(_read_likelihoods(path, sets))
        if kept is not None:
            return kept
        loaded = load()
        found = processes.agree(set_likelihoods(loaded.model, loaded.task, sets, how))
        if processes.is_main_process():
            write_text(path, json.dumps({name: scores.to_json() for name, scores in found.items()}))
        return found


def _read_likelihoods(path: Path, sets: Mapping[str, ExampleSet[Any]]) -> dict[str, LikelihoodScores] | None:
    """What is kept; None if that is nothing, or damaged."""
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        found = {name: LikelihoodScores.from_json(data[name]) for name in sets}
    except (DataError, KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return found if all(len(found[name]) == len(examples) for name, examples in sets.items()) else None
