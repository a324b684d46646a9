"""What a run is made of: its options, and how they are read from settings."""

from stable_forgetting.config.data_options import DataConfig, SourceConfig
from stable_forgetting.config.model_options import AdapterConfig, FinetuneConfig, ModelConfig
from stable_forgetting.config.options import (
    LEAST_TARGET,
    EvaluationConfig,
    ObjectiveConfig,
    RunConfig,
    StopRule,
    TargetConfig,
    TrainingConfig,
)
from stable_forgetting.config.problems import MEASURED_ONLY, WITH_TARGETS, measures_again
from stable_forgetting.config.settings import (
    apply_change,
    copied,
    flat_settings,
    load_config,
    parse_change,
    parse_config,
    read_yaml,
)

__all__ = [
    "LEAST_TARGET",
    "MEASURED_ONLY",
    "WITH_TARGETS",
    "AdapterConfig",
    "DataConfig",
    "EvaluationConfig",
    "FinetuneConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "RunConfig",
    "SourceConfig",
    "StopRule",
    "TargetConfig",
    "TrainingConfig",
    "apply_change",
    "copied",
    "flat_settings",
    "load_config",
    "measures_again",
    "parse_change",
    "parse_config",
    "read_yaml",
]
