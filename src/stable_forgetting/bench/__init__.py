"""Comparisons of methods on one problem."""

from stable_forgetting.bench.benchmarks import make_comparison
from stable_forgetting.bench.class_deletion import class_deletion_comparison
from stable_forgetting.bench.comparison import PROBLEMS, Comparison, load_comparison, problem_path, run_comparison
from stable_forgetting.bench.tofu import split_names, tofu_comparison

__all__ = [
    "PROBLEMS",
    "Comparison",
    "class_deletion_comparison",
    "load_comparison",
    "make_comparison",
    "problem_path",
    "run_comparison",
    "split_names",
    "tofu_comparison",
]
