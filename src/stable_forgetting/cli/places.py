"""Whether there is room for what a command is to write, before it begins its work."""

from __future__ import annotations

import os
from pathlib import Path

from stable_forgetting.errors import RunDirectoryError


def check_place(place: Path, option: str = "--out") -> None:
    """Check that a file or folder can be made where the option says; nothing is written.

    Raises:
        RunDirectoryError: It cannot.
    """
    nearest = next((parent for parent in place.absolute().parents if parent.exists()), None)
    if nearest is None or not nearest.is_dir():
        raise RunDirectoryError(f"Nothing can be written to '{place}': '{nearest}' is a file. Choose another {option}.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise RunDirectoryError(
            f"Nothing can be written to '{place}': no right to write in '{nearest}'. Choose another {option}."
        )


def check_file(path: Path) -> None:
    """The same of a file.

    Raises:
        RunDirectoryError: It cannot be made, or is a folder.
    """
    check_place(path)
    if path.is_dir():
        raise RunDirectoryError(f"'{path}' is a folder, not a file to be written. Give the path of a file with --out.")


def check_new_folder(out: Path) -> None:
    """The same of a folder that is not there yet.

    Raises:
        RunDirectoryError: It cannot be made, or is there.
    """
    check_place(out)
    if out.exists():
        raise RunDirectoryError(f"The folder '{out}' exists already. Choose another with --out, or remove it.")
