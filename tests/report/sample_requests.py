"""Comparisons of image classifiers over several requests: classes on their own, and steps of a sequence."""

from __future__ import annotations

from typing import Any

from sample_rates import rate_run
from sample_records import sha256

from stable_forgetting.records import RunRecord, SetIdentity

CLASSES = ("three", "eight")
SEEDS = (0, 1)


def request_run(deleted: str, bound: str, seed: int) -> RunRecord:
    """A run on one class: the second class is harder for all methods."""
    method, rate = f"gradient_difference-{bound}-seed{seed}", 1e-3 if deleted == CLASSES[0] else 1e-2
    record = rate_run(bound, rate, seed)
    label = next(number for number, name in record.class_names.items() if name == deleted)
    config: dict[str, Any] = record.config | {
        "name": f"{deleted}-{method}",
        "model": {"name": "a/classifier", "finetune": [{"epochs": 1, "seed": 0}]},
        "data": {"source": {"path": "digits.npz"}, "num_classes": 10, "forget": {"where": f"label == {label}"}},
        "training": {"learning_rate": 1e-3, "seed": seed},
    }
    return record.model_copy(
        update={
            "name": config["name"],
            "config": config,
            "models": {"base": sha256("all classes"), "retain": sha256(f"without {deleted}")},
            "sets": [SetIdentity(name="forget", source="digits.npz", count=120, sha256=sha256(deleted))],
            "class_accuracies": [
                entry.model_copy(update={"deleted": entry.label == label}) for entry in record.class_accuracies
            ],
        }
    )


def single_classes() -> list[RunRecord]:
    """Two methods on two classes, two seeds each."""
    return [request_run(name, bound, seed) for name in CLASSES for bound in ("identity", "sine") for seed in SEEDS]


def sequence() -> list[RunRecord]:
    """The same, but the second class is deleted from what the first deletion left."""
    found = []
    for record in single_classes():
        deleted, method = record.name.split("-", 1)
        step = CLASSES.index(deleted) + 1
        name = f"{step}-{record.name}"
        config = record.config | {"name": name, "merge": True}
        models = dict(record.models)
        if step > 1:
            merged = f"/runs/digits/1-{CLASSES[0]}-{method}/merged"
            models["base"] = sha256(merged)
            config |= {"base_model": merged}
        found.append(record.model_copy(update={"name": name, "config": config, "models": models}))
    return found
