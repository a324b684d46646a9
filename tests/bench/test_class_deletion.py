"""`forget bench class-deletion` as a comparison: what is forgotten, what stays, what is held out, what is refused."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from stable_forgetting.bench import Comparison, class_deletion_comparison, image_table
from stable_forgetting.bench.class_deletion import class_objectives
from stable_forgetting.bench.image_table import ImageTable
from stable_forgetting.bench.methods import method_changes
from stable_forgetting.config import RunConfig
from stable_forgetting.config.benchmark_options import ClassDeletionOptions, load_experiment, parse_benchmark
from stable_forgetting.data.rows import Rows
from stable_forgetting.errors import ConfigError, DataError
from stable_forgetting.progress import SilentProgress
from stable_forgetting.runs.sets import load_set_rows
from tiny_pictures import CLASSES, NUM_TEST, NUM_TRAIN, make_archive, make_folder, make_model

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_archive(tmp_path_factory.mktemp("archive") / "pictures.npz")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("folder"))


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("STABLE_FORGETTING_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def compare(model: Path, archive: Path, tmp_path: Path) -> Any:
    def make(**options: Any) -> Comparison:
        given = {"model": str(model), "data": str(archive), "bounds": "sine", **options}
        parsed = parse_benchmark("class-deletion", {name: value for name, value in given.items() if value is not None})
        assert isinstance(parsed, ClassDeletionOptions)
        return class_deletion_comparison(parsed, tmp_path / "out", progress=SilentProgress())

    return make


def rows_of(config: RunConfig) -> dict[str, Rows]:
    return load_set_rows(config.data)


def classes_in(rows: Rows) -> set[str]:
    return {row["class_name"] for row in rows}


def only(comparison: Comparison) -> RunConfig:
    (config,) = comparison.configs().values()
    return config


def test_each_class_is_a_request_with_every_method(compare: Any) -> None:
    configs = compare(
        forget="crab,eel", bounds="identity,weight_clipping", objectives="npo,bounded_ascent", seeds="0,4"
    ).configs()
    assert len(configs) == 2 * 2 * 2 * 2
    clipped = configs["eel-bounded_ascent-weight_clipping-seed4"]
    assert (clipped.adapter.bound, clipped.adapter.omega, clipped.training.max_weight) == ("identity", 1, 0.1)
    assert clipped.objective.name == "bounded_ascent"
    assert (clipped.training.seed, clipped.adapter.seed) == (4, 4)
    assert classes_in(rows_of(clipped)["forget"]) == {"eel"}


def test_a_class_is_in_the_forget_set_alone_and_all_others_stay(compare: Any) -> None:
    config = only(compare(forget="crab"))
    rows = rows_of(config)
    assert classes_in(rows["forget"]) == {"crab"}
    assert len(rows["forget"]) == NUM_TRAIN
    assert classes_in(rows["retain"]) == {*CLASSES} - {"crab"}
    assert len(rows["retain"]) == 5 * NUM_TRAIN
    assert len(rows["test"]) == 6 * NUM_TEST
    assert {row["split"] for row in rows["test"]} == {"test"}
    assert config.data.num_classes == len(CLASSES)
    assert config.data.holdout is None
    assert config.model.finetune is not None
    assert [training.trains for training in config.model.finetune] == ["head", "adapter"]


def test_classes_go_together(compare: Any) -> None:
    comparison = compare(forget="crab,eel", together=True)
    assert list(comparison.methods) == ["crab+eel-gradient_difference-sine-seed0"]
    assert classes_in(rows_of(only(comparison))["forget"]) == {"crab", "eel"}


def test_a_superclass_is_all_of_its_classes(compare: Any) -> None:
    rows = rows_of(only(compare(superclass="animals")))
    assert classes_in(rows["forget"]) == {"beetle", "crab", "eel"}
    assert classes_in(rows["retain"]) == {"apple", "daisy", "fig"}


def test_random_images_are_exactly_so_many_of_those_that_are_taught(compare: Any) -> None:
    rows = rows_of(only(compare(random=7)))
    assert len(rows["forget"]) == 7
    assert len(rows["retain"]) == 9 * 6 - 7
    assert len(rows["holdout"]) == 6
    assert len(classes_in(rows["forget"])) > 1
    assert not {id(row["image"]) for row in rows["forget"]} & {id(row["image"]) for row in rows["holdout"]}
    again = rows_of(only(compare(random=7)))
    assert [row["label"] for row in again["forget"]] == [row["label"] for row in rows["forget"]]


def test_targets_come_from_other_unseen_images_than_attacks_meet(compare: Any) -> None:
    rows = rows_of(only(compare(random=7, objectives="calibrated")))
    assert sizes_of(rows) == {"forget": 7, "retain": 8 * 6 - 7, "holdout": 6, "targets": 6, "test": 6 * NUM_TEST}
    assert not pixels_of(rows["holdout"]) & pixels_of(rows["targets"])
    of_class = rows_of(only(compare(forget="crab", objectives="calibrated")))
    assert sizes_of(of_class) == {"forget": 9, "retain": 5 * 9, "targets": 1, "test": 6 * NUM_TEST}


@pytest.fixture
def twice(tmp_path: Path) -> tuple[Path, list[int]]:
    """An archive whose last crab is a second copy of its first one, and the rows of all crabs."""
    arrays = dict(np.load(make_archive(tmp_path / "once.npz")))
    crabs = np.flatnonzero(arrays["y_train"] == CLASSES.index("crab")).tolist()
    arrays["x_train"][crabs[-1]] = arrays["x_train"][crabs[0]]
    np.savez(tmp_path / "twice.npz", **arrays)
    return tmp_path / "twice.npz", crabs


def sizes_of(rows: dict[str, Rows]) -> dict[str, int]:
    return {name: len(part) for name, part in rows.items()}


def pixels_of(rows: Rows) -> set[bytes]:
    return {row["image"].tobytes() for row in rows}


def test_an_image_that_is_there_twice_is_not_held_out_and_taught(compare: Any, twice: Any) -> None:
    rows = rows_of(only(compare(data=str(twice[0]), random=7)))
    assert sizes_of(rows) == {"forget": 7, "retain": 47, "holdout": 5, "test": 18}
    assert "crab" not in classes_in(rows["holdout"])


def test_an_image_that_is_there_twice_is_not_tested_and_taught(compare: Any, twice: Any) -> None:
    rows = rows_of(only(compare(data=str(twice[0]), forget="eel", validation=True)))
    assert sizes_of(rows) == {"forget": 8, "retain": 5 * 8, "test": 6 * 2 - 1}
    assert not pixels_of(rows["test"]) & pixels_of(rows["retain"])


def test_two_files_of_one_image_are_found(compare: Any, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "pictures")
    first, *_, last = sorted((folder / "crab").iterdir())
    Image.open(first).save(last, compress_level=0)
    assert last.read_bytes() != first.read_bytes()
    rows = rows_of(only(compare(data=str(folder), forget="eel")))
    assert sizes_of(rows) == {"forget": 8, "retain": 5 * 8, "test": 6 * 2 - 1}
    assert str(last) not in {str(row["image"]) for part in rows.values() for row in part}


def test_copies_are_named(compare: Any, twice: Any, tmp_path: Path) -> None:
    data, crabs = twice
    (note,) = compare(data=str(data), forget="eel").notes
    assert note == (
        f"1 of 60 training images are in an earlier row already and left out (row {crabs[-1]} is row {crabs[0]})."
    )
    folder = make_folder(tmp_path / "pictures")
    first, last = sorted((folder / "crab").iterdir())[0], sorted((folder / "eel").iterdir())[-1]
    last.write_bytes(first.read_bytes())
    assert f"left out ('{last}' is '{first}')" in " ".join(compare(data=str(folder), forget="eel").notes)


def test_an_image_in_two_classes_is_not_forgotten_and_retained_by_a_given_model(compare: Any, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "pictures")
    first, last = sorted((folder / "crab").iterdir())[0], sorted((folder / "eel").iterdir())[-1]
    last.write_bytes(first.read_bytes())
    comparison = compare(data=str(folder), forget="eel", finetuned=True)
    rows = rows_of(only(comparison))
    assert not {row["image"] for part in rows.values() for row in part} & {str(last)}
    assert any(f"'{last}' is '{first}'" in note for note in comparison.notes)


def test_files_that_were_read_before_are_not_read_again(compare: Any, tmp_path: Path, monkeypatch: Any) -> None:
    folder = make_folder(tmp_path / "pictures")
    for path in folder.glob("*/*"):
        os.utime(path, (1_000, 1_000))
    compare(data=str(folder), forget="eel")
    monkeypatch.setattr(image_table, "read_pixels", lambda *_: pytest.fail("an image is read"))
    compare(data=str(folder), forget="crab")
    with pytest.raises(pytest.fail.Exception):
        compare(data=str(folder), forget="crab", set={"model.disk_cache_gib": 0})


def named_model(folder: Path, names: list[str]) -> str:
    """A classifier whose labels have names."""
    make_model(folder, num_labels=len(names))
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(number): name for number, name in enumerate(names)}
    config["label2id"] = {name: number for number, name in enumerate(names)}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_a_given_model_with_the_labels_of_the_data_is_taken(compare: Any, tmp_path: Path) -> None:
    given = named_model(tmp_path / "right", [name.title() for name in CLASSES])
    assert compare(forget="crab", model=given, finetuned=True).notes == []
    assert compare(forget="crab", model=given, retain_model=given).notes == []


@pytest.mark.parametrize("role", ["model", "retain_model"])
def test_a_given_model_with_other_numbers_is_refused(compare: Any, tmp_path: Path, role: str) -> None:
    given = {"model": named_model(tmp_path / "right", [*CLASSES]), "finetuned": True}
    given[role] = named_model(tmp_path / "wrong", [*CLASSES[1:], CLASSES[0]])
    with pytest.raises(ConfigError, match=r"class 'apple' is number 0 in .* and 5 in the model '.*wrong'"):
        compare(forget="crab", **given)


def test_a_given_model_with_other_names_is_noted(compare: Any, tmp_path: Path) -> None:
    given = named_model(tmp_path / "other", [*CLASSES[:-1], "Feige"])
    (note,) = compare(forget="crab", model=given, finetuned=True).notes
    assert "other names for 1 of 6 classes (first: number 5 is 'Feige', in '" in note
    assert "' 'fig')" in note


def test_a_classifier_of_the_classes_is_no_pretrained_model(compare: Any, archive: Path, tmp_path: Path) -> None:
    arrays = {name: array for name, array in np.load(archive).items() if name != "class_names"}
    np.savez(tmp_path / "nameless.npz", **arrays)
    nameless = {"data": str(tmp_path / "nameless.npz"), "forget": "2"}
    with pytest.raises(
        ConfigError, match=r"is a classifier of the classes in .*\(apple, beetle, crab \.\.\.\).*--finetuned"
    ):
        compare(forget="crab", model=named_model(tmp_path / "same", [*CLASSES]))
    (note,) = compare(forget="crab", model=named_model(tmp_path / "more", [*CLASSES, "grape"])).notes
    assert "has labels of the names of all classes" in note
    (note,) = compare(forget="crab", model=str(make_model(tmp_path / "nameless", num_labels=6))).notes
    assert "has a head for 6 classes whose names cannot be compared" in note
    (note,) = compare(forget="crab", model=named_model(tmp_path / "others", [*CLASSES[:-1], "Feige"])).notes
    assert "has a head for 6 classes of other names than the data's" in note
    (note,) = compare(**nameless, model=named_model(tmp_path / "named", [*CLASSES])).notes
    assert "whose names cannot be compared" in note
    assert compare(forget="crab", model=named_model(tmp_path / "larger", ["one", "two", *"abcde"])).notes == []


def test_the_default_methods_have_rates_of_their_own(compare: Any) -> None:
    def rates(**given: Any) -> dict[str, float]:
        configs = compare(forget="crab", **given).configs()
        return {name.removesuffix("-seed0"): config.training.learning_rate for name, config in configs.items()}

    by_default = {
        "bounded_ascent-identity": 3e-3,
        "gradient_difference_stopped-sine": 3e-4,
        "gradient_difference_stopped-identity": 6e-4,
    }
    assert rates(bounds=None) == {f"crab-{name}": rate for name, rate in by_default.items()}
    assert rates(bounds=None, learning_rates="1e-5") == {f"crab-{name}": 1e-5 for name in by_default}
    assert rates(bounds="sine") == {"crab-gradient_difference-sine": 1e-3}
    assert [*rates(bounds=None, objectives="npo")] == ["crab-npo-identity", "crab-npo-sine"]
    of_images = compare(random=5, bounds=None)
    assert list(of_images.methods) == [
        f"random-5-{name}-seed0"
        for name in ("bounded_ascent-identity", "gradient_difference-sine", "gradient_difference-identity")
    ]
    assert not any(config.training.stop for config in of_images.configs().values())


def test_few_images_are_taught_for_more_epochs(compare: Any, tmp_path: Path) -> None:
    finetune = only(compare(forget="crab")).model.finetune
    assert finetune is not None
    assert [training.epochs for training in finetune] == [107, 107]
    arrays = dict(np.load(make_archive(tmp_path / "once.npz")))
    for name in ("x", "y", "coarse"):
        arrays[f"{name}_train"] = np.repeat(arrays[f"{name}_train"], 60, axis=0)
    np.savez(tmp_path / "many.npz", **arrays)
    finetune = only(compare(data=str(tmp_path / "many.npz"), forget="crab")).model.finetune
    assert finetune is not None
    assert [training.epochs for training in finetune] == [2, 3]


def test_rows_of_a_table_with_a_column_of_that_name_cannot_be_listed() -> None:
    table = ImageTable("here", Rows([{"row": 5}], "here"), {}, 1)
    with pytest.raises(DataError, match="Rename the column"):
        table.among_rows([0])


def test_listed_images_are_those(compare: Any, archive: Path, tmp_path: Path) -> None:
    (tmp_path / "asked.txt").write_text("4\n1\n")
    rows = rows_of(only(compare(images=str(tmp_path / "asked.txt"))))
    images = np.load(archive)["x_train"]
    assert [row["image"].tolist() for row in rows["forget"]] == [images[1].tolist(), images[4].tolist()]


def test_unseen_images_are_of_the_classes_of_the_listed_ones(compare: Any, archive: Path, tmp_path: Path) -> None:
    crabs = np.flatnonzero(np.load(archive)["y_train"] == CLASSES.index("crab")).tolist()
    rows, notes = asked_rows(compare, tmp_path, crabs[:2], objectives="calibrated")
    for name in ("holdout", "targets"):
        assert classes_in(rows[name]) == {"crab"}, name
    assert not any("all classes' serve" in note for note in notes)
    rows, notes = asked_rows(compare, tmp_path, crabs[-1:])  # the only crab that would have been held out
    assert len(classes_in(rows["holdout"])) == len(CLASSES) - 1
    assert "No unseen image of the listed ones' classes is left for membership tests: all classes' serve." in notes


def asked_rows(compare: Any, tmp_path: Path, numbers: list[int], **options: Any) -> tuple[dict[str, Rows], list[str]]:
    """The sets when these rows are listed, and the notes."""
    (tmp_path / "asked.txt").write_text("\n".join(map(str, numbers)))
    comparison = compare(images=str(tmp_path / "asked.txt"), **options)
    return rows_of(only(comparison)), list(comparison.notes)


@pytest.mark.parametrize("validation", [False, True])
def test_listed_images_are_forgotten_wherever_they_are_in_their_class(
    compare: Any, archive: Path, tmp_path: Path, validation: bool
) -> None:
    arrays = np.load(archive)
    crabs = np.flatnonzero(arrays["y_train"] == CLASSES.index("crab")).tolist()
    rows, _ = asked_rows(compare, tmp_path, crabs[5:], validation=validation)
    assert pixels_of(rows["forget"]) == {arrays["x_train"][row].tobytes() for row in crabs[5:]}
    others = {"retain": 5 + 5 * 9, "holdout": 5, "test": 6 * NUM_TEST}
    if validation:
        others = {"retain": 5 + 5 * 7, "holdout": 5, "test": 5 * 2}
    assert sizes_of(rows) == {"forget": 5, **others}
    for name in others:
        assert not pixels_of(rows[name]) & pixels_of(rows["forget"]), name


@pytest.mark.parametrize("finetuned", [False, True])
def test_a_listed_second_copy_is_forgotten_in_its_first_one(
    compare: Any, twice: Any, tmp_path: Path, finetuned: bool
) -> None:
    data, crabs = twice
    image = np.load(data)["x_train"][crabs[0]].tobytes()
    rows, notes = asked_rows(compare, tmp_path, [crabs[-1], crabs[1]], data=str(data), finetuned=finetuned)
    assert image in pixels_of(rows["forget"])
    assert image not in pixels_of(rows["retain"])
    assert len(rows["forget"]) == 2
    assert any("1 of the listed images" in note for note in notes)


def test_validation_measures_no_test_image(compare: Any) -> None:
    comparison = compare(forget="crab", validation=True, objectives="calibrated")
    rows = rows_of(only(comparison))
    assert {row["split"] for part in rows.values() for row in part} == {"train"}
    sizes = {name: len(part) for name, part in rows.items()}
    assert sizes == {"forget": 7, "retain": 5 * 7, "targets": 1, "test": 6 * 2}
    assert classes_in(rows["targets"]) == {"crab"}
    assert any("place of the test images" in note for note in comparison.notes)


def test_a_folder_without_test_images_holds_a_fifth_out_and_says_so(compare: Any, folder: Path) -> None:
    comparison = compare(data=str(folder), forget="crab")
    rows = rows_of(only(comparison))
    assert {name: len(part) for name, part in rows.items()} == {"forget": 8, "retain": 5 * 8, "test": 6 * 2}
    paths = [row["image"] for part in rows.values() for row in part]
    assert len(set(paths)) == len(paths)
    assert "no test images" in comparison.notes[0]


def test_validation_measures_none_of_the_images_that_a_folder_holds_out_for_testing(compare: Any, folder: Path) -> None:
    reported, chosen = (
        rows_of(only(compare(data=str(folder), forget="crab", validation=validation))) for validation in (False, True)
    )
    tested = {row["image"] for row in reported["test"]}
    assert sizes_of(chosen) == {"forget": 6, "retain": 5 * 6, "test": 6 * 2}
    assert not tested & {row["image"] for part in chosen.values() for row in part}


def test_the_target_of_chance_is_that_of_a_model_that_knows_nothing(compare: Any) -> None:
    config = only(compare(forget="crab", objectives="calibrated_chance"))
    assert config.objective.target.nll == pytest.approx(math.log(6))
    assert config.data.holdout is None


def test_the_help_names_the_objectives_that_only_classes_have() -> None:
    described = ClassDeletionOptions.model_fields["objectives"].description
    assert all(name in described for name in class_objectives(3))


def test_a_training_that_ends_when_the_class_is_forgotten(compare: Any) -> None:
    config = only(compare(forget="crab", objectives="gradient_difference_stopped"))
    assert config.objective.name == "gradient_difference"
    (rule,) = config.training.stop
    assert (rule.metric, rule.below, config.training.evaluate_every) == ("forget_accuracy", 0.02, 1)
    assert 1 / config.evaluation.validation_size < rule.below < 2 / config.evaluation.validation_size
    assert not only(compare(forget="crab", objectives="gradient_difference")).training.stop
    with pytest.raises(ConfigError, match="ends when no forget image is recognised any more"):
        compare(random=5, objectives="gradient_difference_stopped")
    with pytest.raises(ConfigError, match=r"'training.stop' cannot be changed for all runs"):
        compare(forget="crab", objectives="gradient_difference_stopped", set={"training.stop": []})


def test_a_finetuned_model_is_the_base_model(compare: Any, model: Path) -> None:
    assert only(compare(forget="crab", finetuned=True)).model.finetune is None
    assert only(compare(random=5, finetuned=True)).data.holdout is None
    given = only(compare(forget="crab", retain_model=str(model)))
    assert (given.model.finetune, given.retain_model) == (None, str(model))


def test_a_sequence_starts_each_step_from_the_one_before(compare: Any, tmp_path: Path) -> None:
    comparison = compare(forget="crab,eel,fig", sequence=True)
    first, second, third = comparison.configs().values()
    assert list(comparison.after) == [second.name, third.name]
    assert first.model.finetune is not None
    assert (first.base_model, first.merge) == (None, True)
    assert third.model == first.model, "the retain model of a step is made from the pretrained model"
    assert third.base_model == str(tmp_path / "out" / second.name / "merged")
    rows = rows_of(third)
    assert classes_in(rows["forget"]) == {"fig"}
    assert classes_in(rows["retain"]) == {"apple", "beetle", "daisy"}
    assert classes_in(rows["test"]) == {"apple", "beetle", "daisy", "fig"}
    assert classes_in(rows["forgotten_before"]) == {"crab", "eel"}
    assert first.data.forgotten_before is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"forget": "crabs"}, "Unknown class 'crabs'. Did you mean 'crab'"),
        ({"superclass": "animal"}, "Unknown superclass 'animal'. Did you mean 'animals'"),
        ({"random": 60}, "only 54 are taught"),
        ({"random": 0}, "random = 0"),
        ({"images": "nothing.txt"}, "No file at 'nothing.txt'"),
        ({}, "give one of forget, superclass, random and images, not none"),
        ({"forget": "crab", "random": 3}, "not forget and random"),
        ({"random": 3, "sequence": True}, "go with forget or superclass"),
        ({"forget": "crab,eel", "sequence": True, "together": True}, "not both"),
        ({"forget": ","}, "names nothing"),
        ({"forget": "crab", "learning_rates": ""}, "names nothing"),
        ({"forget": "crab", "learning_rates": "fast"}, "learning_rates"),
        ({"forget": "crab", "objectives": "gd"}, "Unknown objective 'gd'"),
        ({"forget": "crab", "targets": "mpl"}, "Did you mean 'mlp'"),
        ({"forget": "crab,eel", "retain_model": "a/b"}, "One retain model cannot serve 2 requests"),
        ({"forget": "crab,crab"}, "twice"),
        ({"forget": "crab", "finetuned": True, "validation": True}, "no model has seen"),
        ({"forget": "crab", "forgets": "crab"}, "Did you mean 'forget'"),
    ],
)
def test_what_is_not_allowed_is_said(compare: Any, given: dict[str, Any], said: str) -> None:
    with pytest.raises((ConfigError, DataError), match=said):
        compare(**given)


@pytest.mark.parametrize(
    ("place", "more", "instead"),
    [
        ("adapter.bound", {}, "--bounds or --methods"),
        ("adapter", {}, "Change single settings of 'adapter' only. Use --bounds"),
        ("objective.name", {}, "--objectives or --methods"),
        ("adapter.omega", {"bounds": "sine,identity"}, "the method 'gradient_difference-identity-seed0' sets"),
        ("training.seed", {}, "--seeds"),
        ("training.learning_rate", {"learning_rates": "1e-3"}, "--learning-rates or --methods"),
        ("model.name", {}, "--model"),
        ("data.source.path", {}, "--data"),
        ("name", {}, "--out"),
        ("data.test.limit", {}, "evaluation.test_limit"),
        ("data.forget", {}, "--forget, --superclass"),
        ("data", {}, "sets 'data.source'"),
        ("data.targets.limit", {"objectives": "calibrated"}, "--objectives"),
        ("merge", {"sequence": True}, "--sequence"),
    ],
)
def test_a_change_that_would_count_for_nothing_is_refused(
    compare: Any, place: str, more: dict[str, Any], instead: str
) -> None:
    with pytest.raises(ConfigError, match=f"'{place}' cannot be changed for all runs.*{instead}"):
        compare(forget="crab", set={place: 1}, **more)


def test_changes_of_what_nothing_else_sets_count(compare: Any) -> None:
    changes = {"adapter.omega": 7, "merge": True, "data.holdout": {"split": "test"}, "training.learning_rate": 0.5}
    config = only(compare(forget="crab", set=changes))
    assert (config.adapter.omega, config.merge, config.training.learning_rate) == (7, True, 0.5)
    assert config.data.holdout is not None


def test_the_hub_s_cifar100_is_found_by_its_short_name(compare: Any, monkeypatch: Any) -> None:
    """With the columns that uoft-cs/cifar100 has; one image of each class."""
    import datasets

    names = {"fine_label": CLASSES, "coarse_label": ("animals", "plants")}
    features = {column: datasets.ClassLabel(names=[*found]) for column, found in names.items()}
    pictures = [Image.new("RGB", (8, 8), (20 * number, 0, 0)) for number in range(6)]
    table = datasets.Dataset.from_dict(
        {"img": pictures, "fine_label": [*range(6)], "coarse_label": [1, 0, 0, 1, 0, 1]},
        features=datasets.Features({"img": datasets.Image(), **features}),
    )
    asked = []

    def load_dataset(name: str, *_: Any, **__: Any) -> Any:
        asked.append(name)
        return datasets.DatasetDict({"train": table, "test": table})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    config = only(compare(data="cifar100", superclass="animals"))
    assert {*asked} == {"uoft-cs/cifar100"}
    assert config.data.source is not None
    assert (config.data.source.image, config.data.source.label) == ("img", "fine_label")
    assert [row["fine_label_name"] for row in rows_of(config)["forget"]] == ["beetle", "crab", "eel"]


def test_a_folder_comes_before_a_short_name(compare: Any, tmp_path: Path, monkeypatch: Any) -> None:
    make_folder(tmp_path / "cifar10")
    monkeypatch.chdir(tmp_path)
    assert len(rows_of(only(compare(data="cifar10", forget="crab")))["forget"]) == 8


def test_a_name_of_two_classes_is_refused_and_says_nothing_of_labels(
    compare: Any, archive: Path, tmp_path: Path
) -> None:
    """As the cranes of ImageNet."""
    names = ["crane", "beetle", "crab", "crane", "eel", "fig"]
    np.savez(tmp_path / "cranes.npz", **dict(np.load(archive)) | {"class_names": np.array(names)})
    given = {"data": str(tmp_path / "cranes.npz"), "finetuned": True}
    with pytest.raises(DataError, match=r"'crane' is the name of 2 classes in .* \(labels 0, 3\)"):
        compare(forget="crab,crane", **given)
    with pytest.raises(ConfigError, match=r"class 'beetle' is number 1 in .* and 4 in the model"):
        compare(forget="crab", model=named_model(tmp_path / "model", names[::-1]), **given)


def test_superclasses_need_names(compare: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no superclasses.*--together"):
        compare(data=str(make_archive(tmp_path / "plain.npz", coarse=False)), superclass="animals")


def test_a_table_without_images_is_refused(compare: Any, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"prompt": "Who?", "answer": "Ada."}\n')
    with pytest.raises(DataError, match="no column image or img"):
        compare(data=str(tmp_path / "texts.jsonl"), forget="crab")


def test_images_that_are_none_are_refused(compare: Any, tmp_path: Path) -> None:
    for image, said in (('"gone.png"', "no image file 'gone.png'"), ("5", "is a int")):
        rows = "".join(f'{{"image": {image}, "label": {label}}}\n' for label in (0, 1))
        (tmp_path / "listed.jsonl").write_text(rows)
        with pytest.raises(DataError, match=said):
            compare(data=str(tmp_path / "listed.jsonl"), forget="1")


def test_a_listed_image_has_to_have_a_label(compare: Any, tmp_path: Path) -> None:
    folder_of(tmp_path / "images", a=2)
    rows = [{"image": str(tmp_path / "images" / "a" / f"{number}.png")} for number in range(2)]
    listed = [json.dumps(rows[0] | {"label": 0}), json.dumps(rows[1])]
    (tmp_path / "listed.jsonl").write_text("\n".join(listed))
    (tmp_path / "asked.txt").write_text("1")
    with pytest.raises(DataError, match="lists row 1, which has no label in"):
        compare(data=str(tmp_path / "listed.jsonl"), images=str(tmp_path / "asked.txt"))


def test_row_numbers_have_to_be_rows(compare: Any, tmp_path: Path) -> None:
    for text, said in (("60", "row 60"), ("", "no number"), ("one", "no list of row numbers")):
        (tmp_path / "asked.txt").write_text(text)
        with pytest.raises(DataError, match=said):
            compare(images=str(tmp_path / "asked.txt"))


@pytest.mark.parametrize(
    "path", sorted(EXPERIMENTS.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_every_experiment_can_be_read_and_begins_with_its_command(path: Path) -> None:
    assert path.read_text().splitlines()[0] == f"# forget bench run {path.relative_to(EXPERIMENTS.parent)}"
    options = load_experiment(path, {})
    assert options.benchmark == path.parent.name.replace("_", "-")
    assert method_changes(options, class_objectives(100))


def test_what_the_command_line_says_replaces_what_the_file_says(tmp_path: Path) -> None:
    declared = {"benchmark": "class-deletion", "model": "a/b", "forget": ["crab"], "set": {"training.steps": 3}}
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(declared))
    options = load_experiment(path, {"model": "c/d", "set": {"adapter.rank": 2}})
    assert (options.model, options.set) == ("c/d", {"training.steps": 3, "adapter.rank": 2})


def test_a_file_without_a_benchmark_is_refused(tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").write_text("benchmark: tofo\nmodel: a/b\n")
    with pytest.raises(ConfigError, match="Did you mean 'tofu'"):
        load_experiment(tmp_path / "experiment.yaml", {})


@pytest.mark.parametrize("change", [{"model.finetune": None}, {"base_model": "another"}])
def test_what_no_model_has_seen_is_not_changed_by_a_setting(compare: Any, change: dict[str, Any]) -> None:
    for request in ({"random": 5}, {"forget": "crab", "validation": True}):
        with pytest.raises(ConfigError, match=r"known what no model has seen.*say --finetuned"):
            compare(**request, set=change)


def test_a_given_classifier_is_not_finetuned(compare: Any, model: Path) -> None:
    for given in ({"finetuned": True}, {"retain_model": str(model)}):
        with pytest.raises(
            ConfigError, match=r"'model\.finetune\.epochs' is set, but with finetuned or a retain model"
        ):
            compare(forget="crab", set={"model.finetune.epochs": 3}, **given)


def folder_of(path: Path, **counts: int) -> str:
    """A folder with so many images of each class."""
    for label, (name, count) in enumerate(counts.items()):
        for number in range(count):
            pixels = np.random.default_rng([number, label]).integers(0, 256, (8, 8, 3)).astype(np.uint8)
            place = path / name / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place)
    return str(path)


@pytest.mark.parametrize(
    ("counts", "given", "said"),
    [
        (
            {"a": 9, "bb": 1, "ccc": 9},
            {"forget": "a,bb"},
            r"Nothing of 'bb' is left to forget",
        ),
        ({"a": 9, "bb": 9}, {"forget": "a,bb", "sequence": True}, r"Nothing is left to keep when '2-bb' is forgotten"),
        ({"a": 9, "bb": 9}, {"forget": "a,bb", "together": True}, r"Nothing is left to keep when 'a\+bb' is forgotten"),
        ({"a": 9}, {"forget": "a"}, r"Nothing is left to keep when 'a' is forgotten"),
        ({"a": 1}, {"forget": "a"}, r"Nothing of 'a' is left to forget"),
        (
            {"a": 6, "bb": 30},
            {"forget": "a", "objectives": "calibrated"},
            r"'a' has too few images: none is left",
        ),
    ],
)
def test_a_request_without_examples_is_refused_before_anything_runs(
    compare: Any, tmp_path: Path, counts: dict[str, int], given: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        compare(data=folder_of(tmp_path / "small", **counts), **given)


def test_images_of_classes_that_no_model_is_taught_test_nothing(compare: Any, tmp_path: Path) -> None:
    folder_of(tmp_path / "split" / "train", cat=5, dog=5)
    folder_of(tmp_path / "split" / "test", cat=2, dog=2, dogs=3)  # a misspelled folder
    found = compare(data=str(tmp_path / "split"), forget="cat")
    assert classes_in(rows_of(only(found))["test"]) == {"cat", "dog"}
    said = "The test images of 1 of the classes (first: 'dogs') are left out: no model is taught an image of them."
    assert found.notes == [said]
    given = compare(data=str(tmp_path / "split"), forget="cat", finetuned=True)
    assert classes_in(rows_of(only(given))["test"]) == {"cat", "dog", "dogs"}  # a given model may know them
    rare = compare(data=folder_of(tmp_path / "rare", cat=10, dog=10, rare=1), forget="cat")
    assert classes_in(rows_of(only(rare))["test"]) == {"cat", "dog"}
    assert said.replace("dogs", "rare") in rare.notes


def test_names_of_requests_are_names_of_folders(compare: Any, tmp_path: Path) -> None:
    names = [f"{letter}{'x' * 30}-{letter}" for letter in "abcde"]
    data = folder_of(tmp_path / "long", **dict.fromkeys(names, 5))
    request = only(compare(data=data, forget=",".join(names[:4]), together=True)).name.split("-gradient")[0]
    other = only(compare(data=data, forget=",".join(names[1:]), together=True)).name.split("-gradient")[0]
    assert len(request.encode()) <= 100
    assert request.startswith("axxxx")
    assert request != other
    assert only(compare(data=data, forget=names[0])).name.startswith(f"a{'x' * 30}_a-")


def test_classes_may_be_named_by_numbers_and_with_accents_of_both_kinds(
    compare: Any, archive: Path, tmp_path: Path
) -> None:
    arrays = dict(np.load(archive))
    np.savez(tmp_path / "numbered.npz", **{name: array for name, array in arrays.items() if name != "class_names"})
    for given in (3, [3], "3"):
        assert only(compare(data=str(tmp_path / "numbered.npz"), forget=given)).name.startswith("3-")
    names = ["ge\u0301", "a,b", *CLASSES[2:]]  # e and an accent, as Apple's folders have it
    np.savez(tmp_path / "named.npz", **arrays | {"class_names": np.array(names)})
    assert len(rows_of(only(compare(data=str(tmp_path / "named.npz"), forget="g\u00e9")))["forget"]) == NUM_TRAIN
    with pytest.raises(DataError, match=r"Unknown class 'a'.*A name with a comma can be given in an experiment file"):
        compare(data=str(tmp_path / "named.npz"), forget="a,b")
    assert len(rows_of(only(compare(data=str(tmp_path / "named.npz"), forget=["a,b"])))["forget"]) == NUM_TRAIN


@pytest.mark.parametrize(("size", "said"), [("x", "a valid integer"), (0, "greater than or equal to 1")])
def test_a_bad_size_of_images_is_said_before_images_are_scaled(compare: Any, size: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"image_size.*{said}"):
        compare(forget="crab", set={"model.image_size": size})
