"""Models by name: hub names, local folders, weights inside an installed package, and the built-in problems.

Weights are read from safetensors (or GGUF, which holds no code either); code that comes with a model runs only if the
user asks for it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    BitsAndBytesConfig,
    GgufConfig,
)

from stable_forgetting import processes
from stable_forgetting.adapters.base_weight import Quantization, keep_quantized_layout
from stable_forgetting.errors import ConfigError, ModelError, unknown_name
from stable_forgetting.models.builtin import digits_model, people_model
from stable_forgetting.models.folders import resolve_folder
from stable_forgetting.models.processors import load_processor, with_pad_token
from stable_forgetting.models.reading import check_causal
from stable_forgetting.models.refusals import check_complete, readable
from stable_forgetting.models.sharded import prepare_shares, sharding_options, whole_tensor
from stable_forgetting.models.tasks import ImageTask, LanguageTask, Task

BUILTIN = {"builtin:people": ("language", people_model), "builtin:digits": ("image", digits_model)}
"""Untrained models of the built-in problems, by name: their task and what makes them."""


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model with the task it is for.

    Args:
        model: On its device, in evaluation mode.
        task: Holds the tokenizer or image processor.
        source: Where it came from, in words.
    """

    model: Any
    task: Task
    source: str

    @property
    def processor(self) -> Any:
        """The tokenizer or image processor."""
        return self.task.tokenizer if isinstance(self.task, LanguageTask) else self.task.processor  # type: ignore[attr-defined]


@dataclass(frozen=True)
class ModelSource:
    """Which model is meant, and how it is read.

    Args:
        name: Local folder, hub name, `package:NAME` (weights inside an installed Python package) or a built-in model.
        kind: The task it is for.
        dtype: Precision of its weights.
        quantization: Whether bitsandbytes holds its linear layers in 4 or 8 bits, which computes in ``dtype``.
        num_classes: Image models: size of the head; a head of another size is made anew, the same every time.
        image_size: Image models: pixels of a side that images are scaled to; None: as their image processor says.
        revision: Of a hub name.
        gguf_file: Name of the GGUF file in the folder.
        trust_remote_code: Whether code that comes with the model may run.
    """

    name: str
    kind: Literal["language", "image"]
    dtype: str = "float32"
    quantization: Quantization | None = None
    num_classes: int | None = None
    image_size: int | None = None
    revision: str | None = None
    gguf_file: str | None = None
    trust_remote_code: bool = False

    @property
    def is_builtin(self) -> bool:
        """Whether it is an untrained model of a built-in problem."""
        return self.name.startswith("builtin:")

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"revision": self.revision, "trust_remote_code": self.trust_remote_code}
        return options if self.gguf_file is None else options | {"gguf_file": self.gguf_file}

    def _head_options(self) -> dict[str, Any]:
        if self.kind == "language" or self.num_classes is None:
            return {}
        return {"num_labels": self.num_classes, "ignore_mismatched_sizes": True}

    def _weights_options(self) -> dict[str, Any]:
        if self.gguf_file is not None:
            return {"quantization_config": GgufConfig(dequantize=True)}
        if self.quantization is None:
            return {"use_safetensors": True}
        width = {"4bit": "load_in_4bit", "8bit": "load_in_8bit"}[self.quantization]
        quantization = BitsAndBytesConfig(
            **{width: True},
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, self.dtype),
        )
        return {"use_safetensors": True, "quantization_config": quantization}

    @property
    def _auto_class(self) -> Any:
        return AutoModelForCausalLM if self.kind == "language" else AutoModelForImageClassification


def load_model(source: ModelSource) -> LoadedModel:
    """Load a model and its tokenizer or image processor.

    Returns:
        The model in evaluation mode, on a GPU if there is one. Where processes share a model's weights, only this
        process's part of them, frozen; a pass through the model is then made by all processes together.

    Raises:
        ModelError: It cannot be found or read, weights are missing in it, or bitsandbytes is missing.
        ConfigError: The built-in model is unknown or for the other task, or such a model cannot be quantised.
    """
    _check_quantization(source)
    if source.is_builtin:
        return _builtin(source)
    folder = resolve_folder(source.name)
    with readable(source.name), torch.random.fork_rng():
        torch.manual_seed(0)
        processor = load_processor(source.kind, source.name, folder, source._options(), source.image_size)
        model, found = source._auto_class.from_pretrained(
            folder,
            dtype=getattr(torch, source.dtype),
            output_loading_info=True,
            **source._options(),
            **source._head_options(),
            **source._weights_options(),
            **sharding_options(),
        )
    if processes.shards_models():
        prepare_shares(model)
        return _ready(model, processor, source)
    check_complete(source, model, found)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    keep_quantized_layout(model)
    return _ready(model.to(device), processor, source)


def load_without_weights(source: ModelSource) -> LoadedModel:
    """The model's layers without their content (on the meta device), and its tokenizer or image processor.

    Raises:
        ModelError: Its config or processor cannot be found or read, or bitsandbytes is missing.
        ConfigError: The built-in model is unknown or for the other task, or such a model cannot be quantised.
    """
    _check_quantization(source)
    if source.is_builtin:
        return _builtin(source)
    folder = resolve_folder(source.name)
    with readable(source.name):
        processor = load_processor(source.kind, source.name, folder, source._options(), source.image_size)
        config = AutoConfig.from_pretrained(folder, **source._options())
        if source.kind == "image" and source.num_classes is not None:
            config.num_labels = source.num_classes
        with torch.device("meta"):
            model = source._auto_class.from_config(config, trust_remote_code=source.trust_remote_code)
    return _ready(model, processor, source)


def _check_quantization(source: ModelSource) -> None:
    if source.quantization is None:
        return
    if processes.shards_models():
        raise ConfigError(
            f"The model '{source.name}' is to be quantised to {source.quantization} and divided between processes "
            "(FSDP), which do not go together. Leave out model.quantization, or launch with ddp.yaml."
        )
    if source.is_builtin or source.gguf_file is not None:
        kind = "built-in" if source.is_builtin else "GGUF"
        raise ConfigError(
            f"The {kind} model '{source.name}' cannot be quantised to {source.quantization}, only models read from "
            "safetensors can. Leave out model.quantization."
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"Loading '{source.name}' in {source.quantization} needs bitsandbytes, which is not installed. Install it "
            "with pip install 'stable-forgetting[quantized]'."
        )


def _builtin(source: ModelSource) -> LoadedModel:
    if source.name not in BUILTIN:
        raise ConfigError(unknown_name("built-in model", source.name, BUILTIN))
    kind, make = BUILTIN[source.name]
    if kind != source.kind:
        raise ConfigError(
            f"The model '{source.name}' is for the task '{kind}', not '{source.kind}'. Change the task or the model."
        )
    model, processor = make(seed=0)
    return _ready(model, processor, source)


def _ready(model: Any, processor: Any, source: ModelSource) -> LoadedModel:
    if source.kind == "image":
        return LoadedModel(model.eval(), ImageTask.of(model, processor), source.name)
    check_causal(model)
    return LoadedModel(model.eval(), LanguageTask(with_pad_token(processor, f"of '{source.name}' ")), source.name)


def save_model(loaded: LoadedModel, folder: Path, beside: Mapping[str, str] | None = None) -> None:
    """Write model and tokenizer or processor so that the folder is there in full or not at all.

    Args:
        loaded: The model.
        folder: Where it goes; what is there is replaced.
        beside: Further text files by name.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    loaded.model.save_pretrained(partial)
    loaded.processor.save_pretrained(partial)
    for name, text in (beside or {}).items():
        (partial / name).write_text(text, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


_NOT_IDENTITY = ("_name_or_path", "transformers_version", "architectures", "quantization_config", "dtype")
"""Entries of a model's config that say where it came from and not what it computes."""


def model_sha256(model: Any) -> str:
    """Identity of a model: hash of its config and of its weights."""
    config = {name: value for name, value in model.config.to_dict().items() if name not in _NOT_IDENTITY}
    text = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(f"{text} {weights_sha256(model)}".encode()).hexdigest()


def weights_sha256(model: nn.Module) -> str:
    """Hash of all parameters and buffers by name, shape, type and content."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        tensor = whole_tensor(value)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def cache_dir() -> Path:
    """Where finetuned models are kept: `$STABLE_FORGETTING_CACHE`, or the user's cache folder."""
    given = os.environ.get("STABLE_FORGETTING_CACHE")
    root = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "stable-forgetting"
    return Path(given).expanduser() if given else root
