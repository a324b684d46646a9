"""Class deletion: an image classifier forgets classes, superclasses or images, alone or one after another.

As the paper does with CIFAR-100; which choices are ours is said in docs/class_deletion.md. Base and
retain models, unlearning and evaluation are those of any other run: this file only writes their settings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stable_forgetting.bench.comparison import Comparison
from stable_forgetting.bench.image_table import ImageTable, TableNames, read_image_table
from stable_forgetting.bench.methods import PROBLEMS_DIR, Changes, method_changes, refuse_changes
from stable_forgetting.bench.requests import (
    Request,
    all_of,
    any_of,
    class_requests,
    image_request,
    listed_rows,
    none_of,
)
from stable_forgetting.config import WITH_TARGETS, apply_change, read_yaml
from stable_forgetting.config.benchmark_options import ClassDeletionOptions
from stable_forgetting.errors import ConfigError
from stable_forgetting.models.load import ModelSource, load_without_weights
from stable_forgetting.progress import Progress
from stable_forgetting.runs import RunDirectory

TEST_SHARE = 0.2
"""Part of the images of each class that is set aside for validation, or for testing where there is no test split."""

HOLDOUT_SHARE = 0.1
"""Part of the images of each class that no model is taught, where membership tests or targets need unseen images."""

_INSTEAD = {
    "data.forget": "--forget, --superclass, --random or --images",
    "data.retain": "evaluation.retain_limit, which bounds what is measured,",
    "data.test": "--validation, or evaluation.test_limit, which bounds what is measured,",
    "data.holdout": "--objectives, of which some need one,",
    "data.forgotten_before": "--sequence",
    "merge": "--sequence, which needs merged models,",
}
"""What a request writes into the settings of its runs, and what to use in place of a change of it."""

_TEMPLATE = PROBLEMS_DIR / "class_deletion.yaml"


@dataclass(frozen=True)
class Division:
    """Rules that divide the images of each class; None says nothing.

    Args:
        taught: Of the training images that models are taught.
        holdout: Of unseen images for membership tests and calibrated targets; None: there are none.
        test: Of the images for testing, within `test_split`.
        test_split: Where the images for testing are.
    """

    taught: str | None
    holdout: str | None
    test: str | None
    test_split: str | None


def class_deletion_comparison(options: ClassDeletionOptions, out_dir: Path, *, progress: Progress) -> Comparison:
    """Every request with every method.

    Args:
        options: Model, data, what is to be forgotten, and methods.
        out_dir: Where the runs will be: later steps of a sequence start from the merged models of earlier ones.
        progress: Where the reading of the images is shown.

    Returns:
        One method for each combination, named REQUEST-OBJECTIVE-BOUND-seedN; see `method_changes`.

    Raises:
        ConfigError: An objective, a bound, a group of layers or a setting is not allowed.
        DataError: The data cannot be read, or what is to be forgotten is not in them.
        ModelError: The model cannot be found.
    """
    template = read_yaml(_TEMPLATE)
    table = read_image_table(options.data, TableNames(template["columns"], template["test_splits"], template["data"]))
    methods = method_changes(options, {"calibrated_chance": _target_of_chance(table.num_classes)})
    requests, listed = class_requests(options, table), listed_rows(options, table)
    unseen = options.makes_models and (options.names_images or _any_needs_holdout(methods))
    _refuse_changes_of_sets(options, holdout=unseen)
    if options.retain_model is not None and len(requests) > 1:
        raise ConfigError(
            f"One retain model cannot serve {len(requests)} requests, because each forgets something else. "
            "Leave --retain-model out, or name one class, or several with --together."
        )
    shared = _shared_settings(options, table, template)
    copies = table.copies(progress=progress) if options.makes_models or options.names_images else {}
    asked = sorted({copies.get(row, row) for row in listed})
    division = divide(table, validation=options.validation, holdout=unseen, leave_out=[*copies], keep=asked)
    requests = requests or [image_request(options, table, asked, division.taught)]
    sets = {request.name: _sets(request, table, division) for request in requests}
    notes = _notes(table, division, options)
    if repeated := len({*listed} & {*copies}):
        notes.append(f"{repeated} of the listed images are in an earlier row already, and forgotten there.")
    if options.sequence:
        return _sequence(Comparison(shared, methods, notes=notes), sets, out_dir)
    found = {f"{name}-{method}": {**sets[name], **changes} for name in sets for method, changes in methods.items()}
    return Comparison(shared, found, notes=notes)


def divide(
    table: ImageTable, *, validation: bool, holdout: bool, leave_out: Sequence[int] = (), keep: Sequence[int] = ()
) -> Division:
    """Set images of each class aside, from its last one on: for testing, for validation, as holdout set.

    Args:
        table: The images.
        validation: Whether training images take the place of the test images.
        holdout: Whether there is to be a holdout set.
        leave_out: Rows that are in no part: second copies of images, so that what is forgotten, held out or measured
            is not taught in another copy.
        keep: Rows that are taught wherever they are in their class, because they are to be forgotten.

    Returns:
        What is left to teach, and the parts.
    """
    label, end = table.columns["label"], 1.0
    once = f"not {table.among_rows(leave_out)}" if leave_out else None
    kept = table.among_rows(keep) if keep else None
    aside = all_of(once, None if kept is None else none_of([kept]))
    test, test_split = None, table.test_split
    if validation or table.test_split is None:
        test, end, test_split = all_of(_band(label, end, TEST_SHARE), aside), end - TEST_SHARE, table.train_split
    unseen = None
    if holdout:
        unseen, end = all_of(_band(label, end, HOLDOUT_SHARE), aside), end - HOLDOUT_SHARE
    taught = f"share_in({label}) <= {end:g}" if end < 1 else None
    if taught is not None and kept is not None:
        taught = any_of([taught, kept])
    return Division(all_of(taught, once), unseen, test, test_split)


def _refuse_changes_of_sets(options: ClassDeletionOptions, *, holdout: bool) -> None:
    """Refuse changes of the sets that are made here; others, such as another holdout set, may be given."""
    not_written = set() if holdout else {"data.holdout"}
    not_written |= set() if options.sequence else {"data.forgotten_before", "merge"}
    for place, option in _INSTEAD.items():
        if place not in not_written:
            refuse_changes(options.set, [place], "what is to be forgotten", option)


def _band(label: str, end: float, share: float) -> str:
    return f"{end - share:g} < share_in({label}) <= {end:g}"


def _sets(request: Request, table: ImageTable, division: Division) -> Changes:
    """Settings of the example sets of one request."""
    gone = [*request.deleted_before, request.forget]
    rules = {
        "forget": all_of(request.forget, division.taught),
        "retain": all_of(none_of(gone), division.taught),
        "test": all_of(none_of(request.deleted_before), division.test),
    }
    if request.deleted_before:
        rules["forgotten_before"] = all_of(any_of(request.deleted_before), division.taught)
    if division.holdout is not None:
        rules["holdout"] = all_of(request.forget if request.deletes_classes else None, division.holdout)
    splits = {"test": division.test_split}
    found: Changes = {}
    for name, rule in rules.items():
        given = {"split": splits.get(name, table.train_split), "where": rule}
        found[f"data.{name}"] = {setting: value for setting, value in given.items() if value is not None}
    return found


def _shared_settings(options: ClassDeletionOptions, table: ImageTable, template: Mapping[str, Any]) -> dict[str, Any]:
    shared: dict[str, Any] = dict(template["shared"])
    source = ModelSource(
        options.model,
        "image",
        image_size=options.set.get("model.image_size"),
        revision=options.set.get("model.revision"),
        trust_remote_code=bool(options.set.get("model.trust_remote_code")),
    )
    family = load_without_weights(source).model.config.model_type
    shared["model"] = {"name": options.model, **template["families"].get(family, template["families"]["default"])}
    if not options.makes_models:
        shared["model"].pop("finetune", None)
    shared["retain_model"] = options.retain_model
    columns = {name: table.columns[name] for name in ("image", "label")}
    shared["data"] = {"source": {"path": table.path, **columns}, "num_classes": table.num_classes}
    for place, value in options.set.items():
        apply_change(shared, place, value)
    return shared


def _target_of_chance(num_classes: int) -> Changes:
    """Calibrated forgetting that stops where every class is as likely as any other."""
    return {
        "objective.name": "calibrated",
        "objective.target.source": "number",
        "objective.target.nll": math.log(max(num_classes, 2)),
    }


def _any_needs_holdout(methods: Mapping[str, Changes]) -> bool:
    return any(
        changes["objective.name"] in WITH_TARGETS and changes.get("objective.target.source", "holdout") == "holdout"
        for changes in methods.values()
    )


def _notes(table: ImageTable, division: Division, options: ClassDeletionOptions) -> list[str]:
    """What a reader of the numbers has to know about the sets."""
    notes = []
    if table.test_split is None:
        notes.append(
            f"'{table.path}' has no test images: the last fifth of the images of each class is held out for testing."
        )
    elif table.test_split != "test":
        notes.append(f"'{table.path}' has no split 'test': its split '{table.test_split}' is taken for testing.")
    if table.test_split is None and not options.makes_models:
        notes.append("A given base model may have seen them: its accuracy on them says little.")
    if options.validation:
        notes.append(
            "For choosing settings: a fifth of each class's training images is measured in place of the test images."
        )
    if division.holdout is not None:
        notes.append("A tenth of the training images of each class is taught to no model: it is the holdout set.")
    return notes


def _sequence(base: Comparison, sets: Mapping[str, Changes], out_dir: Path) -> Comparison:
    """Each method's steps one after the other, each from the merged model of the step before.

    Args:
        base: The methods, without the sets of any request.
        sets: Settings of the example sets by the name of the request, in order.
        out_dir: Where the runs will be.
    """
    found: dict[str, Changes] = {}
    after: dict[str, str] = {}
    for method, changes in base.methods.items():
        for step, previous in zip(sets, [None, *sets], strict=False):
            name = f"{step}-{method}"
            found[name] = {**sets[step], **changes, "merge": True}
            if previous is not None:
                after[name] = f"{previous}-{method}"
                found[name]["base_model"] = str(RunDirectory(out_dir / after[name]).merged.absolute())
    return Comparison(base.shared, found, after=after, notes=base.notes)
