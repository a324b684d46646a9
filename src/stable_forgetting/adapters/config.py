"""Options of a bounded adapter, as a PEFT config."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from enum import Enum
from numbers import Integral, Real
from typing import Any

import numpy as np
from peft.config import PeftConfig

from stable_forgetting.adapters.bounds import BOUNDS
from stable_forgetting.errors import ConfigError, unknown_name


class BoundedPeftType(str, Enum):  # noqa: UP042 -- PEFT reads str(type) as "class.name"
    """Name of the method in PEFT's tables and in saved configs: the plain string, with what PEFT asks of its own.

    A process that has not imported this package does not know the name, so that loading the adapter there fails
    instead of giving plain LoRA.
    """

    BOUNDED_LORA = "BOUNDED_LORA"


_LARGEST = float(np.finfo(np.float32).max)

PEFT_TYPE = BoundedPeftType.BOUNDED_LORA
"""The only name of the method."""


@dataclass
class BoundedLoraConfig(PeftConfig):  # type: ignore[misc]
    """Options of a bounded adapter: W' = W + scale * bound(omega * (B @ A)).

    Unless given, the scale of a layer is ``(lora_alpha / r) / sqrt(in_features)``, the factor of the sine-activated
    low-rank adapter (arXiv 2403.19243); "Stable Forgetting" (arXiv 2509.24166) leaves it open. With the default of
    ``lora_alpha`` that is ``1 / sqrt(in_features)``. Attaching the adapter writes the scale of every layer into
    ``resolved_scales`` of the model's own copy of the config, ``model.peft_config[name]``. It is saved there and
    used on loading, never computed again.

    Attributes:
        r: Rank of the product B @ A.
        bound: Name of the bounding function, a key of ``BOUNDS``.
        omega: Frequency inside the bound; finite and not 0. 100 is the paper's value for language models.
        scale: Factor outside the bound for all layers, the largest change of any weight; None for the default above.
        lora_alpha: Numerator of the default scale; None means ``r``. Not allowed together with ``scale``.
        init_seed: Seed of the random start of A, the same for equal layer names whatever else draws random numbers;
            None draws from torch's global state.
        target_modules: Names or a regular expression of the layers to adapt; ``"mlp"``, ``"attention"`` or
            ``"mlp_and_attention"`` of the model's family; ``"all-linear"``; or None for ``"mlp"``.
        exclude_modules: Names or a regular expression of layers to leave out.
        layers_to_transform: Numbers of the blocks to adapt, from 0 (`block_number`); None for all.
        layers_pattern: Name of the list of blocks that the indices count in.
        modules_to_save: Further modules to train and save as they are.
        resolved_scales: Scale of every adapted layer by its name; filled in on attaching.

    Raises:
        ConfigError: If an option is not allowed; all problems are in one message.

    Example:
        >>> BoundedLoraConfig(r=4, bound="sine").omega
        100.0
    """

    r: int = 4
    bound: str = "sine"
    omega: float = 100.0
    scale: float | None = None
    lora_alpha: float | None = None
    init_seed: int | None = None
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    resolved_scales: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check every option and collect what is wrong."""
        super().__post_init__()
        self.peft_type = PEFT_TYPE
        problems = [*_adapter_problems(self), *_target_problems(self)]
        if problems:
            raise ConfigError(" ".join(problems))
        for name in ("r", "omega", "scale", "lora_alpha"):
            value = getattr(self, name)
            setattr(self, name, value.item() if isinstance(value, np.generic) else value)  # as JSON can hold it
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            setattr(self, name, set(value) if isinstance(value, (list, tuple)) else value)

    def scale_for(self, in_features: int) -> float:
        """Scale that a new layer gets.

        Args:
            in_features: Length of the layer's input.

        Returns:
            ``scale`` if given, else ``(lora_alpha / r) / sqrt(in_features)``.

        Example:
            >>> BoundedLoraConfig().scale_for(in_features=64)
            0.125
        """
        if self.scale is not None:
            return float(self.scale)
        lora_alpha = self.r if self.lora_alpha is None else self.lora_alpha
        return (lora_alpha / self.r) / math.sqrt(in_features)

    def to_dict(self) -> dict[str, Any]:
        """Options as plain values; sets become sorted lists, so that equal configs give equal files."""
        values: dict[str, Any] = super().to_dict()
        return {name: sorted(value) if isinstance(value, set) else value for name, value in values.items()}


def _adapter_problems(config: BoundedLoraConfig) -> list[str]:
    problems = []
    if not isinstance(config.r, Integral) or isinstance(config.r, bool) or config.r < 1:
        problems.append(f"The rank r is {config.r!r}, a whole number of at least 1 is needed. Usual are 4 to 32.")
    if not isinstance(config.bound, str) or config.bound not in BOUNDS:
        problems.append(unknown_name("bound", str(config.bound), BOUNDS))
    if not _is_finite(config.omega) or config.omega == 0:
        problems.append(
            f"omega is {config.omega!r}, a number other than 0 that float32 can hold is needed: at 0 the adapter stays "
            "zero and gets no gradient. The default is 100."
        )
    for name in ("scale", "lora_alpha"):
        value = getattr(config, name)
        if value is not None and not (_is_finite(value) and value > 0):
            problems.append(
                f"{name} is {value!r}, a number above 0 that float32 can hold is needed. The default is without."
            )
    if config.scale is not None and config.lora_alpha is not None:
        problems.append(
            f"scale is {config.scale!r} and lora_alpha is {config.lora_alpha!r}, but lora_alpha only sets the default "
            "of scale. Give one of them."
        )
    return problems


def _target_problems(config: BoundedLoraConfig) -> list[str]:
    problems = []
    if config.layers_pattern is not None and config.layers_to_transform is None:
        problems.append(
            f"layers_pattern is {config.layers_pattern!r} but layers_to_transform is not given. Give both or neither."
        )
    for name in ("target_modules", "exclude_modules"):
        pattern = getattr(config, name)
        parts = [pattern] if isinstance(pattern, str) or not isinstance(pattern, (list, tuple, set)) else [*pattern]
        if pattern is not None and not all(isinstance(part, str) for part in parts):
            problems.append(f"{name} is {pattern!r}. Give names of layers in a list, or a text.")
            continue
        try:
            re.compile(pattern if isinstance(pattern, str) else "")
        except re.error as error:
            problems.append(
                f"{name} is {pattern!r}, which is no regular expression: {error}. Correct it, or give a list of names."
            )
    return problems


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and abs(float(value)) <= _LARGEST
