"""Comparisons: one problem, several methods, each a run of its own in a common folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stable_forgetting.config import RunConfig, apply_change, parse_config, read_yaml
from stable_forgetting.errors import ConfigError, StableForgettingError
from stable_forgetting.progress import Progress
from stable_forgetting.records import RECORD_NAME, RunRecord, read_record
from stable_forgetting.runs import run

PROBLEMS = {"language": "people.yaml", "vision": "digits.yaml"}
"""The built-in comparisons by the name that `forget demo` takes."""


@dataclass(frozen=True)
class Comparison:
    """Settings that all methods share, and what each changes.

    Args:
        shared: Settings of a run.
        methods: By name, changes such as ``adapter.bound: sine``.
    """

    shared: Mapping[str, Any]
    methods: Mapping[str, Mapping[str, Any]]

    def configs(self) -> dict[str, RunConfig]:
        """The config of each method, all checked before the first one runs.

        Raises:
            ConfigError: A method's settings are not allowed.
        """
        return {name: parse_config(self.settings(name), source=f"the method '{name}'") for name in self.methods}

    def settings(self, method: str) -> dict[str, Any]:
        """The settings of one method as given."""
        merged: dict[str, Any] = yaml.safe_load(yaml.safe_dump(dict(self.shared)))
        merged["name"] = method
        for path, value in self.methods[method].items():
            apply_change(merged, path, value)
        return merged


def load_comparison(path: Path, changes: Sequence[tuple[str, Any]] = ()) -> Comparison:
    """Read a comparison: a run's config with a further section `methods`.

    Raises:
        ConfigError: The file is missing, no YAML, or has no methods.
    """
    given = read_yaml(path)
    methods = given.pop("methods", None)
    if not isinstance(methods, dict) or not methods or not all(isinstance(m, dict) for m in methods.values()):
        raise ConfigError(
            f"The comparison '{path}' needs a section 'methods' with the changes of each method by its name, such as "
            "'sine: {adapter.bound: sine}'. For a single method use `forget run`."
        )
    for place, value in changes:
        apply_change(given, place, value)
    return Comparison(given, methods)


def problem_path(name: str) -> Path:
    """File of a built-in comparison."""
    return Path(__file__).parent / "problems" / PROBLEMS[name]


def run_comparison(comparison: Comparison, out_dir: Path, *, progress: Progress) -> Iterator[RunRecord]:
    """Run every method that has not come to its end yet; a method that fails does not keep the others from running.

    Args:
        comparison: What is compared.
        out_dir: Each method gets a folder of its name in it.
        progress: Where progress is shown.

    Yields:
        The record of each method, in order.

    Raises:
        StableForgettingError: A mistake that was found before anything ran.
    """
    for name, config in comparison.configs().items():
        run_dir = out_dir / name
        try:
            yield run(config, run_dir, given=comparison.settings(name), resume=True, progress=progress)
        except StableForgettingError:
            if not (run_dir / RECORD_NAME).is_file():
                raise
            yield read_record(run_dir)
