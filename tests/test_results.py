"""Stored results were made with what the experiment's file says: a default that changes later may not part the two."""

import json
from pathlib import Path
from typing import Any

import pytest

from stable_forgetting.bench.tofu import tofu_comparison
from stable_forgetting.config.benchmark_options import TofuOptions, load_experiment

ROOT = Path(__file__).parents[1]
CHECKED = ("adapter.", "evaluation.", "model.finetune", "objective.", "training.")
CHOSEN_BY_CHECKPOINT = {"training.best_metric", "training.evaluate_every", "training.stop"}
"""What docs/tofu.md says was set beside the file, for the runs whose best checkpoint is kept."""


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


@pytest.mark.parametrize(("experiment", "results"), [("tofu/tofu-20.yaml", "tofu/tofu-20-change-kept.json")])
def test_stored_runs_have_the_settings_of_their_experiment(experiment, results):
    declared = tofu_settings(experiment)
    stored = json.loads((ROOT / "results" / results).read_text())
    assert stored["runs"]
    for run in stored["runs"]:
        measured = stored["shared"] | {name: value for name, value in run["settings"].items() if value is not None}
        expected = declared[run["name"]]
        names = [name for name in {**expected, **measured} if name.startswith(CHECKED)]
        by_checkpoint = CHOSEN_BY_CHECKPOINT if measured.get("training.best_metric") else set()
        differing = {n: (measured.get(n), expected.get(n)) for n in names if measured.get(n) != expected.get(n)}
        assert not differing.keys() - by_checkpoint, f"{run['name']}: stored, declared: {differing}"
