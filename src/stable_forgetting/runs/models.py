"""Base, retain and pretrained model of a run: loaded, or made by finetuning and kept by content hash."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from stable_forgetting import processes
from stable_forgetting.config import FinetuneConfig, RunConfig
from stable_forgetting.data.examples import ExampleSet
from stable_forgetting.errors import ConfigError
from stable_forgetting.models.load import LoadedModel, ModelSource, cache_dir, load_model, model_sha256, save_model
from stable_forgetting.progress import Progress
from stable_forgetting.runs.cache import content_hash, made_once
from stable_forgetting.runs.directory import code_versions
from stable_forgetting.runs.kept import inputs_of, with_kept_trunk
from stable_forgetting.runs.outcomes import class_names
from stable_forgetting.runs.retain_log import log_sha256
from stable_forgetting.runs.sets import Sets
from stable_forgetting.runs.teaching import teach
from stable_forgetting.training.surroundings import move_to_training_device

SECONDS_NAME = "finetuning_seconds.json"
"""File beside a kept model with what its finetuning took."""


@dataclass(frozen=True, eq=False)
class RunModels:
    """The models that a run needs, each loaded when it is asked for.

    Args:
        config: The run's config.
        sets: What the models are taught.
        loaded: The model as configured: the base model, or the pretrained one that base and retain model are made of.
        classes: Image models: number of classes.
        progress: Where finetuning is shown.
        num_frozen_blocks: How many blocks there are below the first one that the adapter changes.
    """

    config: RunConfig
    sets: Sets
    loaded: LoadedModel
    classes: int | None
    progress: Progress
    num_frozen_blocks: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """What finetuning the base and the retain model took, by role, also where they were made earlier; see `teach`."""

    @property
    def taught_to_base(self) -> ExampleSet[Any]:
        """What a base model is taught: the forget and the retain set, in an order that their division does not change.

        So the same base model serves all requests to forget a part of the same examples.
        """
        examples = sorted([*self.sets.forget, *self.sets.retain], key=lambda example: example.identity)
        return ExampleSet("forget and retain", examples, "both sets")

    def base(self) -> LoadedModel:
        """The model to be unlearned."""
        trainings = self.config.model.finetune
        if self.config.base_model is not None:
            loaded = self._in_its_place(self.config.base_model)
        else:
            loaded = self.loaded if trainings is None else self._finetuned(self.taught_to_base, trainings, "base")
        move_to_training_device(loaded.model)  # it may have been set aside
        return self._with_kept_trunk(loaded)

    def retain(self) -> LoadedModel | None:
        """The model that never saw the forget set, or None if there is none."""
        if self.config.retain_log is not None:
            return None
        if self.config.retain_model is not None:
            self._read_seconds(Path(self.config.retain_model).expanduser(), "retain")
            return self._measured_once(self._in_its_place(self.config.retain_model))
        trainings = self.config.model.finetune
        if trainings is None:
            return None
        return self._measured_once(self._finetuned(self.sets.retain, trainings, "retain"))

    def inputs(self) -> dict[str, str]:
        """Hashes of the model as configured, of each set and of what else decides: without them no run is resumed."""
        log = self.config.retain_log
        others = {} if log is None else {"retain log": log_sha256(Path(log).expanduser())}
        if self.config.retain_model is not None:
            others["retain model"] = model_sha256(self._in_its_place(self.config.retain_model).model)
        target, given_base = self.config.objective.target, self.config.base_model
        if self.config.pretrained_model is not None and target.needs_pretrained:
            others["pretrained model"] = self.pretrained_sha256
        return {
            "model": self._configured_sha256,
            **{part.name: part.sha256 for part in self.sets.identities()},
            **others,
            **code_versions(self.config),
            **({} if given_base is None else {"base model": model_sha256(self._in_its_place(given_base).model)}),
        }

    def pretrained(self) -> LoadedModel:
        """The model that the base model was finetuned from, fresh."""
        if self.config.pretrained_model is not None:
            return self._in_its_place(self.config.pretrained_model)
        return load_model(configured_source(self.config, self.classes))

    def source(self, name: str) -> ModelSource:
        """Another model, read in the same way; an image classifier keeps the head it has."""
        return other_source(self.config, name)

    @cached_property
    def _configured_sha256(self) -> str:
        return model_sha256(self.loaded.model)

    def _in_its_place(self, name: str) -> LoadedModel:
        """Another model, with the configured one moved out of its way."""
        if self.config.model.quantization is None and not processes.shards_models():
            self.loaded.model.to("cpu")  # one of the two is enough on the device
        return load_model(self.source(name))

    @cached_property
    def pretrained_sha256(self) -> str:
        """Hash of the model that the base model was finetuned from."""
        if self.config.pretrained_model is None:
            return self._configured_sha256
        return model_sha256(self.pretrained().model)

    def _measured_once(self, loaded: LoadedModel) -> LoadedModel:
        """Keeps outputs of texts only for a trunk that others have, too: finetuning often leaves none but its own.

        A trunk of its own would read each prompt once for every answer, and never again.
        """
        kept = self._with_kept_trunk(loaded)
        trunk = kept.task.trunk
        return kept if self.config.task == "image" or (trunk is not None and trunk.has_outputs) else loaded

    def _with_kept_trunk(self, loaded: LoadedModel) -> LoadedModel:
        limit = self.config.model.disk_cache_gib
        count = sum(inputs_of(part, with_alternatives=True) for part in self.sets.by_name.values())
        return with_kept_trunk(loaded, self.num_frozen_blocks, count, limit)

    def _finetuned(self, taught: ExampleSet[Any], trainings: Sequence[FinetuneConfig], role: str) -> LoadedModel:
        """Made by finetuning, or read from where the same was made before."""
        key = {"pretrained": self._configured_sha256, "taught": taught.taught_sha256, **self._how(trainings)}
        folder = cache_dir() / "models" / content_hash(key)
        source = f"{self.loaded.source}, finetuned on {taught.name} ({len(taught)} examples)"
        self.loaded.model.to("cpu")  # the student is a second copy: one of them is enough on the device
        if not processes.agree(folder.is_dir()):
            with made_once(folder.name, what=f"the {role} model"):
                if not processes.agree(folder.is_dir()):
                    self._make(folder, taught, trainings, role)
        if processes.is_main_process():
            shutil.rmtree(_work_dir(folder), ignore_errors=True)  # also where a kill came between the two
        self._read_seconds(folder, role)
        kept = load_model(self.source(str(folder)))
        # The model is kept by what it learned. How it is asked, and what is saved with it, is the run's own.
        self._name_labels(kept.model.config)
        return LoadedModel(kept.model, self.loaded.task.with_trunk(None), source)

    def _read_seconds(self, folder: Path, role: str) -> None:
        """What finetuning took, if the folder says so."""
        if (folder / SECONDS_NAME).is_file():
            self.seconds[role] = float(json.loads((folder / SECONDS_NAME).read_text()))

    def _make(self, folder: Path, taught: ExampleSet[Any], trainings: Sequence[FinetuneConfig], role: str) -> None:
        """Teach the pretrained model, and keep it in the folder."""
        student, seconds = self.teach(taught, trainings, _work_dir(folder), f"finetuning the {role} model")
        if processes.is_main_process():
            save_model(student, folder, {} if seconds is None else {SECONDS_NAME: json.dumps(seconds)})
        processes.wait_for_all()

    def teach(
        self, taught: ExampleSet[Any], trainings: Sequence[FinetuneConfig], work_dir: Path, description: str
    ) -> tuple[LoadedModel, float | None]:
        """The pretrained model after finetuning in float32, in the precision of the config, and the seconds it took.

        Args:
            taught: What it is taught.
            trainings: What is done, in this order.
            work_dir: Where checkpoints are kept; what is in it is gone on from.
            description: What the bar says.
        """
        _check_can_teach(self.config)
        student, seconds = teach(
            load_model(replace(configured_source(self.config, self.classes), dtype="float32")),
            taught,
            trainings,
            work_dir=work_dir,
            disk_cache_gib=self.config.model.disk_cache_gib,
            progress=self.progress,
            description=description,
        )
        student.model.to(getattr(torch, self.config.model.dtype))
        self._name_labels(student.model.config)
        return student, seconds

    def _name_labels(self, config: Any) -> None:
        """The data's names of the classes in place of the pretrained model's: it was taught the data's numbers."""
        if self.config.task == "image":
            names = class_names(self.sets)
            config.id2label = {number: names.get(number, f"LABEL_{number}") for number in range(config.num_labels)}
            config.label2id = {name: number for number, name in config.id2label.items()}

    def _how(self, trainings: Sequence[FinetuneConfig]) -> dict[str, Any]:
        return {
            "finetune": [settings.model_dump() for settings in trainings],
            "dtype": self.config.model.dtype,
            "image_size": self.config.model.image_size,
        }


def _work_dir(folder: Path) -> Path:
    """Checkpoints of the finetuning of a model that will be kept in a folder."""
    return folder.with_name(f"{folder.name}.training")


def _check_can_teach(config: RunConfig) -> None:
    if processes.shards_models():
        raise ConfigError(
            f"The model '{config.model.name}' has to be finetuned first, which needs whole weights, but each process "
            "holds only its share of them. Run once without FSDP up to the end of finetuning (the result is kept), or "
            "give a finetuned model as model.name without model.finetune."
        )


def configured_source(config: RunConfig, classes: int | None) -> ModelSource:
    """The model that a config names.

    Args:
        config: The config.
        classes: Image models: number of classes in the data. The head is made for it only if it is trained afterwards:
            without finetuning a new head would be a random one, so the model keeps its own.
    """
    model = config.model
    return ModelSource(
        model.name,
        config.task,
        dtype=model.dtype,
        quantization=model.quantization,
        num_classes=classes if model.finetune is not None else None,
        image_size=model.image_size,
        revision=model.revision,
        gguf_file=model.gguf_file,
        trust_remote_code=model.trust_remote_code,
    )


def other_source(config: RunConfig, name: str) -> ModelSource:
    """Another model of a config's task, in the same precision and with the same trust in code that comes with it."""
    model = config.model
    return ModelSource(
        name,
        config.task,
        dtype=model.dtype,
        quantization=model.quantization,
        image_size=model.image_size,
        trust_remote_code=model.trust_remote_code,
    )
