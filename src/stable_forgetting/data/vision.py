"""From rows to image examples, and the division of test images by the deleted classes.

N = images in a batch, C = channels, H × W = height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from stable_forgetting.data.array_store import ArrayStore
from stable_forgetting.data.examples import ExampleSet, ImageExample, ImageOnDemand, pixels_sha256
from stable_forgetting.data.rows import Row, Rows
from stable_forgetting.errors import DataError

Pixels = npt.NDArray[np.uint8]
Process = Callable[[Sequence[Pixels]], Tensor]
"""The model's image processor: images (H, W, 3) to pixel values (N, C, H', W'), float32."""

_BATCH = 256


@dataclass(frozen=True)
class ImageColumns:
    """Names of the columns that are read.

    Args:
        image: PIL image, uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or path of an image file.
        label: Class index from 0.
    """

    image: str = "image"
    label: str = "label"


def image_examples(
    rows: Rows,
    process: Process,
    *,
    name: str,
    columns: ImageColumns | None = None,
    num_classes: int | None = None,
    store: ArrayStore | None = None,
    in_memory: bool = True,
) -> ExampleSet[ImageExample]:
    """Image examples of all rows. Grey images get three equal channels, transparency is dropped.

    Args:
        rows: The table.
        process: The model's image processor.
        name: Name of the set.
        columns: Which columns are read; None for ``image`` and ``label``.
        num_classes: Number of classes that the model tells apart; None: labels are not checked against it.
        store: Where pixel values of this image processor are kept, so that an image is scaled once in its life.
        in_memory: Whether pixels and pixel values are held in memory. If not, images in files are read again when they
            are looked at, and without a store scaled again, too.

    Returns:
        One example per row, in order. The other columns are in the examples' metadata.

    Raises:
        DataError: A column is missing, an image cannot be read, a label is not a class index, or there are no rows.
    """
    columns = columns or ImageColumns()
    _require_columns(rows, columns, name)
    examples: list[ImageExample] = []
    for start in range(0, len(rows), _BATCH):
        numbers = range(start, min(start + _BATCH, len(rows)))
        places = [f"row {number} of the {name} set" for number in numbers]
        images = [rows[number].get(columns.image) for number in numbers]
        pixels = [read_pixels(image, place) for image, place in zip(images, places, strict=True)]
        labels = [
            _read_label(rows[n].get(columns.label), num_classes, place)
            for n, place in zip(numbers, places, strict=True)
        ]
        metadata = [_other_columns(rows[number], columns) for number in numbers]
        if in_memory:
            values = _kept_values(pixels, process, store) if store else list(process(pixels))
            examples += [ImageExample(*parts) for parts in zip(pixels, labels, values, metadata, strict=True)]
            continue
        readers = [_reader(*parts) for parts in zip(images, pixels, places, strict=True)]
        scaled = _kept_values(pixels, process, store) if store else [None] * len(pixels)
        examples += [
            ImageOnDemand(read, _values_reader(read, process, value), label, pixels_sha256(image), other)
            for read, value, label, image, other in zip(readers, scaled, labels, pixels, metadata, strict=True)
        ]
    return ExampleSet(name, examples, rows.source)


def _kept_values(pixels: list[Pixels], process: Process, store: ArrayStore) -> list[Tensor]:
    return store.arrays([pixels_sha256(image) for image in pixels], lambda places: process([pixels[n] for n in places]))


def _reader(image: Any, pixels: Pixels, place: str) -> Callable[[], Pixels]:
    """Reads a file again; what came as an array or a PIL image is in memory anyhow."""
    if isinstance(image, str | Path):
        return lambda: _read_file(Path(image), place)
    return lambda: pixels


def _values_reader(read: Callable[[], Pixels], process: Process, kept: Tensor | None) -> Callable[[], Tensor]:
    return lambda: process([read()])[0] if kept is None else kept


def split_by_deleted_class(
    test: ExampleSet[ImageExample], forget: ExampleSet[ImageExample], retain: ExampleSet[ImageExample]
) -> tuple[ExampleSet[ImageExample] | None, ExampleSet[ImageExample] | None]:
    """Divide test images into those of the deleted classes and the others.

    A class is deleted if it is in the forget set and not in the retain set. When single images are forgotten and their
    classes stay, no class is deleted.

    Args:
        test: Test images of all classes.
        forget: Images to be forgotten.
        retain: Images to be kept.

    Returns:
        The sets ``forget_test`` and ``retain_test``; None for one that would be empty.
    """
    deleted = {example.label for example in forget} - {example.label for example in retain}
    parts: list[ExampleSet[ImageExample] | None] = []
    for name, wanted in (("forget_test", True), ("retain_test", False)):
        examples = [example for example in test if (example.label in deleted) == wanted]
        parts.append(ExampleSet(name, examples, test.source) if examples else None)
    return parts[0], parts[1]


def _require_columns(rows: Rows, columns: ImageColumns, name: str) -> None:
    missing = [column for column in (columns.image, columns.label) if column not in rows.columns]
    if rows and missing:
        raise DataError(
            f"The {name} set has no column '{missing[0]}' ({rows.source}). Columns: {', '.join(rows.columns)}. "
            "Name the columns of the image and of the label."
        )


def read_pixels(image: Any, place: str) -> Pixels:
    """Pixels of an image as models are given them.

    Args:
        image: PIL image, uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or path of an image file.
        place: Where it is, in words, for messages.

    Returns:
        (H, W, 3): grey images get three equal channels, transparency is dropped.

    Raises:
        DataError: It is none of these, or its file is missing or damaged.
    """
    if isinstance(image, str | Path):
        return _read_file(Path(image), place)
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    if not isinstance(image, np.ndarray):
        raise DataError(f"The image in {place} is a {type(image).__name__}. Give a path, a PIL image or a uint8 array.")
    grey = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
    if image.dtype != np.uint8 or not (grey.ndim == 2 or (grey.ndim == 3 and grey.shape[-1] in (3, 4))):
        raise DataError(
            f"The image in {place} is an array of {image.dtype} with the shape {image.shape}. "
            "Give uint8 (0 to 255) with the shape (height, width) or (height, width, 1, 3 or 4)."
        )
    return np.ascontiguousarray(np.repeat(grey[..., None], 3, axis=-1) if grey.ndim == 2 else grey[..., :3])


def _read_file(path: Path, place: str) -> Pixels:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError as error:
        raise DataError(f"There is no image file '{path}' ({place}). Check the path.") from error
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"The image file '{path}' cannot be read ({place}): it is damaged or no image.") from error


def _read_label(label: Any, num_classes: int | None, place: str) -> int:
    if isinstance(label, bool) or not isinstance(label, int | np.integer) or label < 0:
        raise DataError(f"The label in {place} is {label!r}. Labels are class indexes: whole numbers from 0.")
    if num_classes is not None and label >= num_classes:
        raise DataError(
            f"The label in {place} is {label}, but there are {num_classes} classes. "
            f"Labels must be from 0 to {num_classes - 1}; otherwise raise num_classes."
        )
    return int(label)


def _other_columns(row: Row, columns: ImageColumns) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in (columns.image, columns.label)}
