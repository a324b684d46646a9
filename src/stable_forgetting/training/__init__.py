"""Training of adapters that forget and of models that are taught."""

from stable_forgetting.training.history import TrainingOutcome
from stable_forgetting.training.sets import Sets
from stable_forgetting.training.train import finetune, train
from stable_forgetting.training.trainer import UnlearnTrainer, Validation

__all__ = ["Sets", "TrainingOutcome", "UnlearnTrainer", "Validation", "finetune", "train"]
