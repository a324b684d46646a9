"""Class deletion: an image classifier forgets classes, superclasses or images, alone or one after another.

As the paper does with CIFAR-100; which choices are ours is said in docs/class_deletion.md. Base and
retain models, unlearning and evaluation are those of any other run: this file only writes their settings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from stable_forgetting.bench.comparison import Comparison
from stable_forgetting.bench.division import (
    Aside,
    Division,
    divide,
    lacks_alike,
    refuse_empty_sets,
    without_untaught_tests,
)
from stable_forgetting.bench.given_models import check_classifier, check_pretrained, model_config
from stable_forgetting.bench.image_table import ImageTable, TableNames, read_image_table
from stable_forgetting.bench.methods import PROBLEMS_DIR, Changes, method_changes, refuse_changes, refuse_finetuning
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
from stable_forgetting.data.pixel_hashes import PixelHashes
from stable_forgetting.errors import ConfigError
from stable_forgetting.models.load import cache_dir
from stable_forgetting.progress import Progress
from stable_forgetting.runs import RunDirectory

_INSTEAD = {
    "data.forget": "--forget, --superclass, --random or --images",
    "data.retain": "evaluation.retain_limit, which bounds what is measured,",
    "data.test": "--validation, or evaluation.test_limit, which bounds what is measured,",
    "data.holdout": "--random or --images, which need one,",
    "data.targets": "--objectives, of which some need them,",
    "data.forgotten_before": "--sequence",
    "merge": "--sequence, which needs merged models,",
}
"""What a request writes into the settings of its runs, and what to use in place of a change of it."""

_FORGOTTEN = 0.02
"""Accuracy on the forget images below which a class counts as forgotten: at most one of the 64 that are measured."""

_TEMPLATE = PROBLEMS_DIR / "class_deletion.yaml"


def class_deletion_comparison(options: ClassDeletionOptions, out_dir: Path, *, progress: Progress) -> Comparison:
    """Every request with every method.

    Args:
        options: Model, data, what is to be forgotten, and methods.
        out_dir: Where the runs will be: later steps of a sequence start from the merged models of earlier ones.
        progress: Where the reading of the images is shown.

    Returns:
        One method for each combination, named REQUEST-OBJECTIVE-BOUND-seedN; see `method_changes`.

    Raises:
        ConfigError: An objective, a bound, a group of layers or a setting is not allowed, or the labels of a model are
            not those of the data.
        DataError: The data cannot be read, or what is to be forgotten is not in them.
        ModelError: The model cannot be found.
    """
    template = read_yaml(_TEMPLATE)
    table = read_image_table(options.data, TableNames(template["columns"], template["test_splits"], template["data"]))
    methods = method_changes(options, class_objectives(table.num_classes))
    _refuse_stops_at_what_stays(options, methods)
    _refuse_other_models(options)
    requests, listed = class_requests(options, table), listed_rows(options, table)
    aside = Aside(
        test=table.test_split is None,
        validation=options.validation,
        holdout=options.makes_models and options.names_images,
        targets=options.makes_models and _any_needs_targets(methods),
    )
    _refuse_changes_of_sets(options, aside)
    if options.retain_model is not None and len(requests) > 1:
        raise ConfigError(
            f"One retain model cannot serve {len(requests)} requests, because each forgets something else. "
            "Leave --retain-model out, or name one class, or several with --together."
        )
    config = model_config(options, options.model)
    num_taught = max(1, int(aside.share_taught * len(table.rows)))
    shared = _shared_settings(options, table, template, config.model_type, num_taught)
    about_models = _check_labels(options, table, config, is_given=shared["model"].get("finetune") is None)
    copies = table.copies(_kept_hashes(options), progress=progress)
    asked = sorted({copies.get(row, row) for row in listed})
    division = divide(table, aside, leave_out=[*copies], keep=asked)
    division, about_tests = without_untaught_tests(table, division) if options.makes_models else (division, [])
    others_serve = []
    if options.names_images:
        request = image_request(options, table, asked, division.taught)
        others_serve = lacks_alike(request, table, division)
        requests = [replace(request, alike=None) if others_serve else request]
    refuse_empty_sets(requests, table, division)
    sets = {request.name: _sets(request, table, division) for request in requests}
    notes = [*about_models, *_notes(table, division, options), *about_tests]
    if copies:
        which = f"{len(copies)} of {len(table.rows)} training images"
        notes.append(f"{which} are in an earlier row already and left out ({table.shown_copies(copies)}).")
    if repeated := len({*listed} & {*copies}):
        notes.append(f"{repeated} of the listed images are in an earlier row already, and forgotten there.")
    said = "No unseen image of the listed ones' classes is left for"
    notes += [f"{said} {purpose}: all classes' serve." for purpose in others_serve]
    if options.sequence:
        return _sequence(Comparison(shared, methods, notes=notes), sets, out_dir)
    found = {f"{name}-{method}": {**sets[name], **changes} for name in sets for method, changes in methods.items()}
    return Comparison(shared, found, notes=notes)


def _refuse_other_models(options: ClassDeletionOptions) -> None:
    """Refuse changes of which models there are: it decides on what is known to be unseen, and so on the sets."""
    if not options.makes_models:
        refuse_finetuning(options, "finetuned or a retain model")
        return
    given = options.set
    if given.get("base_model") is not None or ("model.finetune" in given and given["model.finetune"] is None):
        raise ConfigError(
            "'base_model' and 'model.finetune: null' are no changes for all runs: base and retain model are made by "
            "finetuning here, by which it is known what no model has seen. If the model knows the classes already, say "
            "--finetuned."
        )


def _refuse_changes_of_sets(options: ClassDeletionOptions, aside: Aside) -> None:
    """Refuse changes of the sets that are made here; others, such as another holdout set, may be given."""
    not_written = {f"data.{name}" for name in ("holdout", "targets") if not getattr(aside, name)}
    not_written |= set() if options.sequence else {"data.forgotten_before", "merge"}
    for place, option in _INSTEAD.items():
        if place not in not_written:
            refuse_changes(options.set, [place], "what is to be forgotten", option)


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
    for name, unseen in (("holdout", division.holdout), ("targets", division.targets)):
        if unseen is not None:
            rules[name] = all_of(request.alike, unseen)
    splits = {"test": division.test_split}
    found: Changes = {}
    for name, rule in rules.items():
        given = {"split": splits.get(name, table.train_split), "where": rule}
        found[f"data.{name}"] = {setting: value for setting, value in given.items() if value is not None}
    return found


def _check_labels(options: ClassDeletionOptions, table: ImageTable, config: Any, *, is_given: bool) -> list[str]:
    """Compare the labels of the models with the classes of the data; what cannot be known is said."""
    notes = (check_classifier if is_given else check_pretrained)(options.model, config, table)
    if options.retain_model is not None:
        notes += check_classifier(options.retain_model, model_config(options, options.retain_model), table)
    return notes


def _kept_hashes(options: ClassDeletionOptions) -> PixelHashes:
    """Where runs keep theirs."""
    return PixelHashes(None if options.set.get("model.disk_cache_gib") == 0 else cache_dir() / "images")


def _shared_settings(
    options: ClassDeletionOptions, table: ImageTable, template: Mapping[str, Any], family: str, num_taught: int
) -> dict[str, Any]:
    shared: dict[str, Any] = dict(template["shared"])
    settings = template["families"].get(family, template["families"]["default"])
    finetune = [_long_enough(training, num_taught, template["least_steps"]) for training in settings["finetune"]]
    shared["model"] = {"name": options.model, **settings, "finetune": finetune}
    if not options.makes_models:
        shared["model"].pop("finetune", None)
    shared["retain_model"] = options.retain_model
    columns = {name: table.columns[name] for name in ("image", "label")}
    shared["data"] = {"source": {"path": table.path, **columns}, "num_classes": table.num_classes}
    for place, value in options.set.items():
        apply_change(shared, place, value)
    return shared


def _long_enough(training: Mapping[str, Any], num_images: int, least_steps: int) -> dict[str, Any]:
    """A training with more epochs where there are so few images that it would be over after some steps."""
    epochs = math.ceil(least_steps * training["batch_size"] / num_images)
    return {**training, "epochs": max(training["epochs"], epochs)}


def class_objectives(num_classes: int) -> dict[str, Changes]:
    """Objectives for deleting classes, by name: where every class is as likely as any other, or none is recognised."""
    return {
        "calibrated_chance": {
            "objective.name": "calibrated",
            "objective.target.source": "number",
            "objective.target.nll": math.log(max(num_classes, 2)),
        },
        "gradient_difference_stopped": {
            "objective.name": "gradient_difference",
            "training.evaluate_every": 1,
            "training.stop": [{"metric": "forget_accuracy", "below": _FORGOTTEN}],
        },
    }


def _refuse_stops_at_what_stays(options: ClassDeletionOptions, methods: Mapping[str, Changes]) -> None:
    stopped = [name for name, changes in methods.items() if "training.stop" in changes]
    if options.names_images and stopped:
        raise ConfigError(
            f"The method '{stopped[0]}' ends when no forget image is recognised any more, but the classes of single "
            "images stay, so that a model that never saw them recognises most. Take gradient_difference or calibrated."
        )


def _any_needs_targets(methods: Mapping[str, Changes]) -> bool:
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
            "For choosing settings: a fifth of each class's training images, none of those for testing, is measured in "
            "place of the test images."
        )
    said = "A tenth of the training images of each class is taught to no model: it is for"
    return notes + [f"{said} {purpose}." for purpose in division.unseen]


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
