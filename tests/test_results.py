"""Stored results were made with what the experiment's file says: a default that changes later may not part the two."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_paths import shared_data
from stable_forgetting.bench import class_deletion_comparison
from stable_forgetting.bench.tofu import tofu_comparison
from stable_forgetting.config.benchmark_options import ClassDeletionOptions, TofuOptions, load_experiment
from stable_forgetting.progress import SilentProgress

ROOT = Path(__file__).parents[1]
CHECKED = ("adapter.", "evaluation.", "model.finetune", "objective.", "training.")
CHOSEN_BY_CHECKPOINT = {"training.best_metric", "training.evaluate_every", "training.stop"}
"""What docs/tofu.md says was set beside the file, for the runs whose best checkpoint is kept."""

CHANGES_NOTHING = {"training.save_every"}
"""What an interruption can cost."""

ADDED_LATER = {"objective.unseen_weight": 0.0, "training.unseen_batch_size": 8}
"""Options that older results do not name, and what is true of those: the unseen term was not there."""


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def tofu_settings(experiment: str) -> dict[str, dict[str, Any]]:
    """The settings in effect of each run that the file declares, by the names of the runs."""
    options = load_experiment(ROOT / "experiments" / experiment, {})
    assert isinstance(options, TofuOptions)
    configs = tofu_comparison(options).configs()
    return {name: flat(config.model_dump(mode="json")) for name, config in configs.items()}


def class_deletion_settings(experiment: str, cache: Path) -> dict[str, dict[str, Any]]:
    """The same of a class deletion, whose model and images have to be there."""
    given = {
        "model": str(shared_data("models/dinov2-small-backbone")),
        "data": str(shared_data("cifar100/cifar100_120.npz")),
    }
    options = load_experiment(ROOT / "experiments" / "class_deletion" / experiment, given)
    assert isinstance(options, ClassDeletionOptions)
    comparison = class_deletion_comparison(options, cache / "runs", progress=SilentProgress())
    return {name: flat(config.model_dump(mode="json")) for name, config in comparison.configs().items()}


def check_stored(results: str, declared: dict[str, dict[str, Any]]) -> None:
    """Each stored run has the settings of the declared run of its name."""
    stored = json.loads((ROOT / "results" / results).read_text())
    assert stored["runs"]
    for run in stored["runs"]:
        measured = (
            ADDED_LATER
            | stored["shared"]
            | {name: value for name, value in run["settings"].items() if value is not None}
        )
        expected = declared[run["name"]]
        names = [name for name in {**expected, **measured} if name.startswith(CHECKED) and name not in CHANGES_NOTHING]
        by_checkpoint = CHOSEN_BY_CHECKPOINT if measured.get("training.best_metric") else set()
        differing = {n: (measured.get(n), expected.get(n)) for n in names if measured.get(n) != expected.get(n)}
        assert not differing.keys() - by_checkpoint, f"{run['name']}: stored, declared: {differing}"


@pytest.mark.parametrize(
    ("results", "experiment"),
    [
        ("tofu-20-change-kept", "tofu-20"),
        ("tofu-20-methods", "tofu-20"),
        ("tofu-20-unseen", "tofu-20"),
        ("tofu-20-kept", "tofu-20-kept"),
        ("tofu-20-retain-weight", "tofu-20-retain-weight"),
    ],
)
def test_stored_runs_have_the_settings_of_their_experiment(results, experiment):
    check_stored(f"tofu/{results}.json", tofu_settings(f"tofu/{experiment}.yaml"))


@pytest.mark.parametrize(
    "part",
    [
        "",
        "-superclass",
        "-subclass",
        "-retain-weight",
        "-bounds",
        "-sequence",
        "-targets",
        "-bounds-rates",
        "-strict-end",
        "-strict-end-short",
        "-equal-budget-rates",
        "-equal-budget",
    ],
)
def test_stored_class_deletions_have_the_settings_of_their_experiment(part, tmp_path, monkeypatch):
    monkeypatch.setenv("STABLE_FORGETTING_CACHE", str(tmp_path))
    name = f"dinov2-small-cpu{part}"
    check_stored(f"class_deletion/{name}.json", class_deletion_settings(f"{name}.yaml", tmp_path))
