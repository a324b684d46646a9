"""Comparisons: one problem, several methods, each a run of its own in a common folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stable_forgetting.bench.methods import refuse_changes
from stable_forgetting.config import RunConfig, apply_change, copied, flat_settings, parse_config, read_yaml
from stable_forgetting.errors import ConfigError, RunDirectoryError, StableForgettingError
from stable_forgetting.progress import Progress
from stable_forgetting.records import RECORD_NAME, RunRecord, read_record
from stable_forgetting.runs import RunDirectory, run
from stable_forgetting.runs.check import check_names

PROBLEMS = {"language": "people.yaml", "vision": "digits.yaml"}
"""The built-in comparisons by the name that `forget demo` takes."""


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """Settings that all methods share, and what each changes.

    Args:
        shared: Settings of a run.
        methods: By name, changes such as ``adapter.bound: sine``.
        after: By the name of a method, another one whose result it starts from: an earlier one in the order.
        notes: What a reader of the numbers has to know, one sentence each.
    """

    shared: Mapping[str, Any]
    methods: Mapping[str, Mapping[str, Any]]
    after: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def configs(self) -> dict[str, RunConfig]:
        """The config of each method, all checked before the first one runs.

        Raises:
            ConfigError: A method's settings are not allowed.
        """
        return {name: parse_config(self.settings(name), source=f"the method '{name}'") for name in self.methods}

    def settings(self, method: str) -> dict[str, Any]:
        """The settings of one method as given."""
        merged: dict[str, Any] = copied(self.shared)
        merged["name"] = method
        for path, value in self.methods[method].items():
            apply_change(merged, path, copied(value))
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
    methods = {str(name): chosen for name, chosen in methods.items()}
    for name, chosen in methods.items():
        refuse_changes(dict(changes), ["name", *flat_settings(chosen)], f"the method '{name}'", f"the file '{path}'")
    for place, value in changes:
        apply_change(given, place, value)
    return Comparison(given, methods)


def problem_path(name: str) -> Path:
    """File of a built-in comparison."""
    return Path(__file__).parent / "problems" / PROBLEMS[name]


def run_comparison(comparison: Comparison, out_dir: Path, *, progress: Progress) -> Iterator[RunRecord]:
    """Run every method that has not come to its end yet; one that fails stops only those that start from its result.

    So does one that cannot begin, because of a mistake that is found before it is trained. Where no method has run
    before it, the mistake may be of all of them, and ends the comparison at once.

    Args:
        comparison: What is compared.
        out_dir: Each method gets a folder of its name in it.
        progress: Where progress is shown.

    Yields:
        The record of each method that was run, in order.

    Raises:
        RunDirectoryError: A method's folder holds something else, such as a run with other settings; nothing ran.
        StableForgettingError: What kept the first method from beginning that could not, so that no record tells of it;
            with the name of the method, and raised when all others are done.
    """
    configs = comparison.configs()
    for name, config in configs.items():
        try:
            check_names(config)
        except ConfigError as error:
            raise ConfigError(f"The method '{name}': {error}") from error
        RunDirectory(out_dir / name).check(config, resume=True)
    missing: set[str] = set()
    refusals: list[StableForgettingError] = []
    has_run = False
    for name, config in configs.items():
        if comparison.after.get(name) in missing:
            missing.add(name)
            continue
        try:
            record = _run_or_failure(config, out_dir / name, comparison.settings(name), comparison.notes, progress)
        except StableForgettingError as error:
            refusals.append(type(error)(f"The method '{name}': {error}"))
            if not has_run:
                raise refusals[0] from error
            logger.warning("The method '%s' is left out: %s", name, error)
            missing.add(name)
            continue
        if record.status == "failed":
            missing.add(name)
        has_run = True
        yield record
    if refusals:
        raise refusals[0]


def _run_or_failure(
    config: RunConfig, run_dir: Path, given: Mapping[str, Any], notes: Sequence[str], progress: Progress
) -> RunRecord:
    """The record of a run, also of one that fails; one that left no record of this attempt raises what it raised."""
    before = _written(run_dir)
    try:
        return run(config, run_dir, given=given, notes=notes, resume=True, progress=progress)
    except RunDirectoryError:
        raise
    except (StableForgettingError, RuntimeError):  # a GPU without memory left is a RuntimeError
        if _written(run_dir) == before:
            raise
        record = read_record(run_dir)
        if record.status != "failed":
            raise
        return record


def _written(run_dir: Path) -> tuple[int, int] | None:
    """What tells two versions of the record apart: every writing makes a new file."""
    path = run_dir / RECORD_NAME
    if not path.is_file():
        return None
    found = path.stat()
    return found.st_ino, found.st_mtime_ns
