"""Comparisons of methods on one problem."""

from stable_forgetting.bench.comparison import PROBLEMS, Comparison, load_comparison, problem_path, run_comparison
from stable_forgetting.bench.tofu import TofuModels, split_names, tofu_comparison

__all__ = [
    "PROBLEMS",
    "Comparison",
    "TofuModels",
    "load_comparison",
    "problem_path",
    "run_comparison",
    "split_names",
    "tofu_comparison",
]
