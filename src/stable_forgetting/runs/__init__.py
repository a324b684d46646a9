"""Runs: unlearning as a call, and as a config with everything that a run leaves."""

from stable_forgetting.runs.directory import RunDirectory
from stable_forgetting.runs.pipeline import prepare, run
from stable_forgetting.runs.unlearning import Unlearned, unlearn

__all__ = ["RunDirectory", "Unlearned", "prepare", "run", "unlearn"]
