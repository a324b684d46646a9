"""From the options of a benchmark to its comparison."""

from __future__ import annotations

from pathlib import Path

from stable_forgetting.bench.class_deletion import class_deletion_comparison
from stable_forgetting.bench.comparison import Comparison
from stable_forgetting.bench.tofu import tofu_comparison
from stable_forgetting.config.benchmark_options import ClassDeletionOptions, TofuOptions
from stable_forgetting.progress import Progress


def make_comparison(options: TofuOptions | ClassDeletionOptions, out_dir: Path, *, progress: Progress) -> Comparison:
    """The comparison that a benchmark's options describe.

    Args:
        options: The options.
        out_dir: Where its runs will be.
        progress: Where work is shown that has to be done before the first run.

    Raises:
        StableForgettingError: A name, the data or the model is not what it should be.
    """
    if isinstance(options, TofuOptions):
        return tofu_comparison(options)
    return class_deletion_comparison(options, out_dir, progress=progress)
