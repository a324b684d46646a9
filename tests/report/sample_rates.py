"""A comparison of image classifiers over learning rates and seeds, with classes that have names."""

from __future__ import annotations

from typing import Any

from sample_records import image_example, image_run, sha256

from stable_forgetting.records import (
    ClassAccuracy,
    MetricValue,
    ModelEvaluation,
    ModelRole,
    RunRecord,
    finetuning_phase,
)

RATES = (1e-4, 1e-3, 1e-2)
SEEDS = (0, 1)
CLASS_NAMES = dict(enumerate(("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")))
"""The class 9 has none."""
COUNT = 50
"""Test images of each class."""

REACHED = {("sine", 1e-4): 0.6, ("sine", 1e-3): 1.0, ("sine", 1e-2): 1.0}
REACHED |= {("identity", 1e-4): 0.8, ("identity", 1e-3): 1.0, ("identity", 1e-2): 1.0}
LOST = {("sine", 1e-4): 0.0, ("sine", 1e-3): 0.01, ("sine", 1e-2): 0.03}
LOST |= {("identity", 1e-4): 0.01, ("identity", 1e-3): 0.06, ("identity", 1e-2): 0.5}


def rate_run(bound: str, rate: float, seed: int) -> RunRecord:
    """One run: the bounded adapter keeps what the unbounded one loses at high rates."""
    name = f"gradient_difference-{bound}-lr{rate:g}-seed{seed}"
    left, lost = 1 - REACHED[bound, rate], LOST[bound, rate] + 0.01 * seed
    config: dict[str, Any] = {
        "name": name,
        "task": "image",
        "model": {"name": "builtin:digits", "finetune": [{"learning_rate": 1e-3, "seed": 0}]},
        "adapter": {"bound": bound, "target_modules": "mlp", "seed": seed},
        "objective": {"name": "gradient_difference"},
        "training": {"learning_rate": rate, "seed": seed},
    }
    return image_run().model_copy(
        update={
            "name": name,
            "config": config,
            "history": [],
            "certificate": [],
            "models": {"base": f"sha256:{sha256('digits')}", "retain": f"sha256:{sha256('without 3')}"},
            "evaluations": [
                evaluation("base", (1.0, 0.98, 0.999, 0.97, 0.0)),
                evaluation(
                    "unlearned", (left, left, 0.999 - lost, 0.97 - lost, round((1 - left) * (1 - lost) ** 2, 4))
                ),
                evaluation("retain", (0.0, 0.0, 0.999, 0.972, None)),
            ],
            "examples": [image_example("forget", 3, "8"), image_example("retain_test", 7, "7" if lost < 0.1 else "1")],
            "class_names": CLASS_NAMES,
            "class_accuracies": class_accuracies(left, lost),
            "timings": {"retain model": 0.1, "unlearning": 15.0 + seed, finetuning_phase("retain"): 120.0},
        }
    )


def evaluation(role: ModelRole, values: tuple[float | None, ...]) -> ModelEvaluation:
    names = ("forget_accuracy", "forget_test_accuracy", "retain_accuracy", "retain_test_accuracy", "tow")
    metrics = [
        MetricValue(
            name=name,
            value=value,
            reason=None if value is not None else "it is the reference",
            count=None if value is None else 400,
            low=None if value is None else max(0.0, value - 0.02),
            high=None if value is None else min(1.0, value + 0.02),
            direction="higher" if name.startswith(("retain", "tow")) else "retain",
        )
        for name, value in zip(names, values, strict=True)
    ]
    return ModelEvaluation(role=role, source=f"the {role} model", metrics=metrics)


def class_accuracies(left: float, lost: float) -> list[ClassAccuracy]:
    """Class 3 is deleted; class 8, which looks like it, loses twice what the others lose, and class 0 nothing."""
    found = []
    for label in range(10):
        loss = {0: 0.0, 3: 1 - left, 8: 2 * lost}.get(label, lost)
        found.append(
            ClassAccuracy(
                label=label,
                deleted=label == 3,
                images="test",
                count=COUNT,
                accuracy={
                    "base": 0.98,
                    "unlearned": round(max(0.0, 0.98 - loss), 4),
                    "retain": 0.0 if label == 3 else 0.96,
                },
            )
        )
    return found


def rate_comparison() -> list[RunRecord]:
    """Two bounds, three learning rates, two seeds."""
    return [rate_run(bound, rate, seed) for bound in ("identity", "sine") for rate in RATES for seed in SEEDS]
