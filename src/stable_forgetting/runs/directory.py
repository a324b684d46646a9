"""A run's directory: what is in it, and that nothing in it is lost or mixed with another run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from stable_forgetting import processes
from stable_forgetting.config import RunConfig, flat_settings, measures_again
from stable_forgetting.errors import RunDirectoryError
from stable_forgetting.records import RECORD_NAME, RunRecord, read_record, write_text
from stable_forgetting.runs.target_distributions import VERSION as DISTRIBUTIONS_VERSION

CONFIG_NAME = "config.yaml"
INPUTS_NAME = "inputs.json"
FILES_NAME = "files.json"
BASE_NAME = "base_model.json"

_NUM_SHOWN = 3
"""Settings that are named where some differ."""

_LONGEST_SHOWN = 40
"""Letters of a setting's value in a message."""


def code_versions(config: RunConfig) -> dict[str, str]:
    """Versions of what the code makes for a run, as far as there have been several, by the name of the input."""
    makes_distributions = config.objective.name == "calibrated_distribution"
    return {"target distributions": DISTRIBUTIONS_VERSION} if makes_distributions else {}


class RunDirectory:
    """Paths in a run directory.

    Args:
        path: The directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.adapter = path / "adapter"
        self.merged = path / "merged"
        self.checkpoints = path / "checkpoints"
        self.report = path / "report.html"
        self._replacing = path / "per_example" / "replacing"

    def scores(self, role: str) -> Path:
        """Per-example values of one model."""
        return self.path / "per_example" / f"{role}.json"

    def finished_record(self) -> RunRecord | None:
        """The record, if the run has come to its end; a failed run has not."""
        if not (self.path / RECORD_NAME).is_file():
            return None
        record = read_record(self.path)
        return None if record.status == "failed" else record

    def is_measured(self, record: RunRecord, config: RunConfig) -> bool:
        """Whether a record's values, and those beside it, are measured as these settings say."""
        if self._replacing.exists():
            return False
        now = config.model_dump(mode="json")
        return not self._changes(config) and not _differences(_with_defaults(record.config), now)

    def differences(self, record: RunRecord, config: RunConfig) -> str:
        """In words, in what these settings differ from those that a record has."""
        found = _differences(_with_defaults(record.config), config.model_dump(mode="json"))
        return _named(found) if found else "a measuring with other settings was interrupted"

    def _changes(self, config: RunConfig) -> dict[str, tuple[Any, Any]]:
        return _differences(_read_settings(self.path / CONFIG_NAME), config.model_dump(mode="json"))

    def has_files(self, files: Mapping[str, list[int]] | None, gone: Sequence[Path] = ()) -> bool:
        """Whether no local file that the run read has changed since; one that has may still hold the same examples.

        Args:
            files: What `local_files` gives now.
            gone: Folders that are no longer there and cannot be other ones: their files are not missed.
        """
        path = self.path / FILES_NAME
        if files is None or not path.is_file():
            return False
        try:
            known = _read_json(path) or {}
        except RunDirectoryError:
            return False  # the inputs are read and compared then, which this saves
        missed = {file for file in known if any(Path(file).is_relative_to(folder) for folder in gone)}
        return files == {file: state for file, state in known.items() if file not in missed}

    def check(self, config: RunConfig, *, resume: bool) -> None:
        """Whether the directory is free for a run, or holds the run that is to be resumed; nothing is written.

        A run may be resumed with settings that decide on its measuring alone.

        Raises:
            RunDirectoryError: It holds something else, or a run that is not to be resumed.
        """
        place, config_path = self.path, self.path / CONFIG_NAME
        if place.exists() and not place.is_dir():
            raise RunDirectoryError(f"The run directory '{place}' is a file. Choose another with --out.")
        if config_path.is_file():
            if not resume:
                raise RunDirectoryError(
                    f"The run directory '{place}' already holds a run. Continue it with --resume or choose another "
                    "with --out."
                )
            allowed = measures_again(config, is_half_trained=self.checkpoints.exists() and not self.adapter.exists())
            differences = {path: both for path, both in self._changes(config).items() if path not in allowed}
            if differences:
                raise RunDirectoryError(
                    f"The run directory '{place}' holds a run with other settings ({_named(differences)}), so it "
                    f"cannot be resumed with these. Choose another with --out, or give those of its {CONFIG_NAME}."
                )
            self._check_versions(config)
        elif place.is_dir() and any(place.iterdir()):
            raise RunDirectoryError(
                f"The directory '{place}' is not empty and holds no run. Choose an empty or new one with --out."
            )

    def _check_versions(self, config: RunConfig) -> None:
        """Refuse what was begun by code that gives something else, finished or not: it is compared with nothing new."""
        if not (self.path / INPUTS_NAME).is_file():
            return
        for name, version in code_versions(config).items():
            if self.known_input(name) != version:
                raise RunDirectoryError(
                    f"The run in '{self.path}' was begun by another version of stable-forgetting, which makes {name} "
                    "in another way, so it cannot be resumed, finished or not. Run it anew with another --out."
                )

    def claim(self, config: RunConfig, inputs: Mapping[str, str], files: Mapping[str, list[int]] | None = None) -> None:
        """Write the run's settings and the identity of its inputs, by which it is known from then on.

        The settings of a finished run stay until it is measured with others.

        All processes check; the main one writes.

        Args:
            config: The settings.
            inputs: Hash of the model as configured and of each set, by name.
            files: What `local_files` gave before the inputs were read.

        Raises:
            RunDirectoryError: The directory holds a run on other inputs.
        """
        path = self.path / INPUTS_NAME
        if path.is_file():
            known = {**self._models_of_record(inputs), **_read_json(path)}
            changed = sorted(name for name in known if known[name] != inputs.get(name))
            if changed:
                raise RunDirectoryError(
                    f"The run directory '{self.path}' holds a run on other inputs (changed: {', '.join(changed)}), "
                    "so it cannot be resumed. Choose another with --out."
                )
        if not processes.is_main_process():
            return
        try:
            if self.finished_record() is None:
                self._discard_values(config)
                self.write_settings(config)
            write_text(path, json.dumps(dict(inputs), indent=1))
            write_text(self.path / FILES_NAME, json.dumps(files))
        except OSError as error:
            raise self._not_written(error) from error

    def known_input(self, name: str) -> str | None:
        """The hash of one input that the run was begun with; None if there is none of that name."""
        path = self.path / INPUTS_NAME
        return _read_json(path).get(name) if path.is_file() else None

    def _discard_values(self, config: RunConfig) -> None:
        """Delete what an unfinished run measured of the unlearned model with other settings."""
        if (self.path / CONFIG_NAME).is_file() and self._changes(config):
            for path in self.path.glob("per_example/unlearned*.json"):
                path.unlink()

    def write_settings(self, config: RunConfig) -> None:
        """Write the settings by which the run is known."""
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        write_text(self.path / CONFIG_NAME, text)

    @contextmanager
    def replaced(self, config: RunConfig) -> Iterator[None]:
        """Within, values and record of a finished run are replaced by those of other settings.

        However often that is interrupted, the directory is not measured before it was done once to the end.

        Raises:
            RunDirectoryError: Something could not be written.
        """
        try:
            write_text(self._replacing, "")
            self.write_settings(config)
            yield
            self._replacing.unlink()
        except OSError as error:
            raise self._not_written(error) from error

    def _not_written(self, error: OSError) -> RunDirectoryError:
        return RunDirectoryError(
            f"The run directory '{self.path}' cannot be written: {error.strerror}. Choose another with --out."
        )

    def claim_base(self, sha256: str) -> None:
        """Write which base model the run trains on: one that is made by finetuning can be made anew with other weights.

        All processes check; the main one writes.

        Args:
            sha256: Hash of its weights.

        Raises:
            RunDirectoryError: What is here was begun on another one.
        """
        path, record = self.path / BASE_NAME, self.finished_record()
        known = [_read_json(path)["sha256"]] if path.is_file() else []
        known += [record.models["base"]] if record is not None and "base" in record.models else []
        if any(other != sha256 for other in known):
            raise RunDirectoryError(
                f"The run in '{self.path}' was begun on a base model with other weights: it was made anew since then, "
                "by other versions or on another machine, so the run cannot be resumed. Choose another with --out."
            )
        if processes.is_main_process():
            write_text(path, json.dumps({"sha256": sha256}))

    def _models_of_record(self, inputs: Mapping[str, str]) -> dict[str, str]:
        """Hashes of given models that a finished run has in its record: earlier versions have them there alone."""
        record = self.finished_record()
        models = {} if record is None else {f"{role} model": sha256 for role, sha256 in record.models.items()}
        return {name: sha256 for name, sha256 in models.items() if name in inputs}


def _read_settings(path: Path) -> dict[str, Any]:
    """The settings of a run."""
    try:
        written = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _damaged(path) from error
    if not isinstance(written, dict):
        raise _damaged(path)
    return _with_defaults(written)


def _with_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """Options that a run did not have yet with their defaults; as written if not allowed now."""
    try:
        return RunConfig.model_validate(settings).model_dump(mode="json")
    except ValidationError:
        return settings


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> RunDirectoryError:
    return RunDirectoryError(
        f"The file '{path}' of the run is damaged, so it cannot be resumed. Choose another directory with --out."
    )


def _differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that differ: both values by path; None where there is no such setting."""
    old, new = (flat_settings(_numbered(settings)) for settings in (there, now))
    both = {path: (old.get(path), new.get(path)) for path in [*new, *old]}
    return {path: (first, second) for path, (first, second) in both.items() if first != second}


def _numbered(value: Any) -> Any:
    """With the places of a list of sections as their names, so that one setting of one of them can be told."""
    if isinstance(value, Mapping):
        return {name: _numbered(part) for name, part in value.items()}
    if isinstance(value, list) and value and all(isinstance(part, Mapping) for part in value):
        return {str(number): _numbered(part) for number, part in enumerate(value)}
    return value


def _named(differences: Mapping[str, tuple[Any, Any]]) -> str:
    """The first differences in words, and how many more there are."""
    shown = [f"{place}: {_short(there)} there, {_short(now)} now" for place, (there, now) in differences.items()]
    more = len(shown) - _NUM_SHOWN
    return "; ".join(shown[:_NUM_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"
