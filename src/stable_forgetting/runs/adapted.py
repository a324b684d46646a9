"""Saved adapters: put on their base model again, or folded into it."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from peft import PeftModel, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig

from stable_forgetting.adapters import without_old_names
from stable_forgetting.config import RunConfig, parse_config, read_yaml
from stable_forgetting.errors import ConfigError, DataError, ModelError, RunDirectoryError
from stable_forgetting.models.folders import resolve_folder
from stable_forgetting.models.load import LoadedModel, ModelSource, load_model, model_sha256, save_model
from stable_forgetting.models.refusals import readable
from stable_forgetting.progress import Progress
from stable_forgetting.runs.arguments import check_model
from stable_forgetting.runs.directory import CONFIG_NAME, RunDirectory
from stable_forgetting.runs.models import configured_source, other_source
from stable_forgetting.runs.preparation import prepare

logger = logging.getLogger(__name__)

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def load_adapted(base: LoadedModel, adapter_dir: Path) -> LoadedModel:
    """Put a saved adapter on its base model.

    Args:
        base: The base model; its layers are wrapped in place.
        adapter_dir: Folder that `save_pretrained` wrote.

    Raises:
        ModelError: There is no adapter, it is damaged, or it does not fit the model.
    """
    model = _on_base(base.model, adapter_dir, base.source)
    return LoadedModel(model, base.task, f"{base.source} with the adapter {adapter_dir}")


def load_adapter(model: Any, folder: str | Path) -> PeftModel:
    """Put a saved adapter on its base model, in any process: PEFT is told of the method first.

    Args:
        model: The base model, without an adapter; its layers are wrapped in place.
        folder: What `save_pretrained` of the adapted model wrote, or `adapter` of a run directory.

    Returns:
        The model with the adapter, in evaluation mode; `merge_and_unload()` gives plain weights.

    Raises:
        ModelError: The model is none or has an adapter, there is no adapter in the folder, it is damaged, or it does
            not fit the model.
    """
    check_model(model)
    return _on_base(model, Path(folder), getattr(model, "name_or_path", "") or type(model).__name__)


def _on_base(base: Any, adapter_dir: Path, source: str) -> PeftModel:
    read_adapter_config(adapter_dir)
    if not (adapter_dir / ADAPTER_WEIGHTS).is_file():
        pickled = (adapter_dir / "adapter_model.bin").is_file()
        found = "pickled weights, which can run code when read" if pickled else f"no {ADAPTER_WEIGHTS}"
        raise ModelError(f"The adapter folder '{adapter_dir}' holds {found}. Save the adapter as safetensors.")
    trainable = [weight for weight in base.parameters() if weight.requires_grad]
    try:
        with without_old_names(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # refused below
            model: PeftModel = PeftModel.from_pretrained(base, str(adapter_dir)).eval()
        _check_all_used(model, adapter_dir / ADAPTER_WEIGHTS)
    except (SafetensorError, RuntimeError, ValueError, TypeError, KeyError, ModelError) as error:
        _unwrap(base, trainable)
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise ModelError(
            f"The adapter '{adapter_dir}' cannot be put on '{source}': {reason}. "
            "Give the adapter's own base model, or save the adapter again."
        ) from error
    return model


def _check_all_used(model: PeftModel, path: Path) -> None:
    """PEFT leaves adapters as they start where the file lacks their weights: nothing is forgotten there.

    Raises:
        ModelError: The file lacks weights of the adapter, or has some for layers that got none.
    """
    needed = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    allowed = needed
    with suppress(NotImplementedError):  # of transformers: image classifiers such as CLIP's have no table of embeddings
        allowed = set(get_peft_model_state_dict(model, save_embedding_layers=True))
    with safe_open(path, framework="pt") as file:
        stored = set(file.keys())
    problems = {
        "it lacks weights of the adapted layers": needed - stored,
        "it has weights for other layers": stored - allowed,
    }
    for what, names in problems.items():
        if names:
            raise ModelError(f"{what} ({len(names)}, such as '{min(names)}')")


def _unwrap(base: Any, trainable: Sequence[nn.Parameter]) -> None:
    """Put the layers back that were wrapped before something failed, so that the model can be given once more."""
    wrapped = [(name, module) for name, module in base.named_modules() if isinstance(module, BaseTunerLayer)]
    for name, module in wrapped:
        base.set_submodule(name, module.get_base_layer())
    vars(base).pop("peft_config", None)
    for weight in trainable:
        weight.requires_grad_(True)


def read_adapter_config(adapter_dir: Path) -> dict[str, Any]:
    """The adapter's config.

    Raises:
        ModelError: There is none, or it is damaged.
    """
    path = adapter_dir / ADAPTER_CONFIG
    if not path.is_file():
        raise ModelError(f"No adapter at '{adapter_dir}': {ADAPTER_CONFIG} is missing. Give the folder of an adapter.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"The adapter config '{path}' is damaged: {error}. Save the adapter again.") from error
    if not isinstance(config, dict) or "peft_type" not in config:
        raise ModelError(f"The adapter config '{path}' has no 'peft_type', so it is none of PEFT's. Save it again.")
    if config["peft_type"] not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise ModelError(
            f"The adapter config '{path}' is of the kind '{config['peft_type']}', which this version of PEFT does not "
            "know. Update PEFT, or import the package that defines it."
        )
    return config


def merge_adapter(place: Path, out: Path, *, base: str | None, progress: Progress) -> None:
    """Fold an adapter into its base model and write plain weights.

    Args:
        place: A run directory, or the folder of an adapter.
        out: Folder of the merged model.
        base: Name or folder of the base model; None for the one that the run or the adapter names.
        progress: Where finetuning is shown, if the base model has to be made again.

    Raises:
        ModelError: The adapter or its base model cannot be loaded, or the base model is not the run's any more.
        RunDirectoryError: The settings in the run directory are damaged.
    """
    run_dir = _run_dir(place)
    config = None if run_dir is None else _settings_of_run(run_dir)
    adapter_dir = place if run_dir is None else RunDirectory(run_dir).adapter
    named = read_adapter_config(adapter_dir).get("base_model_name_or_path")
    if run_dir is not None and config is not None:
        loaded = _given_base(run_dir, config, base) if base else _base_of_run(run_dir, config, progress)
    else:
        name = base or named
        if not name:
            raise ModelError(f"The adapter '{place}' does not name its base model. Give it with --base.")
        loaded = load_model(ModelSource(name, _kind(name)))
    adapted = load_adapted(loaded, adapter_dir)
    save_model(LoadedModel(adapted.model.merge_and_unload(), adapted.task, adapted.source), out)


def _run_dir(place: Path) -> Path | None:
    """The run directory that this is, or whose adapter it is: its settings say how its models are read."""
    adapter = place.absolute()
    folders = (place, adapter.parent) if adapter == RunDirectory(adapter.parent).adapter else (place,)
    return next((folder for folder in folders if (folder / CONFIG_NAME).is_file()), None)


def _base_of_run(run_dir: Path, config: RunConfig, progress: Progress) -> LoadedModel:
    """The run's base model, loaded or made again; what the record says of it must still be true."""
    loaded, expected = _own_base(config, progress), _recorded_base(run_dir)
    if expected is not None and model_sha256(loaded.model) != expected:
        raise ModelError(
            f"The base model '{loaded.source}' has other weights now than when the run in '{run_dir}' was made, so its "
            "adapter does not belong to them. Give the weights of then with --base."
        )
    return loaded


def _own_base(config: RunConfig, progress: Progress) -> LoadedModel:
    """The run's base model. Data are read only where it is made of them: what was forgotten may be deleted by now."""
    if config.base_model is not None:
        return load_model(other_source(config, config.base_model))
    if config.model.finetune is None:
        return load_model(configured_source(config, None))
    try:
        return prepare(config, progress).base()
    except DataError as error:
        advice = "Or give the base model with --base: the run's own is made by finetuning on the data."
        raise DataError(f"{error} {advice}") from error


def _given_base(run_dir: Path, config: RunConfig, name: str) -> LoadedModel:
    """The model that was given in place of the run's, in plain weights; a note says if it is another one.

    The record's hash is that of the weights as the run read them, so rounded ones cannot be compared.
    """
    own = other_source(config, name)
    loaded, expected = load_model(replace(own, dtype="float32", quantization=None)), _recorded_base(run_dir)
    comparable = expected is not None and own.dtype == "float32" and own.quantization is None
    if comparable and model_sha256(loaded.model) != expected:
        logger.warning(
            "'%s' has other weights than the model that the run in '%s' unlearned, so what it measured does not hold "
            "for the merged model. Measure that with `forget eval`.",
            name,
            run_dir,
        )
    return loaded


def _recorded_base(run_dir: Path) -> str | None:
    """Hash of the base model that a finished run unlearned."""
    record = RunDirectory(run_dir).finished_record()
    return None if record is None else record.models.get("base")


def _settings_of_run(run_dir: Path) -> RunConfig:
    try:
        return parse_config(read_yaml(run_dir / CONFIG_NAME), source=f"its {CONFIG_NAME}")
    except ConfigError as error:
        reason = str(error)[:300].rstrip(".")
        raise RunDirectoryError(
            f"The settings of the run in '{run_dir}' are damaged: {reason}. Give the folder of its adapter and --base."
        ) from error


def _kind(name: str) -> Literal["language", "image"]:
    """The task of a model, from the architecture that its config names."""
    with readable(name):
        config = AutoConfig.from_pretrained(resolve_folder(name))
    architectures = config.architectures or []
    return "image" if any(found.endswith("ForImageClassification") for found in architectures) else "language"
