"""What a run measures of images: limits, the linear probe, and what decides on kept values."""

import json

import numpy as np
import pytest
from PIL import Image

from stable_forgetting.config import EvaluationConfig
from stable_forgetting.progress import SilentProgress
from stable_forgetting.runs import prepare, run
from stable_forgetting.runs.scoring import measured_sets, reference_scores
from tiny_problem import make_image_problem

WITH_NEEDS = ("h_score", "forget_js", "forget_test_js", "mia_entropy", "mia_confidence", "mia_loss")
PROBE = ("probe_forget_test_accuracy", "probe_retain_test_accuracy")
FINETUNE = {"epochs": 1, "batch_size": 4}


@pytest.fixture
def problem(tmp_path, monkeypatch):
    """The image problem with two test images of each class."""
    monkeypatch.setenv("STABLE_FORGETTING_CACHE", str(tmp_path / "cache"))
    found = make_image_problem(tmp_path)
    values = np.random.default_rng(1)
    for place in range(8):
        path = tmp_path / "test" / f"class{place % 4}" / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    found.settings["data"]["test"] = {"path": str(tmp_path / "test")}
    return found


def test_a_run_has_every_metric_of_images(problem, tmp_path):
    record = run(problem.config(model__finetune=FINETUNE, evaluation__test_limit=5), tmp_path / "run")
    metrics = {found.role: {metric.name: metric for metric in found.metrics} for found in record.evaluations}
    for name in (*WITH_NEEDS, *PROBE):
        assert metrics["unlearned"][name].value is not None, (name, metrics["unlearned"][name].reason)
    assert metrics["unlearned"]["retain_test_accuracy"].count == 5
    assert metrics["base"]["h_score"].reason == "it is the model that the change is measured from"
    assert metrics["retain"]["h_score"].value is not None
    scores = json.loads((tmp_path / "run" / record.per_example_paths["unlearned"]).read_text())["sets"]
    assert {name for name, found in scores.items() if found["probe_predicted"]} == {"forget_test", "retain_test"}
    classes = {name: np.shape(found["likelihood"]["class_log_probabilities"]) for name, found in scores.items()}
    assert classes == {"forget": (4, 4), "retain": (), "holdout": (), "forget_test": (2, 4), "retain_test": ()}


def test_test_images_of_what_is_kept_are_limited(problem):
    sets = prepare(problem.config(), SilentProgress()).sets
    assert len(sets.by_name["retain_test"]) == 6
    measured, again = (measured_sets(sets, EvaluationConfig(test_limit=4)).by_name for _ in range(2))
    assert {name: len(images) for name, images in measured.items()} == {
        "forget": 4, "retain": 12, "holdout": 2, "forget_test": 2, "retain_test": 4,
    }  # fmt: skip
    assert measured["retain_test"].sha256 == again["retain_test"].sha256
    assert len(measured_sets(sets, EvaluationConfig()).by_name["retain_test"]) == 6


def test_kept_values_without_a_probe_are_not_taken_for_values_with_one(problem):
    models = prepare(problem.config(), SilentProgress())
    loaded = models.base()
    for linear_probe in (False, True, False):
        settings = EvaluationConfig(linear_probe=linear_probe)
        scores = reference_scores(loaded, models.sets, "base", settings=settings, progress=SilentProgress())
        assert (scores.sets["forget_test"].probe_predicted is not None) is linear_probe
