"""Images in local files: NumPy archives and folders with one subfolder per class.

N = images, H × W = height and width in pixels, C = colour channels.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stable_forgetting.errors import DataError

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
SPLIT_NAMES = ("train", "test", "val", "valid", "validation")

Array = npt.NDArray[Any]

logger = logging.getLogger(__name__)

_LAYOUT = "Give arrays image and label, or x_train, y_train, x_test, y_test, and class_names if there are any."


def read_npz(path: Path) -> list[dict[str, Any]]:
    """Rows of a NumPy archive: columns ``image``, ``label``, ``split``, and ``class_name`` if there are names.

    The archive has the arrays ``image`` (N, H, W[, C]) and ``label`` (N,), or the same as ``x_train``, ``y_train``,
    ``x_test``, ``y_test``. Other arrays of N values become columns of their own, such as ``coarse_train``, which
    gives the column ``coarse``. ``class_names`` (K,) names the classes; an array such as ``coarse_names`` does the same
    for the numbers in another column, and gives the column ``coarse_name``. Archives that hold pickled objects are
    refused, because reading them may run code.

    Args:
        path: The file.

    Returns:
        The rows in order, training images first.

    Raises:
        DataError: The archive is damaged, holds pickled objects, or lacks the arrays above.
    """
    arrays = _load_arrays(path)
    columns_by_split = {
        split: columns for split in ("train", "test") if "image" in (columns := _split_columns(arrays, split))
    }
    if "image" in arrays:
        columns_by_split = {"": arrays}
    if not columns_by_split:
        raise DataError(f"'{path}' holds the arrays {', '.join(arrays) or 'none'}. {_LAYOUT}")
    rows: list[dict[str, Any]] = []
    for split, columns in columns_by_split.items():
        rows += _array_rows(columns, path, split)
    for kind, column in _named_columns(arrays, rows).items():
        names = arrays[f"{kind}_names"]
        if names.ndim != 1:
            raise DataError(
                f"{kind}_names in '{path}' has the shape {names.shape}. Give a list of names, one per number."
            )
        _add_names(rows, kind, column, [str(name) for name in names], path)
    return rows


def read_image_folder(path: Path) -> list[dict[str, Any]]:
    """Rows of a folder of images: columns ``image`` (the path), ``label``, ``class_name`` and perhaps ``split``.

    The folder holds one subfolder per class, or ``train``, ``test``, ``val``, ``valid`` or ``validation`` with one
    subfolder per class in each. Labels count the class names in alphabetical order, over all splits together. Files of
    other kinds in the folders of classes, and files deeper in them, are left out, which a warning says.

    Args:
        path: The folder.

    Returns:
        The rows, by split, class and file name in alphabetical order. The images are not read yet.

    Raises:
        DataError: There are no images in subfolders of this form, or others beside those of the splits.
    """
    splits = _splits(path)
    found = [_split_images(folder, {"split": folder.name}) for folder in splits] or [_split_images(path, {})]
    rows = [row for rows in found for row in rows]
    if not rows:
        raise DataError(
            f"The folder '{path}' holds no images of the form CLASS/IMAGE or train/CLASS/IMAGE "
            f"({' '.join(IMAGE_ENDINGS)}). Sort the images into one subfolder per class."
        )
    _refuse_unreadable_names(rows)
    _say_what_is_left_out(path, splits or [path], rows)
    labels = {name: label for label, name in enumerate(sorted({row["class_name"] for row in rows}))}
    return [{**row, "label": labels[row["class_name"]]} for row in rows]


def _refuse_unreadable_names(rows: Sequence[dict[str, Any]]) -> None:
    """Names are written into records, which are UTF-8; those of an old archive may be none."""
    for row in rows:
        try:
            str(row["image"]).encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"The name of the image or folder {str(row['image'])!r} is no UTF-8, so it cannot be written into a "
                "record. Rename it."
            ) from error


def _load_arrays(path: Path) -> dict[str, Array]:
    if not zipfile.is_zipfile(path):
        raise DataError(f"'{path}' is not a NumPy archive, or it is damaged. Write it with numpy.savez.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise DataError(f"'{path}' is a damaged NumPy archive ({error}). Write it again.") from error
        raise DataError(
            f"'{path}' holds pickled Python objects, which may run code when they are read, so they are not. "
            "Save arrays of numbers or of text (dtype uint8, int64, str)."
        ) from error
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise DataError(f"'{path}' is a damaged NumPy archive ({error}). Write it again.") from error


def _split_columns(arrays: Mapping[str, Array], split: str) -> dict[str, Array]:
    ending = f"_{split}"
    columns = {name.removesuffix(ending): array for name, array in arrays.items() if name.endswith(ending)}
    return {{"x": "image", "y": "label"}.get(name, name): array for name, array in columns.items()}


def _array_rows(columns: Mapping[str, Array], path: Path, split: str) -> list[dict[str, Any]]:
    images = columns["image"]
    place = f"'{path}'" + (f", {split} part" if split else "")
    if images.ndim not in (3, 4):
        raise DataError(
            f"The images in {place} have the shape {images.shape}. "
            "Give (images, height, width) or (images, height, width, channels)."
        )
    if "label" not in columns:
        raise DataError(f"{place} has images and no labels. {_LAYOUT}")
    labels = columns["label"]
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise DataError(
            f"The labels in {place} are {labels.dtype} of shape {labels.shape}, but there are {len(images)} images. "
            "Give one whole number per image."
        )
    names = [name for name, array in columns.items() if name != "image" and array.shape == labels.shape]
    lists = {name: columns[name].tolist() for name in names}
    extra = {"split": split} if split else {}
    return [
        {"image": image, **{name: values[place] for name, values in lists.items()}, **extra}
        for place, image in enumerate(images)
    ]


def _named_columns(arrays: Mapping[str, Array], rows: list[dict[str, Any]]) -> dict[str, str]:
    """Columns of numbers that an array of names belongs to, by what the names are called."""
    columns = {**{column: column for row in rows[:1] for column in row}, "class": "label"}
    return {kind: column for kind, column in columns.items() if f"{kind}_names" in arrays}


def _add_names(rows: list[dict[str, Any]], kind: str, column: str, names: list[str], path: Path) -> None:
    for number, row in enumerate(rows):
        value = row.get(column)
        if not isinstance(value, int) or not 0 <= value < len(names):
            raise DataError(
                f"Row {number} of '{path}' has {column} {value}, but {kind}_names has {len(names)} names. "
                f"Give whole numbers from 0 to {len(names) - 1}."
            )
        row[f"{kind}_name"] = names[value]


def _subfolders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _splits(path: Path) -> list[Path]:
    """Folders of the splits; none where the subfolders are classes, one of which may be called `test`.

    Raises:
        DataError: There are other folders beside them.
    """
    folders = _subfolders(path)
    splits = [folder for folder in folders if folder.name in SPLIT_NAMES]
    others = [folder.name for folder in folders if folder not in splits]
    if others and not any(_subfolders(folder) for folder in splits):
        return []
    if splits and others:
        raise DataError(
            f"The folder '{path}' has the splits {_quoted([folder.name for folder in splits])} and beside them "
            f"{_quoted(others)}. Move these elsewhere, or call them as splits are called ({', '.join(SPLIT_NAMES)})."
        )
    return splits


def _quoted(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _say_what_is_left_out(path: Path, parts: list[Path], rows: list[dict[str, Any]]) -> None:
    read = {row["image"] for row in rows}
    left = [
        file
        for part in parts
        for folder in _subfolders(part)
        for file in sorted(folder.rglob("[!.]*"))
        if file.is_file() and str(file) not in read
    ]
    if left:
        logger.warning(
            "Files in the folders of classes in '%s' that are not read, being no images (%s) or deeper in a subfolder: "
            "%d (first: '%s').",
            path,
            " ".join(IMAGE_ENDINGS),
            len(left),
            left[0].relative_to(path),
        )


def _split_images(path: Path, extra: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {"image": str(file), "class_name": folder.name, **extra}
        for folder in _subfolders(path)
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in IMAGE_ENDINGS and not file.name.startswith(".")
    ]
