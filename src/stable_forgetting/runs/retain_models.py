"""Retain models made beforehand, for runs that start from another model than the one they are made of."""

from __future__ import annotations

from pathlib import Path

from stable_forgetting.config import RunConfig
from stable_forgetting.errors import ConfigError
from stable_forgetting.progress import Progress
from stable_forgetting.runs.pipeline import prepare


def make_retain_model(config: RunConfig, *, progress: Progress) -> Path:
    """The folder of the retain model that a run of this config would make, or has made.

    Args:
        config: A config with `model.finetune`, whose retain set the model is taught.
        progress: Where finetuning is shown.

    Returns:
        The folder where it is kept, by the content of the pretrained model, the retain set and the settings.

    Raises:
        ConfigError: The config has no `model.finetune`.
        StableForgettingError: The data or the pretrained model cannot be read.
    """
    if config.model.finetune is None:
        raise ConfigError(
            f"No retain model can be made for '{config.name}': its model.finetune, which says how, is missing. Add it."
        )
    made = prepare(config, progress).retain()
    assert made is not None
    return Path(made.model.name_or_path)
