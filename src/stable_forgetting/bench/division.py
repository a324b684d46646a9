"""Which images of each class are taught, and which are set aside for testing, validation, attacks and targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from stable_forgetting.bench.image_table import ImageTable
from stable_forgetting.bench.requests import Request, all_of, among, any_of, none_of
from stable_forgetting.data.rows import Rows
from stable_forgetting.data.rules import select_rows
from stable_forgetting.errors import DataError

TEST_SHARE = 0.2
"""Part of the images of each class that is set aside for validation, or for testing where there is no test split."""

UNSEEN_SHARE = 0.1
"""Part of the images of each class that no model is taught, for membership tests and once more for targets."""


@dataclass(frozen=True)
class Division:
    """Rules that divide the images of each class; None says nothing.

    Args:
        taught: Of the training images that models are taught.
        holdout: Of unseen images for membership tests; None: test images of the deleted classes serve.
        targets: Of unseen images for calibrated targets; None: no objective needs them.
        test: Of the images for testing, within `test_split`.
        test_split: Where the images for testing are.
    """

    taught: str | None
    holdout: str | None
    targets: str | None
    test: str | None
    test_split: str | None

    @property
    def unseen(self) -> dict[str, str]:
        """Rules of the images that no model is taught, by what they are for."""
        found = {"membership tests": self.holdout, "calibrated targets": self.targets}
        return {purpose: rule for purpose, rule in found.items() if rule is not None}


@dataclass(frozen=True)
class Aside:
    """Which training images are set aside.

    Args:
        test: Because there are no test images.
        validation: To be measured in place of the test images.
        holdout: For membership tests where the classes of what is forgotten stay.
        targets: For objectives with targets.
    """

    test: bool
    validation: bool
    holdout: bool
    targets: bool

    @property
    def share_taught(self) -> float:
        """Part of the images of each class that is left to teach."""
        return 1 - TEST_SHARE * (self.test + self.validation) - UNSEEN_SHARE * (self.holdout + self.targets)


def divide(table: ImageTable, aside: Aside, *, leave_out: Sequence[int] = (), keep: Sequence[int] = ()) -> Division:
    """Set images of each class aside, from its last one on: for testing, validation, as holdout set, for targets.

    Args:
        table: The images.
        aside: Which training images are set aside.
        leave_out: Rows that are in no part: second copies of images, so that what is forgotten, held out or measured
            is not taught in another copy.
        keep: Rows that are taught wherever they are in their class, because they are to be forgotten.

    Returns:
        What is left to teach, and the parts.
    """
    label, end = table.columns["label"], 1.0
    once = f"not {table.among_rows(leave_out)}" if leave_out else None
    kept = table.among_rows(keep) if keep else None
    others = all_of(once, None if kept is None else none_of([kept]))
    test, test_split = None, table.test_split
    for _ in range(aside.test + aside.validation):  # validation images are others than those that results are of
        test, end, test_split = all_of(_band(label, end, TEST_SHARE), others), end - TEST_SHARE, table.train_split
    unseen: dict[str, str | None] = {"holdout": None, "targets": None}
    for name in (name for name in unseen if getattr(aside, name)):
        unseen[name], end = all_of(_band(label, end, UNSEEN_SHARE), others), end - UNSEEN_SHARE
    taught = f"share_in({label}) <= {end:g}" if end < 1 else None
    if taught is not None and kept is not None:
        taught = any_of([taught, kept])
    return Division(all_of(taught, once), unseen["holdout"], unseen["targets"], test, test_split)


def without_untaught_tests(table: ImageTable, division: Division) -> tuple[Division, list[str]]:
    """Leave out images for testing whose class no model is taught: of them there is nothing to keep or to lose.

    Args:
        table: The images.
        division: Which of them are taught, and which are for testing.

    Returns:
        The division with the others for testing, and what was left out, in a sentence.
    """
    label, name = table.columns["label"], table.columns["class_name"]
    rows = table.test_rows if division.test_split == table.test_split and table.test_rows is not None else table.rows
    tested = {row.get(label): row.get(name) for row in (select_rows(rows, division.test) if division.test else rows)}
    taught = {row.get(label) for row in _rows(table, division.taught)}
    untaught = [number for number in tested if number is not None and number not in taught]
    if not untaught:
        return division, []
    said = (
        f"The test images of {len(untaught)} of the classes (first: '{tested[untaught[0]]}') are left out: no model is "
        "taught an image of them."
    )
    return replace(division, test=all_of(division.test, none_of([among(label, untaught)]))), [said]


def lacks_alike(request: Request, table: ImageTable, division: Division) -> list[str]:
    """For what there are unseen images, but none of the classes of what is forgotten.

    Args:
        request: What is to be forgotten.
        table: The images.
        division: Which of them are set aside.
    """
    return [purpose for purpose, rule in division.unseen.items() if not _rows(table, all_of(request.alike, rule))]


def refuse_empty_sets(requests: Sequence[Request], table: ImageTable, division: Division) -> None:
    """Refuse what leaves nothing to forget, to retain or to compare with, before the first request runs.

    Args:
        requests: What is to be forgotten.
        table: The images.
        division: Which of them are taught, and which are set aside.

    Raises:
        DataError: A set of a request would be empty.
    """
    parts = {"": division.taught, **division.unseen}
    kinds = {part: _one_of_each_class(table, rule) for part, rule in parts.items()}

    def is_empty(request: Request, rule: str | None, part: str = "") -> bool:
        if request.deletes_classes:  # their rules ask for classes alone, and there may be many requests
            some = kinds[part]
            return not len(select_rows(some, rule) if len(some) and rule is not None else some)
        return not len(_rows(table, all_of(rule, parts[part])))

    for request in requests:
        if is_empty(request, request.forget):
            raise DataError(
                f"Nothing of '{request.name}' is left to forget: all its images are set aside for testing or copies of "
                "others. Give more images of it, or leave it out."
            )
        if is_empty(request, none_of([*request.deleted_before, request.forget])):
            raise DataError(
                f"Nothing is left to keep when '{request.name}' is forgotten: it is all that is taught. Name less."
            )
        for purpose in division.unseen:
            if is_empty(request, request.alike, purpose):
                raise DataError(
                    f"'{request.name}' has too few images: none is left to set aside for {purpose}. Give more images "
                    "of its classes."
                )


def _rows(table: ImageTable, rule: str | None) -> Rows:
    return table.rows if rule is None else select_rows(table.rows, rule)


def _one_of_each_class(table: ImageTable, rule: str | None) -> Rows:
    columns = [table.columns[kind] for kind in ("class_name", "superclass") if kind in table.columns]
    found = {tuple(row.get(column) for column in columns): row for row in _rows(table, rule)}
    return replace(table.rows, rows=list(found.values()))


def _band(label: str, end: float, share: float) -> str:
    return f"{end - share:g} < share_in({label}) <= {end:g}"
