"""The example sets of a run: read, divided by rules, turned into examples, and proved not to overlap."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

from torch import Tensor

from stable_forgetting.config import MEASURED_ONLY, DataConfig, SourceConfig
from stable_forgetting.data.array_store import ArrayStore
from stable_forgetting.data.examples import ExampleSet
from stable_forgetting.data.language import DEFAULT_TEMPLATE, LanguageColumns, language_examples
from stable_forgetting.data.rows import Rows
from stable_forgetting.data.rules import select_rows
from stable_forgetting.data.sources import load_rows
from stable_forgetting.data.splits import SetRule, assign_rows, check_no_overlap
from stable_forgetting.data.vision import ImageColumns, image_examples, split_by_deleted_class
from stable_forgetting.errors import DataError
from stable_forgetting.models.processors import pixel_values
from stable_forgetting.models.tasks import LanguageTask, Task
from stable_forgetting.records import SetIdentity

logger = logging.getLogger(__name__)

DUPLICATES_ALLOWED = 0.05
"""Largest share of test images that may also be training images: CIFAR-100, for one, has such duplicates."""

FEW_DUPLICATES = 5
"""As many may be in any case, as long as most test images are none: in a small folder one is a large share."""

_NUM_SHOWN = 3

TARGETS = "targets"
"""Unseen examples for calibrated targets and the unseen term alone; nothing about them is reported."""

SET_NAMES = ("forget", "retain", "holdout", TARGETS, "test", *MEASURED_ONLY)

_DISJOINT = ("forget", "retain", "holdout", TARGETS)
"""Sets of which no two may share an example."""


@dataclass(frozen=True)
class Sets:
    """The example sets by name; `forget` and `retain` are always there."""

    by_name: dict[str, ExampleSet[Any]]

    @property
    def forget(self) -> ExampleSet[Any]:
        """What is to be forgotten."""
        return self.by_name["forget"]

    @property
    def retain(self) -> ExampleSet[Any]:
        """What is to be kept; what is measured of it may be another set, `retain_evaluation`."""
        return self.by_name["retain"]

    @property
    def unseen(self) -> ExampleSet[Any] | None:
        """Examples of the forget set's kind that the base model has not seen, for targets and the unseen term."""
        return self.by_name.get(TARGETS, self.by_name.get("holdout"))

    def identities(self) -> list[SetIdentity]:
        """The sets by content."""
        return [
            SetIdentity(name=name, source=examples.source, count=len(examples), sha256=examples.sha256)
            for name, examples in self.by_name.items()
        ]


def load_set_rows(data: DataConfig) -> dict[str, Rows]:
    """Rows of each set, from its own source or from the common one by its rule.

    Raises:
        DataError: A source cannot be read, or a rule takes nothing.
    """
    sources = {name: source for name in SET_NAMES if (source := getattr(data, name)) is not None}
    rows = {name: _own_rows(source) for name, source in sources.items() if source.path is not None}
    shared = {name: source for name, source in sources.items() if source.path is None}
    if shared and data.source is not None and data.source.path is not None:
        common = _own_rows(data.source)
        rules = {name: SetRule(source.where, source.split, source.limit) for name, source in shared.items()}
        rows |= assign_rows(common, rules)
    for name, found in rows.items():
        if not len(found):
            raise DataError(f"The {name} set is empty ({found.source}). Check its rule 'data.{name}.where'.")
    return {name: rows[name] for name in SET_NAMES if name in rows}


def _own_rows(source: SourceConfig) -> Rows:
    assert source.path is not None
    rows = load_rows(source.path, subset=source.subset, split=source.split)
    if source.where is not None:
        rows = select_rows(rows, source.where)
    return rows.first(source.limit)


def num_classes(rows: dict[str, Rows], data: DataConfig) -> int:
    """Number of classes: as configured, or the largest label of any set + 1."""
    if data.num_classes is not None:
        return data.num_classes
    labels = [row.get(_columns_of(data, name).label) for name, found in rows.items() for row in found]
    return 1 + max((int(label) for label in labels if isinstance(label, int)), default=1)


def make_sets(
    rows: dict[str, Rows], task: Task, data: DataConfig, *, classes: int | None, pixels: ArrayStore | None = None
) -> Sets:
    """Examples of each set, checked for overlap.

    Args:
        rows: Rows of each set.
        task: Holds the tokenizer or image processor.
        data: Names of columns, lengths and templates.
        classes: Image models: number of classes.
        pixels: Where scaled images are kept, if they are.

    Returns:
        The sets; of images also `forget_test` and `retain_test`, and test images of the forgotten classes as holdout
        set if none was given.

    Raises:
        DataError: A row is not usable, or two sets share an example.
    """
    sets: dict[str, ExampleSet[Any]] = {}
    for name, found in rows.items():
        source = _columns_of(data, name)
        if isinstance(task, LanguageTask):
            columns = LanguageColumns(
                prompt=source.prompt,
                answer=source.answer,
                text=source.text,
                messages=source.messages,
                paraphrased=source.paraphrased,
                perturbed=source.perturbed,
                template=data.template or DEFAULT_TEMPLATE,
                system_prompt=data.system_prompt,
                date=data.date,
            )
            sets[name] = language_examples(
                found,
                task.tokenizer,
                name=name,
                columns=columns,
                max_length=data.max_length,
                chat_template=data.chat_template,
            )
        else:
            columns_of_images = ImageColumns(source.image, source.label)
            sets[name] = image_examples(
                found,
                process_with(task),
                name=name,
                columns=columns_of_images,
                num_classes=classes,
                store=pixels,
                in_memory=False,
            )
    for first, second in combinations([name for name in _DISJOINT if name in sets], 2):
        check_no_overlap(sets[first], sets[second])
    for name in MEASURED_ONLY:
        if name in sets:
            check_no_overlap(sets["forget"], sets[name])
    if isinstance(task, LanguageTask):
        return Sets(sets)
    return Sets(_with_test_parts(sets))


def _without_taught(test: ExampleSet[Any], sets: dict[str, ExampleSet[Any]]) -> ExampleSet[Any]:
    """Test images that nothing was trained on: the few duplicates that real data sets have are left out, and said.

    Raises:
        DataError: There are so many that the wrong images were given.
    """
    seen = ("forget", "retain", "targets")  # the last one by the calibrated targets that are made of it
    trained_on = {example.key for name in seen if name in sets for example in sets[name]}
    shared = [index for index, example in enumerate(test) if example.key in trained_on]
    if not shared:
        return test
    places = [test[index].metadata.get("image_path", f"row {index}") for index in shared[:_NUM_SHOWN]]
    first = ", ".join(places) + (" ..." if len(shared) > _NUM_SHOWN else "")
    if len(shared) > min(max(DUPLICATES_ALLOWED * len(test), FEW_DUPLICATES), len(test) / 2):
        raise DataError(
            f"{len(shared)} of {len(test)} test images are in the forget, retain or targets set (first: {first}), "
            "so they test nothing. Take them out of the test images, or give others."
        )
    logger.warning("%d of %d test images are also training images and are left out: %s.", len(shared), len(test), first)
    left = [example for example in test if example.key not in trained_on]
    return ExampleSet(test.name, left, test.source)


def _with_test_parts(sets: dict[str, ExampleSet[Any]]) -> dict[str, ExampleSet[Any]]:
    test = sets.pop("test", None)
    if test is None:
        return sets
    test = _without_taught(test, sets)
    forget_test, retain_test = split_by_deleted_class(test, sets["forget"], sets["retain"])
    if forget_test is not None:
        sets["forget_test"] = forget_test
        sets.setdefault("holdout", ExampleSet("holdout", forget_test.examples, forget_test.source))
    if retain_test is not None:
        sets["retain_test"] = retain_test
    return sets


def process_with(task: Any) -> Callable[[Sequence[Any]], Tensor]:
    """The task's image processor as a function from uint8 images to pixel values."""
    return partial(pixel_values, task.processor)


def _columns_of(data: DataConfig, name: str) -> SourceConfig:
    """Columns of a set: its own source's, or the common source's where it has none."""
    own: SourceConfig = getattr(data, name)
    return own if own.path is not None or data.source is None else data.source
