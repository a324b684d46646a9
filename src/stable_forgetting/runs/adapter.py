"""The adapter of a config in PEFT's words."""

from __future__ import annotations

from collections.abc import Sequence

from stable_forgetting.adapters import BoundedLoraConfig
from stable_forgetting.config import AdapterConfig


def bounded_config(chosen: AdapterConfig, modules_to_save: Sequence[str] | None = None) -> BoundedLoraConfig:
    """The adapter as configured.

    Args:
        chosen: The section of the config.
        modules_to_save: Names of further modules that are trained whole.

    Raises:
        ConfigError: An option is not allowed.
    """
    return BoundedLoraConfig(
        r=chosen.rank,
        bound=chosen.bound,
        omega=chosen.omega,
        scale=chosen.scale,
        target_modules=chosen.target_modules,
        layers_to_transform=chosen.blocks,
        init_seed=chosen.seed,
        modules_to_save=None if modules_to_save is None else list(modules_to_save),
    )
