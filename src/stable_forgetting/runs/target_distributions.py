"""Targets of `calibrated_distribution`: what a model that never saw the forget set would say at each of its labels.

They are the next-token distributions of the pretrained model, made as sure of themselves as the base model is on unseen
data. Finetuning makes a model surer than it was: a distribution q becomes q^s / Σ q^s, with the
sharpness s at which unseen examples are as likely under the pretrained model as they are under the base model.

P = labels of the forget set, V = tokens or classes, K = those of them that are kept one by one at each label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from stable_forgetting import processes
from stable_forgetting.data.examples import ExampleSet
from stable_forgetting.evaluation.likelihood import POSITIONS_AT_ONCE, ScoredBatch, inference, plain_batches
from stable_forgetting.evaluation.likelihood_scores import Floats
from stable_forgetting.models.load import LoadedModel, cache_dir
from stable_forgetting.objectives.targets import sharpness_at
from stable_forgetting.progress import Progress
from stable_forgetting.runs.cache import content_hash, made_once

NUM_KEPT = 128
"""K, where there are as many tokens or classes: a kilobyte for each label of the forget set. What an unseen text is
likely to go on with is nearly always among them, and all others together are one more group."""

SHARPNESSES = np.geomspace(0.5, 8.0, 17)
"""What is tried; between them the likelihood is interpolated."""


@dataclass(frozen=True, eq=False)
class TargetDistributions:
    """Distributions at the labels of the forget set, example after example.

    Args:
        tokens: (P, K), int32: the likeliest tokens or classes and the label itself, in no order.
        probabilities: (P, K + 1), float32: of each of them and, last, of all others together.
        sharpness: s > 0; 1 is the pretrained model as it is.
    """

    tokens: Tensor
    probabilities: Tensor
    sharpness: float

    def constants(self, num_labels: Iterable[int]) -> dict[str, Tensor]:
        """The same as what the forget term takes: a row for each example, padded behind its last label.

        Args:
            num_labels: Labels of each example; their sum is P.
        """
        lengths = list(num_labels)
        parts = {"target_tokens": self.tokens, "target_probabilities": self.probabilities}
        by_example = {name: list(torch.split(values, lengths)) for name, values in parts.items()}
        return {name: pad_sequence(rows, batch_first=True) for name, rows in by_example.items()}


def target_distributions(
    load: Callable[[], LoadedModel],
    forget: ExampleSet[Any],
    unseen: ExampleSet[Any] | None,
    *,
    unseen_nll: float,
    model: str,
    batch_size: int,
    progress: Progress,
) -> TargetDistributions:
    """The distributions under a model that many runs share, kept by the content of the model and of the sets.

    Args:
        load: Loads the pretrained model, if it is needed.
        forget: The forget set.
        unseen: Unseen examples, by which the sharpness is chosen; None for a sharpness of 1.
        unseen_nll: Mean NLL of all their labels under the base model, in nats; not looked at without them.
        model: Hash of the pretrained model.
        batch_size: Examples per forward pass.
        progress: Where the two passes are shown.
    """
    key = {
        "model": model,
        "forget": forget.sha256,
        "unseen": None if unseen is None else [unseen.sha256, unseen_nll],
        "batch_size": batch_size,
        "kept": [NUM_KEPT, *SHARPNESSES.tolist()],
    }
    path = cache_dir() / "distributions" / f"{content_hash(key)}.safetensors"
    kept = processes.agree(_read(path))
    if kept is not None:
        return kept
    with made_once(path.stem, what="the distributions that targets come from"):
        kept = processes.agree(_read(path))
        if kept is None:
            kept = processes.agree(_measure(load(), forget, unseen, unseen_nll, batch_size, progress))
            if processes.is_main_process():
                _write(path, kept)
        return kept


def _measure(
    loaded: LoadedModel,
    forget: ExampleSet[Any],
    unseen: ExampleSet[Any] | None,
    unseen_nll: float,
    batch_size: int,
    progress: Progress,
) -> TargetDistributions:
    with inference(loaded.model) as device:

        def batches(examples: ExampleSet[Any], description: str) -> Iterable[ScoredBatch]:
            with progress.track(description, len(examples), "examples") as advance:
                for batch in plain_batches(loaded.model, loaded.task, examples.examples, batch_size, device):
                    yield batch
                    advance(len(batch[0]))

        sharpness = 1.0
        if unseen is not None:
            nlls = nll_by_sharpness(batches(unseen, "Pretrained model on unseen examples"))
            sharpness = sharpness_at(SHARPNESSES, nlls, unseen_nll)
        return sharpened(batches(forget, "Pretrained model on the forget set"), sharpness)


def nll_by_sharpness(batches: Iterable[ScoredBatch]) -> Floats:
    """Mean NLL of all labels at each of `SHARPNESSES`, in nats."""
    totals, count = np.zeros(len(SHARPNESSES)), 0
    for _, predictions in batches:
        count += len(predictions.labels)
        for chunk in torch.split(torch.arange(len(predictions.labels)), POSITIONS_AT_ONCE):
            logits, labels = predictions.logits[chunk].float(), predictions.labels[chunk]
            totals += [F.cross_entropy(logits * sharpness, labels, reduction="sum").item() for sharpness in SHARPNESSES]
    return totals / count


def sharpened(batches: Iterable[ScoredBatch], sharpness: float) -> TargetDistributions:
    """Distributions at the labels of all examples, in their order, with a sharpness s > 0."""
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for numbers, predictions in batches:
        labels = predictions.labels[:, None]
        chunks = torch.split(torch.arange(len(labels)), POSITIONS_AT_ONCE)
        parts = [_groups(predictions.logits[chunk].float() * sharpness, labels[chunk]) for chunk in chunks]
        lengths = predictions.num_labels.tolist()
        tokens, probabilities = (torch.split(torch.cat(values).cpu(), lengths) for values in zip(*parts, strict=True))
        found |= dict(zip(numbers, zip(tokens, probabilities, strict=True), strict=True))
    rows = [found[number] for number in sorted(found)]
    return TargetDistributions(torch.cat([row[0] for row in rows]), torch.cat([row[1] for row in rows]), sharpness)


def _groups(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens that are kept one by one, and the probabilities of each and of all others, from (P, V) and (P, 1)."""
    probabilities = logits.softmax(dim=-1)
    above_all = probabilities.scatter(1, labels, 2.0)
    tokens = above_all.topk(min(NUM_KEPT, logits.shape[1]), dim=-1).indices
    kept = probabilities.gather(1, tokens)
    others = (1 - kept.sum(dim=-1, keepdim=True)).clamp(min=0)
    return tokens.int(), torch.cat([kept, others], dim=1)


def _read(path: Path) -> TargetDistributions | None:
    """What is kept; None if that is nothing, or damaged."""
    if not path.is_file():
        return None
    try:
        found = load_file(path)
        return TargetDistributions(found["tokens"], found["probabilities"], float(found["sharpness"]))
    except (SafetensorError, KeyError, OSError):
        return None


def _write(path: Path, found: TargetDistributions) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    sharpness = torch.tensor(found.sharpness, dtype=torch.float64)
    save_file({"tokens": found.tokens, "probabilities": found.probabilities, "sharpness": sharpness}, part)
    part.replace(path)
