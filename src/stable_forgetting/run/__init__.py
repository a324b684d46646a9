"""Runs: unlearning as a call, and as a config with everything that a run leaves."""

from stable_forgetting.run.directory import RunDirectory
from stable_forgetting.run.pipeline import prepare, run
from stable_forgetting.run.unlearning import Unlearned, unlearn

__all__ = ["RunDirectory", "Unlearned", "prepare", "run", "unlearn"]
