"""Accuracy of single classes before and after: what happened to the deleted classes, and to their neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stable_forgetting.intervals import Estimate, average, difference, excludes_zero, wilson
from stable_forgetting.records import ClassAccuracy, ModelRole, RunRecord
from stable_forgetting.report.summary import MethodSummary
from stable_forgetting.report.tables import TextCell
from stable_forgetting.report.wording import class_name, gap_words, number, points, uncertainty

MAX_CHANGED = 10
"""Kept classes in the chart, those whose accuracy changed most; the table beside it holds all of them."""

MAX_DELETED = 14
"""Deleted classes in the chart."""


FALSE_LOSSES = 0.025
"""Share of classes that fall below a 95 % interval though nothing happened to them."""


@dataclass(frozen=True)
class ClassRow:
    """One class under the three models."""

    name: str
    deleted: bool
    images: str
    """test or training."""
    count: int
    base: Estimate
    unlearned: Estimate
    retain: Estimate | None

    @property
    def change(self) -> Estimate:
        """Unlearned minus base model."""
        return difference(self.unlearned, self.base)

    @property
    def retain_change(self) -> Estimate | None:
        """Retain minus base model: what deleting the class costs without any unlearning."""
        return None if self.retain is None else difference(self.retain, self.base)


@dataclass(frozen=True)
class ClassLine:
    """One class in the table."""

    name: str
    small: str
    count: str
    base: TextCell
    unlearned: TextCell
    retain: TextCell
    change: TextCell
    gap: TextCell


def class_rows(method: MethodSummary) -> list[ClassRow]:
    """All classes that base and unlearned model were measured on, the largest loss first.

    Each accuracy has Wilson's interval; of several seeds it is their mean, as everywhere in the report.
    """
    by_label: dict[int, list[tuple[RunRecord, ClassAccuracy]]] = {}
    for record in method.records:
        for entry in record.class_accuracies:
            by_label.setdefault(entry.label, []).append((record, entry))
    rows = [_class_row([entry for _, entry in pairs], pairs[0][0].class_names) for pairs in by_label.values()]
    return sorted((row for row in rows if row is not None), key=lambda row: row.change.value)


def charted_classes(rows: Sequence[ClassRow]) -> list[ClassRow]:
    """The kept classes that changed most and the deleted ones, in the order of the rows."""
    kept = sorted((row for row in rows if not row.deleted), key=lambda row: abs(row.change.value), reverse=True)
    shown = kept[:MAX_CHANGED] + [row for row in rows if row.deleted][:MAX_DELETED]
    return [row for row in rows if row in shown]


def class_sentence(rows: Sequence[ClassRow]) -> str:
    """How many kept classes lost more than their interval, and how many are to be expected by chance."""
    kept = [row for row in rows if not row.deleted]
    lost = [row for row in kept if excludes_zero(row.change) and row.change.value < 0]
    if not kept:
        return "No kept class was measured."
    worst = f", most of all {lost[0].name} ({points(lost[0].change.value)} points)" if lost else ""
    noun, verb = "class" if len(kept) == 1 else "classes", "loses" if len(lost) == 1 else "lose"
    return (
        f"{len(lost)} of {len(kept)} kept {noun} {verb} more accuracy than the interval of the change{worst}. "
        f"Each interval stands by itself: about {FALSE_LOSSES * len(kept):.2g} would lose so much by chance."
    )


def class_lines(rows: Sequence[ClassRow]) -> list[ClassLine]:
    """The table of all classes; only kept classes are judged, because a deleted one is meant to fall."""
    return [
        ClassLine(
            name=row.name,
            small=", ".join(["deleted"] * row.deleted + ["training images"] * (row.images == "training")),
            count=f"{row.count:,}",
            base=_share_cell(row.base),
            unlearned=_share_cell(row.unlearned),
            retain=_share_cell(row.retain),
            change=_change_cell(row),
            gap=_gap_cell(row),
        )
        for row in rows
    ]


def _class_row(entries: Sequence[ClassAccuracy], names: dict[int, str]) -> ClassRow | None:
    first = entries[0]
    base, unlearned, retain = (_estimate(entries, role) for role in ("base", "unlearned", "retain"))
    if base is None or unlearned is None:
        return None
    return ClassRow(class_name(names, first.label), first.deleted, first.images, first.count, base, unlearned, retain)


def _estimate(entries: Sequence[ClassAccuracy], role: ModelRole) -> Estimate | None:
    found = [wilson(entry.accuracy[role], entry.count) for entry in entries if role in entry.accuracy]
    if not found:
        return None
    same_model = role != "unlearned" and len(set(found)) == 1
    return found[0] if same_model else average(found)


def _share_cell(estimate: Estimate | None) -> TextCell:
    if estimate is None:
        return TextCell("–")
    return TextCell(number(estimate.value), uncertainty(estimate))


def _change_cell(row: ClassRow) -> TextCell:
    clear = excludes_zero(row.change)
    mark = ("better" if row.change.value > 0 else "worse") if clear and not row.deleted else ""
    return TextCell(points(row.change.value), "clear change" if clear else "no clear change", mark)


def _gap_cell(row: ClassRow) -> TextCell:
    if row.retain is None:
        return TextCell("–")
    gap = difference(row.unlearned, row.retain)
    return TextCell(points(gap.value), gap_words(gap))
