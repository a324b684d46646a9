"""Teaching a model a set of examples before anything is forgotten: one training, or several in a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stable_forgetting.adapters import attach
from stable_forgetting.config import FinetuneConfig
from stable_forgetting.data.examples import ExampleSet
from stable_forgetting.errors import ConfigError, ModelError, NotFiniteError
from stable_forgetting.models.heads import HEADS, head_names
from stable_forgetting.models.load import LoadedModel
from stable_forgetting.models.tasks import ImageTask
from stable_forgetting.progress import Progress
from stable_forgetting.runs.adapter import bounded_config
from stable_forgetting.runs.kept import first_adapted_block, inputs_of, with_kept_trunk
from stable_forgetting.training import finetune


def teach(
    loaded: LoadedModel,
    taught: ExampleSet[Any],
    trainings: Sequence[FinetuneConfig],
    *,
    work_dir: Path,
    disk_cache_gib: float,
    progress: Progress | None = None,
    description: str = "finetuning",
) -> tuple[LoadedModel, float | None]:
    """Teach a model a set of examples, training after training.

    Args:
        loaded: The pretrained model; changed in place.
        taught: What it is taught.
        trainings: What is done, in this order.
        work_dir: Where checkpoints are kept; what is in it is gone on from.
        disk_cache_gib: Room for what frozen blocks make of the examples.
        progress: Where the steps are shown.
        description: What the bar says.

    Returns:
        The model with plain weights (adapters are merged), and the seconds that all updates took, those before an
        interruption included; None if not known.

    Raises:
        NotFiniteError: A loss or a gradient became infinite or NaN.
        ModelError: A head is to be trained that the model does not have.
    """
    seconds: list[float | None] = []
    for number, settings in enumerate(trainings):
        before = _weights(loaded.model) if settings.change_kept < 1 else {}
        stage = description if len(trainings) == 1 else f"{description}, {number + 1} of {len(trainings)}"
        student = _prepared(loaded, settings)
        count = inputs_of(taught, with_alternatives=False)
        kept = with_kept_trunk(student, _num_frozen_blocks(student, settings), count, disk_cache_gib)
        outcome = finetune(
            student.model,
            kept.task,
            taught,
            settings=settings,
            output_dir=work_dir / f"training-{number}",
            resume=True,
            progress=progress,
            description=stage,
        )
        if outcome.stopped:
            raise NotFiniteError(f"The {stage} came to nothing: {outcome.stopped} Lower model.finetune.learning_rate.")
        seconds.append(outcome.seconds)
        model = student.model.merge_and_unload() if settings.trains == "adapter" else student.model
        _take_back(model, before, 1 - settings.change_kept)
        loaded = LoadedModel(model.requires_grad_(True).eval(), loaded.task, loaded.source)
    known = [taken for taken in seconds if taken is not None]
    return loaded, sum(known) if len(known) == len(seconds) else None


def check_teaching(model: Any, trainings: Sequence[FinetuneConfig]) -> None:
    """Check that the adapters that a model is taught with are allowed and have layers to go to; no weights are needed.

    Args:
        model: The model, with or without content.
        trainings: What is done.

    Raises:
        ConfigError: A setting of an adapter is not allowed.
        ModelError: It matches no layer.
    """
    for settings in trainings:
        if settings.trains != "adapter":
            continue
        with torch.device("meta"):
            layers = type(model)(model.config)
        try:
            attach(layers, bounded_config(settings.adapter))
        except (ConfigError, ModelError) as error:
            raise type(error)(f"model.finetune.adapter: {error}") from error


def _prepared(loaded: LoadedModel, settings: FinetuneConfig) -> LoadedModel:
    """The model with what is to be trained set free, and the rest frozen."""
    model = loaded.model
    if settings.trains == "all":
        return loaded
    heads = _known_heads(model) if isinstance(loaded.task, ImageTask) else []
    if settings.trains == "adapter":
        adapter = bounded_config(settings.adapter, modules_to_save=heads or None)
        return LoadedModel(attach(model, adapter), loaded.task, loaded.source)
    model.requires_grad_(False)
    for name in heads:
        model.get_submodule(name).requires_grad_(True)
    return loaded


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().cpu().clone() for name, weight in model.named_parameters()}


@torch.no_grad()
def _take_back(model: nn.Module, before: Mapping[str, Tensor], share: float) -> None:
    """Move weights back by a share of the way to what they were before; those that did not change stay exactly."""
    for name, weight in model.named_parameters():
        if name in before:
            weight.lerp_(before[name].to(weight), share)


def _known_heads(model: nn.Module) -> list[str]:
    names = head_names(model)
    if not names:
        raise ModelError(
            f"The model {type(model).__name__} has no head under one of the names {', '.join(HEADS)} that could be "
            "trained alone. Set model.finetune.trains to all."
        )
    return names


def _num_frozen_blocks(student: LoadedModel, settings: FinetuneConfig) -> int:
    if settings.trains == "adapter":
        return first_adapted_block(student.model)
    return 0 if settings.trains == "all" else int(getattr(student.model.config, "num_hidden_layers", 0))
