"""From the name of a source to its rows: local files and folders, built-in problems and hub data sets."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stable_forgetting.data.builtin.digits import digits_rows
from stable_forgetting.data.builtin.people import people_rows
from stable_forgetting.data.hub import load_hub_rows
from stable_forgetting.data.image_files import read_image_folder, read_npz
from stable_forgetting.data.rows import Rows, select_split
from stable_forgetting.data.tables import READERS
from stable_forgetting.errors import DataError, unknown_name

BUILTIN: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "builtin:people": people_rows,
    "builtin:digits": digits_rows,
}
"""The built-in problems by name."""

FILE_READERS: dict[str, Callable[[Path], list[dict[str, Any]]]] = {**READERS, ".npz": read_npz}
"""Reader by the ending of a file's name."""

_OTHER_FILE_ENDINGS = (".tsv", ".xlsx", ".zip", ".gz", ".pkl", ".pickle", ".npy", ".pt", ".arrow", ".yaml", ".md")


def load_rows(path: str, *, subset: str | None = None, split: str | None = None) -> Rows:
    """Read a source into rows.

    Args:
        path: A file (.jsonl .json .csv .parquet .txt .npz), a folder of images, ``builtin:people``,
            ``builtin:digits``, or the name of a hub data set.
        subset: Configuration of a hub data set; not allowed for anything else.
        split: Split of a hub data set, or the rows whose column ``split`` has this value.

    Returns:
        The rows in order, at least one.

    Raises:
        DataError: The source does not exist, cannot be read, is not a table, or has no rows.

    Example:
        >>> rows = load_rows("builtin:people", split="unseen")
        >>> rows.source
        'builtin:people, split unseen'
    """
    if not _is_local(path):
        rows = Rows(load_hub_rows(path, subset=subset, split=split), _hub_source(path, subset, split))
    elif subset is not None and not path.startswith("builtin:") and not Path(path).expanduser().exists():
        raise DataError(f"'{path}' does not exist. Give a file, a folder, or the name of a hub data set.")
    elif subset is not None:
        raise DataError(f"'{path}' is not a hub data set, so it has no subset '{subset}'. Leave 'subset' out.")
    else:
        try:
            rows = select_split(Rows(_read_local(path), path), split)
        except PermissionError as error:
            raise DataError(
                f"'{path}' cannot be read: no right to read '{error.filename}'. Make it readable."
            ) from error
    if not len(rows):
        raise DataError(f"{rows.source} has no rows. Give at least one.")
    return rows


def _is_local(path: str) -> bool:
    looks_like_file = Path(path).suffix.lower() in (*FILE_READERS, *_OTHER_FILE_ENDINGS)
    looks_like_path = path.startswith(("/", ".", "~", "builtin:")) or path.endswith("/") or path.count("/") > 1
    return looks_like_file or looks_like_path or Path(path).exists()


def _hub_source(path: str, subset: str | None, split: str | None) -> str:
    parts = [f"hub data set {path}", subset and f"subset {subset}", split and f"split {split}"]
    return ", ".join(part for part in parts if part)


def _read_local(path: str) -> list[dict[str, Any]]:
    if path.startswith("builtin:"):
        if path not in BUILTIN:
            raise DataError(unknown_name("built-in problem", path, BUILTIN))
        return BUILTIN[path]()
    place = Path(path).expanduser()
    if place.is_dir():
        return read_image_folder(place)
    if not place.is_file():
        raise DataError(_missing_file(place))
    reader = FILE_READERS.get(place.suffix.lower())
    if reader is None:
        raise DataError(
            f"Files with the ending '{place.suffix}' cannot be read ('{path}'). "
            f"Allowed: {' '.join(sorted(FILE_READERS))}, or a folder of images."
        )
    return reader(place)


def _missing_file(place: Path) -> str:
    folder = place.parent
    if not folder.is_dir():
        return f"There is no file '{place}': the folder '{folder}' does not exist. Check the path."
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    close = difflib.get_close_matches(place.name, names, n=3)
    hint = f"Names that come close: {', '.join(close)}." if close else "No name in the folder comes close."
    return f"There is no file '{place.name}' in '{folder}'. {hint}"
