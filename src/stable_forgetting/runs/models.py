"""Base, retain and pretrained model of a run: loaded, or made by finetuning and kept by content hash."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from stable_forgetting.config import FinetuneConfig, RunConfig
from stable_forgetting.data.examples import ExampleSet
from stable_forgetting.models.load import LoadedModel, ModelSource, cache_dir, load_model, save_model, weights_sha256
from stable_forgetting.progress import Progress
from stable_forgetting.runs.sets import Sets
from stable_forgetting.training import finetune

CACHE_FORMAT = 1
"""Grows whenever the same settings would give another model than before."""


@dataclass(frozen=True, eq=False)
class RunModels:
    """The models that a run needs, each loaded when it is asked for.

    Args:
        config: The run's config.
        sets: What the models are taught.
        loaded: The model as configured: the base model, or the pretrained one that base and retain model are made of.
        classes: Image models: number of classes.
        progress: Where finetuning is shown.
    """

    config: RunConfig
    sets: Sets
    loaded: LoadedModel
    classes: int | None
    progress: Progress

    @property
    def taught_to_base(self) -> ExampleSet[Any]:
        """What a base model is taught: the forget set and the retain set."""
        return ExampleSet("forget and retain", [*self.sets.forget, *self.sets.retain], "both sets")

    def base(self) -> LoadedModel:
        """The model to be unlearned."""
        settings = self.config.model.finetune
        return self.loaded if settings is None else self._finetuned(self.taught_to_base, settings, "base")

    def retain(self) -> LoadedModel | None:
        """The model that never saw the forget set, or None if there is none."""
        if self.config.retain_model is not None:
            return load_model(self.source(self.config.retain_model))
        settings = self.config.model.finetune
        return None if settings is None else self._finetuned(self.sets.retain, settings, "retain")

    def pretrained(self) -> LoadedModel:
        """The model as configured, fresh."""
        return load_model(configured_source(self.config, self.classes))

    def source(self, name: str) -> ModelSource:
        """Another model of the same task, precision and classes."""
        return ModelSource(name, self.config.task, dtype=self.config.model.dtype, num_classes=self.classes)

    @cached_property
    def _pretrained_sha256(self) -> str:
        return weights_sha256(self.loaded.model)

    def _finetuned(self, taught: ExampleSet[Any], settings: FinetuneConfig, role: str) -> LoadedModel:
        """Made by finetuning, or read from where the same was made before."""
        key = {"pretrained": self._pretrained_sha256, "taught": taught.sha256, **self._how(settings)}
        folder = cache_dir() / "models" / content_hash(key)
        source = f"{self.loaded.source}, finetuned on {taught.name} ({len(taught)} examples)"
        if not folder.is_dir():
            student = self.pretrained()
            work_dir = folder.with_name(f"{folder.name}.training")
            finetune(
                student.model,
                student.task,
                taught,
                settings=settings,
                output_dir=work_dir,
                resume=True,
                progress=self.progress,
                description=f"finetuning the {role} model",
            )
            save_model(student, folder)
            shutil.rmtree(work_dir, ignore_errors=True)
        kept = load_model(self.source(str(folder)))
        return LoadedModel(kept.model, kept.task, source)

    def _how(self, settings: FinetuneConfig) -> dict[str, Any]:
        data = self.config.data
        return {
            "finetune": settings.model_dump(),
            "dtype": self.config.model.dtype,
            "tokens": [data.max_length, data.chat_template, data.template],
        }


def configured_source(config: RunConfig, classes: int | None) -> ModelSource:
    """The model that a config names.

    Args:
        config: The config.
        classes: Image models: number of classes.
    """
    model = config.model
    return ModelSource(
        model.name,
        config.task,
        dtype=model.dtype,
        num_classes=classes,
        revision=model.revision,
        gguf_file=model.gguf_file,
        trust_remote_code=model.trust_remote_code,
    )


def content_hash(key: Mapping[str, Any]) -> str:
    """Name under which something is kept that is determined by the key."""
    text = json.dumps({"format": CACHE_FORMAT, **key}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
