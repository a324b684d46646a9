"""From rows to image examples, and the division of test images by the deleted classes.

N = images in a batch, C = channels, H × W = height and width in pixels.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from stable_forgetting.data.array_store import ArrayStore
from stable_forgetting.data.examples import ExampleSet, ImageExample, ImageOnDemand
from stable_forgetting.data.pixel_hashes import PixelHashes
from stable_forgetting.data.rows import Row, Rows
from stable_forgetting.errors import DataError

Pixels = npt.NDArray[np.uint8]
Process = Callable[[Sequence[Pixels]], Tensor]
"""The model's image processor: images (H, W, 3) to pixel values (N, C, H', W'), float32."""

_BATCH = 256

_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"})
"""Pillow's modes with 8 bits a channel; it would clip the values of others at 255 without a word."""


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
        One example per row, in order. The other columns are in the examples' metadata, as ``class_name`` also a column
        that names the labels (``fine_label_name`` for ``fine_label``), and as ``image_path`` that of an image file.

    Raises:
        DataError: A column is missing, an image cannot be read, a label is not a class index, or there are no rows.
    """
    columns = columns or ImageColumns()
    _require_columns(rows, columns, name)
    hashes = PixelHashes(store.folder.parent if store else None)
    examples: list[ImageExample] = []
    for start in range(0, len(rows), _BATCH):
        numbers = range(start, min(start + _BATCH, len(rows)))
        places = [f"row {number} of the {name} set" for number in numbers]
        pictures = [_Picture(rows[n].get(columns.image), place) for n, place in zip(numbers, places, strict=True)]
        labels = [
            _read_label(rows[n].get(columns.label), num_classes, place)
            for n, place in zip(numbers, places, strict=True)
        ]
        metadata = [_metadata(rows[number], columns) for number in numbers]
        keys = _hashes_of(pictures, hashes) if store or not in_memory else []
        values = _kept_values(pictures, keys, process, store) if store else [None] * len(pictures)
        if in_memory:
            pixels = [picture.pixels for picture in pictures]
            held = values if store else list(process(pixels))
            examples += [ImageExample(*parts) for parts in zip(pixels, labels, held, metadata, strict=True)]
            continue
        readers = [picture.reader() for picture in pictures]
        examples += [
            ImageOnDemand(read, _values_reader(read, process, value), label, key, other)
            for read, value, label, key, other in zip(readers, values, labels, keys, metadata, strict=True)
        ]
    return ExampleSet(name, examples, rows.source)


class _Picture:
    """An image that is read when it is first looked at.

    Args:
        given: What the row has.
        place: Where it is, in words.
    """

    def __init__(self, given: Any, place: str) -> None:
        self.given = given
        self.place = place

    @cached_property
    def pixels(self) -> Pixels:
        return read_pixels(self.given, self.place)

    def reader(self) -> Callable[[], Pixels]:
        """Reads a file again; what came as an array or a PIL image is in memory anyhow."""
        given, place = self.given, self.place
        if isinstance(given, str | Path):
            return lambda: _read_file(Path(given), place)
        pixels = self.pixels
        return lambda: pixels


def _hashes_of(pictures: list[_Picture], hashes: PixelHashes) -> list[str]:
    return hashes.of([picture.given for picture in pictures], lambda place: pictures[place].pixels)


def _kept_values(pictures: list[_Picture], keys: list[str], process: Process, store: ArrayStore) -> list[Tensor]:
    return store.arrays(keys, lambda places: process([pictures[place].pixels for place in places]))


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
        DataError: It is none of these, is grey with more than 8 bits, or its file is missing or damaged.
    """
    if isinstance(image, str | Path):
        return _read_file(Path(image), place)
    if isinstance(image, Image.Image):
        return _rgb(image, f"The image in {place}")
    if not isinstance(image, np.ndarray):
        raise DataError(f"The image in {place} is a {type(image).__name__}. Give a path, a PIL image or a uint8 array.")
    grey = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
    if image.dtype != np.uint8 or not (grey.ndim == 2 or (grey.ndim == 3 and grey.shape[-1] in (3, 4))):
        raise DataError(
            f"The image in {place} is an array of {image.dtype} with the shape {image.shape}. "
            "Give uint8 (0 to 255) with the shape (height, width) or (height, width, 1, 3 or 4)."
        )
    return np.ascontiguousarray(np.repeat(grey[..., None], 3, axis=-1) if grey.ndim == 2 else grey[..., :3])


def _rgb(image: Image.Image, what: str) -> Pixels:
    if image.mode not in _MODES:
        raise DataError(
            f"{what} has the mode '{image.mode}', whose values need not be from 0 to 255, so that it is not known what "
            "is white. Convert it to 8 bits a channel (mode L or RGB) first."
        )
    upright = ImageOps.exif_transpose(image)  # as cameras mean it, and as the hub's readers do it
    return np.asarray(upright.convert("RGB"))


def _read_file(path: Path, place: str) -> Pixels:
    try:
        with Image.open(path) as image:
            return _rgb(image, f"The image file '{path}' ({place})")
    except FileNotFoundError as error:
        raise DataError(f"There is no image file '{path}' ({place}). Check the path.") from error
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"The image file '{path}' cannot be read ({place}): it is damaged or no image.") from error
    except DataError:
        raise
    except (ValueError, struct.error) as error:  # of damaged files, and of sound ones with more text than Pillow takes
        raise DataError(
            f"The image file '{path}' cannot be read ({place}): {error}. Save it anew without its metadata, or take it "
            "out."
        ) from error


def _read_label(label: Any, num_classes: int | None, place: str) -> int:
    if isinstance(label, bool) or not isinstance(label, int | np.integer) or label < 0:
        raise DataError(f"The label in {place} is {label!r}. Labels are class indexes: whole numbers from 0.")
    if num_classes is not None and label >= num_classes:
        raise DataError(
            f"The label in {place} is {label}, but there are {num_classes} classes. "
            f"Labels must be from 0 to {num_classes - 1}: the model has as many classes, or "
            "data.num_classes says so. Correct the label, or give a model with more classes."
        )
    return int(label)


def _metadata(row: Row, columns: ImageColumns) -> dict[str, Any]:
    found = {name: value for name, value in row.items() if name not in (columns.image, columns.label)}
    if (name := row.get(f"{columns.label}_name")) is not None:
        found.setdefault("class_name", name)
    if isinstance(path := row.get(columns.image), str | Path):
        found.setdefault("image_path", str(path))
    return found
