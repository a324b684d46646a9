"""The images of a class deletion: which columns, classes and splits there are, and which images are there twice."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from stable_forgetting.data.pixel_hashes import PixelHashes
from stable_forgetting.data.rows import Rows, select_split
from stable_forgetting.data.rules import POSITION
from stable_forgetting.data.sources import load_rows
from stable_forgetting.data.vision import Pixels, read_pixels
from stable_forgetting.errors import DataError, unknown_name
from stable_forgetting.progress import Progress

_BATCH = 256
"""Images that are read between two steps of the progress."""


@dataclass(frozen=True, eq=False)
class ImageTable:
    """A data set of images with the names of its columns and splits.

    Args:
        path: Where it is.
        rows: The training images.
        columns: Name of the column by what it holds: image, label, class_name (the label where classes have no
            names), and superclass if there is one.
        num_classes: The largest label of any split + 1.
        train_split: Its name; None: there are no splits.
        test_split: Its name; None: test images have to be taken from the training images.
        test_rows: The images of that split.
    """

    path: str
    rows: Rows
    columns: Mapping[str, str]
    num_classes: int
    train_split: str | None = None
    test_split: str | None = None
    test_rows: Rows | None = None

    @cached_property
    def _by_name(self) -> dict[str, Any]:
        """Value in the column class_name by the class's name as text."""
        return self._named("class_name")

    def class_values(self, names: Sequence[str]) -> list[Any]:
        """What the column class_name has for some classes.

        Raises:
            DataError: There is no such class, or there are several of that name.
        """
        found = self._found("class", names, self._by_name)
        for name in names:
            labels = sorted(label for known, label in self._named_labels if known == _composed(name))
            if len(labels) > 1:
                raise DataError(
                    f"'{name}' is the name of {len(labels)} classes in '{self.path}' (labels "
                    f"{', '.join(map(str, labels))}). Give each class a name of its own there."
                )
        return found

    def superclass_values(self, names: Sequence[str]) -> list[Any]:
        """What the column superclass has for some superclasses.

        Raises:
            DataError: The data have no superclasses, or none of that name.
        """
        if "superclass" not in self.columns:
            raise DataError(
                f"'{self.path}' has no superclasses: none of its columns ({', '.join(self.rows.columns)}) names them. "
                "Give the classes with --forget A,B --together."
            )
        return self._found("superclass", names, self._named("superclass"))

    def class_labels(self) -> dict[str, int]:
        """Label by the name of the class, of names and labels that belong to one another alone; empty without names."""
        if self.columns["class_name"] == self.columns["label"]:
            return {}
        names, labels = (Counter(pair[place] for pair in self._named_labels) for place in (0, 1))
        return {name: label for name, label in sorted(self._named_labels) if names[name] == labels[label] == 1}

    @cached_property
    def _named_labels(self) -> set[tuple[str, int]]:
        """Each pair of a class's name and label that a row has."""
        column, label = self.columns["class_name"], self.columns["label"]
        named = [row for row in self.rows if row.get(column) is not None and isinstance(row.get(label), int)]
        return {(_composed(str(row[column])), row[label]) for row in named}

    def copies(self, hashes: PixelHashes, *, progress: Progress) -> dict[int, int]:
        """Rows whose image is in an earlier row already, whatever the two files look like.

        Args:
            hashes: Knows the files that were read before; every other image is read.
            progress: Where the reading is shown.

        Returns:
            Number of the first row with the same pixels, by the number of the later row.

        Raises:
            DataError: An image is of a kind that cannot be read, or its file is missing or damaged.
        """
        images = [row.get(self.columns["image"]) for row in self.rows]
        first: dict[str, int] = {}
        found: dict[int, int] = {}
        with progress.track("Looking for images that are there twice", len(images), "images") as advance:
            for start in range(0, len(images), _BATCH):
                batch = images[start : start + _BATCH]
                for number, key in enumerate(hashes.of(batch, partial(self._pixels, start)), start):
                    earlier = first.setdefault(key, number)
                    if earlier != number:
                        found[number] = earlier
                advance(len(batch))
        return found

    def shown_copies(self, copies: Mapping[int, int]) -> str:
        """The first of some copies in words, files by their names."""
        pairs = [f"{self._shown(number)} is {self._shown(copies[number])}" for number in sorted(copies)[:3]]
        return "; ".join(pairs) + (" ..." if len(copies) > 3 else "")

    def _pixels(self, start: int, place: int) -> Pixels:
        number = start + place
        return read_pixels(self.rows[number].get(self.columns["image"]), f"row {number} of {self.rows.source}")

    def _shown(self, number: int) -> str:
        image = self.rows[number].get(self.columns["image"])
        return f"'{image}'" if isinstance(image, str | Path) else f"row {number}"

    def among_rows(self, numbers: Sequence[int]) -> str:
        """Rule: the row has one of the numbers.

        Raises:
            DataError: The rows have numbers of another kind.
        """
        if POSITION in self.rows.columns:
            raise DataError(
                f"'{self.path}' has a column '{POSITION}', so no rule can name rows by position. Rename the column."
            )
        return f"{POSITION} in {sorted(set(numbers))}"

    def _found(self, kind: str, names: Sequence[str], by_name: Mapping[str, Any]) -> list[Any]:
        for name in names:
            if _composed(name) not in by_name:
                with_comma = " A name with a comma can be given in an experiment file alone, in a list."
                hint = with_comma if any("," in known for known in by_name) else ""
                raise DataError(f"{self.path}: {unknown_name(kind, name, by_name)}{hint}")
        return [by_name[_composed(name)] for name in names]

    def _named(self, kind: str) -> dict[str, Any]:
        return {_composed(str(value)): value for value in self._values(kind)}

    def _values(self, kind: str) -> set[Any]:
        found = {row.get(self.columns[kind]) for row in self.rows}
        return found - {None}


def _composed(name: str) -> str:
    """A name with its accents in one form: Apple's folders and keyboards have different ones for the same name."""
    return unicodedata.normalize("NFC", name)


@dataclass(frozen=True)
class TableNames:
    """Names under which columns and splits are looked for, the first one that is there.

    Args:
        columns: By what the column holds.
        test_splits: Splits of images for testing.
        data: Path by the short name of a data set.
    """

    columns: Mapping[str, Sequence[str]]
    test_splits: Sequence[str]
    data: Mapping[str, str] = field(default_factory=dict)


def read_image_table(data: str, names: TableNames) -> ImageTable:
    """Read a data set of images.

    Args:
        data: What a source's path may be, or a short name, if there is no file or folder of that name.
        names: What is looked for.

    Raises:
        DataError: The data cannot be read, or have no images, no labels, or no training images.
    """
    path = data if Path(data).expanduser().exists() else names.data.get(data, data)
    rows = load_rows(path)
    columns = {
        kind: found[0]
        for kind, candidates in names.columns.items()
        if (found := [name for name in candidates if name in rows.columns])
    }
    for kind in ("image", "label"):
        if kind not in columns:
            raise DataError(
                f"'{path}' has no column {' or '.join(names.columns[kind])}, so it is no data set of labelled images. "
                f"Its columns: {', '.join(rows.columns)}."
            )
    columns.setdefault("class_name", columns["label"])
    labels = [label for row in rows if isinstance(label := row.get(columns["label"]), int)]
    num_classes = 1 + max(labels, default=0)
    splits = {str(row["split"]) for row in rows if row.get("split") is not None}
    if not splits:
        return ImageTable(path, rows, columns, num_classes)
    test_split = next((split for split in names.test_splits if split in splits), None)
    test_rows = select_split(rows, test_split) if test_split is not None else None
    return ImageTable(path, select_split(rows, "train"), columns, num_classes, "train", test_split, test_rows)
