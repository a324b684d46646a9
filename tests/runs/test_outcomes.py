"""What the record says about single classes and images."""

import numpy as np
import pytest
import torch

from sample_scores import make_likelihood
from stable_forgetting.data.examples import ExampleSet, ImageExample
from stable_forgetting.evaluation.scores import ModelScores, SetScores
from stable_forgetting.runs.outcomes import class_accuracies, class_names, example_outcomes
from stable_forgetting.runs.sets import Sets

LABELS = {"forget": [3, 3, 3, 1], "retain": [0, 1, 1, 2], "forget_test": [3, 3], "retain_test": [0, 1, 1]}
ROLES = ("base", "unlearned", "retain")
NAMES = ("zero", "one", "two", "three")


def picture(label: int, **metadata) -> ImageExample:
    return ImageExample(np.zeros((4, 4, 3), np.uint8), label, torch.zeros(3, 4, 4), metadata)


def make_sets(names: tuple[str, ...] = tuple(LABELS)) -> Sets:
    return Sets(
        {name: ExampleSet(name, [picture(label, class_name=NAMES[label]) for label in LABELS[name]]) for name in names}
    )


def make_scores(names: tuple[str, ...] = tuple(LABELS)) -> dict[str, ModelScores]:
    generator = np.random.default_rng(5)
    found = {}
    for role in ROLES:
        sets = {}
        for name in names:
            likelihood = make_likelihood(generator, len(LABELS[name]), 1.0, task="image")
            likelihood.label[:] = LABELS[name]
            likelihood.predicted[:] = generator.integers(4, size=len(LABELS[name]))
            sets[name] = SetScores("one", likelihood)
        found[role] = ModelScores("image", role, "x", sets)
    return found


def counted(scores: ModelScores, names: tuple[str, ...], label: int) -> tuple[int, int]:
    """Right predictions and images of one class, one image after the other."""
    right = count = 0
    for name in names:
        likelihood = scores.sets[name].likelihood
        for predicted, true in zip(likelihood.predicted.tolist(), likelihood.label.tolist(), strict=True):
            count += true == label
            right += true == label and predicted == label
    return right, count


def test_classes_are_measured_on_test_images_and_on_training_images_where_there_are_none():
    scores = make_scores()
    entries = class_accuracies(make_sets(), scores)
    assert [(entry.label, entry.images, entry.count) for entry in entries] == [
        (0, "test", 1),
        (1, "test", 2),
        (2, "training", 1),
        (3, "test", 2),
    ]
    for entry in entries:
        names = ("forget_test", "retain_test") if entry.images == "test" else ("forget", "retain")
        for role in ROLES:
            right, count = counted(scores[role], names, entry.label)
            assert entry.accuracy[role] == pytest.approx(right / count)
            assert entry.count == count


def test_a_class_whose_test_images_were_not_measured_is_left_out():
    """Of class 0 there is one test image, which the limit has left out: its training images would say another thing."""
    scores = make_scores()
    for values in scores.values():
        values.sets["retain_test"].likelihood.label[:] = 1
    entries = class_accuracies(make_sets(), scores)
    assert [(entry.label, entry.images) for entry in entries] == [(1, "test"), (2, "training"), (3, "test")]


def test_without_test_images_all_classes_are_measured_on_training_images():
    names = ("forget", "retain")
    entries = class_accuracies(make_sets(names), make_scores(names))
    assert [(entry.label, entry.images, entry.count) for entry in entries] == [
        (0, "training", 1),
        (1, "training", 3),
        (2, "training", 1),
        (3, "training", 3),
    ]


def test_a_class_is_deleted_if_nothing_of_it_is_kept():
    assert [entry.label for entry in class_accuracies(make_sets(), make_scores()) if entry.deleted] == [3]


def test_language_has_no_classes():
    scores = {"base": ModelScores("language", "base", "x", {})}
    assert class_accuracies(Sets({}), scores) == []


def test_names_come_from_the_column_class_name():
    assert class_names(make_sets()) == dict(enumerate(NAMES))
    assert class_names(Sets({"forget": ExampleSet("forget", [picture(3)])})) == {}


def test_names_of_something_else_than_the_label_are_left_out():
    """As where superclasses are the labels and the column names the classes."""
    mixed = ExampleSet("forget", [picture(0, class_name="crab"), picture(0, class_name="eel")])
    assert class_names(Sets({"forget": mixed})) == {}


def test_examples_hold_numbers_of_classes():
    outcome = example_outcomes(make_sets(), make_scores(), 1)[0]
    assert outcome.expected == "3"
    assert set(outcome.outputs) == set(ROLES)
    assert all(text.isdecimal() for text in outcome.outputs.values())
