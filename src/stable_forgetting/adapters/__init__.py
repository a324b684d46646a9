"""Bounded low-rank adapters, as a PEFT method: W' = W + scale * bound(omega * (B @ A)).

Importing this package enters the method in PEFT's tables, after which ``get_peft_model(model, BoundedLoraConfig())``
and ``PeftModel.from_pretrained`` know it. The package knows nothing about unlearning.
"""

from stable_forgetting.adapters.attaching import attach, without_old_names
from stable_forgetting.adapters.bounds import BOUNDS, Bound, get_bound
from stable_forgetting.adapters.config import PEFT_TYPE, BoundedLoraConfig
from stable_forgetting.adapters.diagnostics import (
    AdapterStatistics,
    LayerCertificate,
    adapter_statistics,
    certificate,
    effective_rank,
)
from stable_forgetting.adapters.families import (
    ATTENTION_LAYERS,
    MLP_LAYERS,
    TARGET_GROUPS,
    block_number,
    group_target_modules,
    list_linear_layers,
)
from stable_forgetting.adapters.functional import LowRankChange, delta_weight, effective_weight
from stable_forgetting.adapters.layer import BoundedLoraLinear
from stable_forgetting.adapters.linear import bounded_linear
from stable_forgetting.adapters.model import BoundedLoraModel, register
from stable_forgetting.adapters.rounding import RoundingSteps, rounding_steps

__all__ = [
    "attach",
    "without_old_names",
    "BOUNDS",
    "Bound",
    "get_bound",
    "LowRankChange",
    "delta_weight",
    "effective_weight",
    "bounded_linear",
    "PEFT_TYPE",
    "BoundedLoraConfig",
    "BoundedLoraLinear",
    "BoundedLoraModel",
    "register",
    "MLP_LAYERS",
    "ATTENTION_LAYERS",
    "TARGET_GROUPS",
    "block_number",
    "group_target_modules",
    "list_linear_layers",
    "LayerCertificate",
    "certificate",
    "AdapterStatistics",
    "adapter_statistics",
    "effective_rank",
    "RoundingSteps",
    "rounding_steps",
]

register()
