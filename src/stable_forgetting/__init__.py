"""Bounded parameter-efficient unlearning for language models and vision transformers.

The public names are loaded when they are first used: reports and `forget --help` need no torch, and do not wait for it.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stable_forgetting.adapters import BoundedLoraConfig, bounded_linear, certificate, delta_weight
    from stable_forgetting.cli.progress import RichProgress
    from stable_forgetting.config import RunConfig, TargetConfig, TrainingConfig, load_config
    from stable_forgetting.errors import StableForgettingError
    from stable_forgetting.objectives import Objective, build_objective
    from stable_forgetting.records import RunRecord, read_record
    from stable_forgetting.report import write_report
    from stable_forgetting.runs import Unlearned, load_adapter, run, unlearn

_HOMES = {
    "unlearn": "runs",
    "Unlearned": "runs",
    "load_adapter": "runs",
    "run": "runs",
    "RunConfig": "config",
    "TrainingConfig": "config",
    "TargetConfig": "config",
    "load_config": "config",
    "BoundedLoraConfig": "adapters",
    "bounded_linear": "adapters",
    "delta_weight": "adapters",
    "certificate": "adapters",
    "Objective": "objectives",
    "build_objective": "objectives",
    "RunRecord": "records",
    "read_record": "records",
    "write_report": "report",
    "RichProgress": "cli.progress",
    "StableForgettingError": "errors",
}

__all__ = [
    "unlearn",
    "Unlearned",
    "load_adapter",
    "run",
    "RunConfig",
    "TrainingConfig",
    "TargetConfig",
    "load_config",
    "BoundedLoraConfig",
    "bounded_linear",
    "delta_weight",
    "certificate",
    "Objective",
    "build_objective",
    "RunRecord",
    "read_record",
    "write_report",
    "RichProgress",
    "StableForgettingError",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


if "peft" in sys.modules:
    # Whoever uses PEFT expects `import stable_forgetting` to be enough for PeftModel.from_pretrained. Where PEFT is
    # imported later, `load_adapter` or `import stable_forgetting.adapters` does it: to load PEFT here takes seconds.
    importlib.import_module(f"{__name__}.adapters")
