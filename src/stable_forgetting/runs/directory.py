"""A run's directory: what is in it, and that nothing in it is lost or mixed with another run."""

from __future__ import annotations

from pathlib import Path

import yaml

from stable_forgetting.config import RunConfig
from stable_forgetting.errors import RunDirectoryError
from stable_forgetting.records import RECORD_NAME, RunRecord, read_record, write_text

CONFIG_NAME = "config.yaml"


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

    def scores(self, role: str) -> Path:
        """Per-example values of one model."""
        return self.path / "per_example" / f"{role}.json"

    def finished_record(self) -> RunRecord | None:
        """The record, if the run has come to its end; a failed run has not."""
        if not (self.path / RECORD_NAME).is_file():
            return None
        record = read_record(self.path)
        return None if record.status == "failed" else record

    def check(self, config: RunConfig, *, resume: bool) -> None:
        """Whether the directory is free for a run, or holds the run that is to be resumed; nothing is written.

        Raises:
            RunDirectoryError: It holds something else, or a run that is not to be resumed.
        """
        place, config_path = self.path, self.path / CONFIG_NAME
        if place.exists() and not place.is_dir():
            raise RunDirectoryError(f"The run directory '{place}' is a file. Choose another with --out.")
        settings = config.model_dump(mode="json")
        if config_path.is_file():
            if not resume:
                raise RunDirectoryError(
                    f"The run directory '{place}' already holds a run. Continue it with --resume or choose another "
                    "with --out."
                )
            if yaml.safe_load(config_path.read_text(encoding="utf-8")) != settings:
                raise RunDirectoryError(
                    f"The run directory '{place}' holds a run with other settings (see {CONFIG_NAME} in it), so it "
                    "cannot be resumed with these. Choose another with --out."
                )
        elif place.is_dir() and any(place.iterdir()):
            raise RunDirectoryError(
                f"The directory '{place}' is not empty and holds no run. Choose an empty or new one with --out."
            )

    def claim(self, config: RunConfig) -> None:
        """Write the run's settings, by which it is known from then on."""
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        write_text(self.path / CONFIG_NAME, text)
