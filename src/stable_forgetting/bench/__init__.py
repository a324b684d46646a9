"""Comparisons of methods on one problem."""

from stable_forgetting.bench.comparison import PROBLEMS, Comparison, load_comparison, problem_path, run_comparison

__all__ = ["PROBLEMS", "Comparison", "load_comparison", "problem_path", "run_comparison"]
