"""Runs: unlearning as a call, and as a config with everything that a run leaves."""

from stable_forgetting.runs.adapted import load_adapter
from stable_forgetting.runs.directory import RunDirectory
from stable_forgetting.runs.pipeline import run
from stable_forgetting.runs.preparation import prepare
from stable_forgetting.runs.unlearning import Unlearned, unlearn

__all__ = ["RunDirectory", "Unlearned", "load_adapter", "prepare", "run", "unlearn"]
