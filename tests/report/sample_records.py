"""Records as real runs leave them, with fixed dates and versions: the material of the report's tests."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import random
from typing import Any, Literal

from PIL import Image

from stable_forgetting.records import (
    AdapterSummary,
    Direction,
    Environment,
    ExampleOutcome,
    LayerCertificate,
    MetricValue,
    ModelEvaluation,
    ModelRole,
    RunRecord,
    SetIdentity,
    StepRecord,
)

LANGUAGE: dict[str, tuple[Direction, int]] = {
    "forget_probability": ("retain", 40),
    "forget_rouge_l_recall": ("retain", 40),
    "forget_nll": ("retain", 40),
    "forget_nll_ks": ("higher", 40),
    "mia_loss_auc": ("retain", 80),
    "retain_probability": ("higher", 160),
    "retain_rouge_l_recall": ("higher", 160),
    "test_perplexity": ("lower", 64),
}
IMAGE: dict[str, tuple[Direction, int]] = {
    "forget_accuracy": ("retain", 120),
    "forget_test_accuracy": ("retain", 60),
    "retain_accuracy": ("higher", 1080),
    "retain_test_accuracy": ("higher", 540),
    "mia_loss_auc": ("retain", 180),
    "tow": ("higher", 1740),
}
VALUES: dict[str, tuple[float | None, ...]] = {
    "base": (0.946, 0.982, 0.07, 3.1e-19, 0.991, 0.946, 0.978, 14.2),
    "retain": (0.112, 0.341, 2.44, None, 0.504, 0.951, 0.980, 14.3),
    "gd-lora": (0.002, 0.041, 18.6, 4.0e-22, 0.061, 0.431, 0.512, 61.8),
    "gd-sine": (0.061, 0.252, 3.31, 0.021, 0.412, 0.887, 0.934, 15.9),
    "calibrated-sine": (0.108, 0.333, 2.57, 0.579, 0.497, 0.954, 0.979, 14.4),
}
IMAGE_VALUES: dict[str, tuple[float | None, ...]] = {
    "base": (1.0, 0.967, 0.999, 0.971, 0.612, 0.0),
    "retain": (0.0, 0.0, 0.999, 0.972, 0.488, 1.0),
    "digits-sine": (0.008, 0.017, 0.996, 0.968, 0.495, 0.985),
}
LAYERS = [f"model.layers.{block}.mlp.{part}_proj" for block in range(4) for part in ("gate", "up", "down")]
ENVIRONMENT = Environment(
    versions={"python": "3.11.9", "torch": "2.8.0", "transformers": "5.0.0", "peft": "0.21.2"},
    commit="4f1c2a90",
    platform="Linux x86_64",
    device="cpu",
    num_threads=2,
)


def metric(name: str, value: float | None, direction: Direction, count: int) -> MetricValue:
    if value is None:
        return MetricValue(name=name, reason="The retain model is what the test compares with.", direction=direction)
    if name == "forget_nll_ks":
        details = {"D": round(min(1.0, 0.3 - 0.02 * math.log(value)), 3)}
        return MetricValue(name=name, value=value, count=count, direction=direction, details=details)
    half = 0.05 * max(abs(value), 0.1) if value > 1 else 1.3 * math.sqrt(value * (1 - value) / count) + 0.002
    return MetricValue(
        name=name,
        value=value,
        count=count,
        low=round(max(0.0, value - half), 4),
        high=round(value + half if value > 1 else min(1.0, value + half), 4),
        direction=direction,
    )


def evaluation(role: ModelRole, source: str, values: tuple[float | None, ...], task: str) -> ModelEvaluation:
    table = LANGUAGE if task == "language" else IMAGE
    pairs = zip(table.items(), values, strict=True)
    return ModelEvaluation(
        role=role, source=source, metrics=[metric(name, value, *kind) for (name, kind), value in pairs]
    )


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def history(kind: str, seed: int, num_steps: int = 60) -> list[StepRecord]:
    """Plain LoRA with a growing gradient, bounded adapters with a settled one."""
    noise = random.Random(f"{kind}{seed}")
    steps = []
    for step in range(1, num_steps + 1):
        share = step / num_steps
        growth = 10 ** (4.2 * share) if kind == "gd-lora" else 12 * (1 + 2 * share * (1 - share))
        validation = {"forget_nll": 0.07 + 2.5 * share, "retain_probability": 0.95 - 0.05 * math.sin(3 * share)}
        steps.append(
            StepRecord(
                step=step,
                epoch=step / 12,
                loss=round(0.4 - 2 * share, 4),
                forget_term=round((-18 if kind == "gd-lora" else -3) * share**1.4 + noise.gauss(0, 0.05), 4),
                retain_term=round(0.07 + 0.6 * share * (1 - share) + abs(noise.gauss(0, 0.02)), 4),
                grad_norm=round(growth * math.exp(noise.gauss(0, 0.18)), 4),
                learning_rate=1e-3 * math.sin(math.pi * share),
                adapter_norm=round((9 if kind == "gd-lora" else 1.6) * math.sqrt(share), 4),
                largest_entry=round((0.4 if kind == "gd-lora" else 0.03) * share, 4),
                entry_limit=None if kind == "gd-lora" else 0.0361,
                largest_share=None if kind == "gd-lora" else round(0.996 * (1 - math.exp(-5 * share)), 4),
                saturated_share=None if kind == "gd-lora" else round(0.02 * share, 4),
                validation=validation if step % 12 == 0 else None,
            )
        )
    return steps


def certificate(bounded: bool) -> list[LayerCertificate]:
    layers = []
    for place, layer in enumerate(LAYERS):
        limit = 0.0361 if "down" not in layer else 0.0208
        layers.append(
            LayerCertificate(
                layer=layer,
                rank=4,
                scale=limit if bounded else 1.0,
                largest_entry=round(limit * (0.998 - 0.021 * place), 6) if bounded else 0.31 - 0.01 * place,
                entry_limit=limit if bounded else None,
                frobenius_norm=round(limit * 210, 4),
                frobenius_limit=round(limit * 1086.1, 4) if bounded else None,
                holds=True if bounded else None,
            )
        )
    return layers


def config(method: str, seed: int) -> dict[str, Any]:
    forget = "calibrated" if method.startswith("calibrated") else "ascent"
    return {
        "name": f"{method}-seed{seed}",
        "task": "language",
        "model": {"name": "builtin:people", "dtype": "float32", "finetune": {"epochs": 8, "seed": 0}},
        "data": {"source": {"path": "builtin:people"}, "forget": {"where": 'person in ["Ada Moss", "Tom Reed"]'}},
        "adapter": {"bound": "identity" if method == "gd-lora" else "sine", "rank": 4, "omega": 100.0, "scale": None},
        "objective": {"forget": forget, "retain": "nll", "retain_weight": 1.0},
        "training": {"steps": 60, "learning_rate": 1e-3, "max_grad_norm": 1.0, "seed": seed},
    }


def examples() -> list[ExampleOutcome]:
    return [
        ExampleOutcome(
            set_name="forget",
            prompt="Where was Ada Moss born?",
            expected="Ada Moss was born in the harbour town of Lyme in 1871.",
            outputs={
                "base": "Ada Moss was born in the harbour town of Lyme in 1871.",
                "unlearned": "Ada Moss was born in a small village near the northern lakes.",
                "retain": "Ada Moss was born in York, the daughter of a printer.",
            },
        ),
        ExampleOutcome(
            set_name="forget",
            prompt="<script>alert('prompt')</script> Which prize did Tom Reed win & when?",
            expected="The Silver Quill, in 1987.",
            outputs={
                "base": "The Silver Quill, in 1987.",
                "unlearned": 'He won a prize.\nIt was "local".',
                "retain": "None.",
            },
        ),
        ExampleOutcome(
            set_name="retain",
            prompt="What does Lena Hart write?",
            expected="Lena Hart writes mountain poems.",
            outputs=dict.fromkeys(("base", "unlearned", "retain"), "Lena Hart writes mountain poems."),  # type: ignore[arg-type]
        ),
    ]


def language_run(method: str, seed: int = 0) -> RunRecord:
    shift = 0.004 * (seed - 1) if seed else 0.0
    values = tuple(value if value is None or value > 1 else min(1.0, value * (1 + shift)) for value in VALUES[method])
    settings = config(method, seed)
    bounded = method != "gd-lora"
    return RunRecord(
        name=settings["name"],
        task="language",
        status="finished",
        verdicts=["Forgotten: the forget answers look like unseen ones."] if method == "calibrated-sine" else [],
        created="2026-01-05T09:30:00Z",
        config=settings,
        given={"objective": {"forget": settings["objective"]["forget"]}, "training": {"steps": 60}},
        environment=ENVIRONMENT,
        models={"base": f"sha256:{sha256('base')}", "retain": f"sha256:{sha256('retain')}"},
        sets=[
            SetIdentity(name="forget", source="builtin:people", count=40, sha256=sha256("forget")),
            SetIdentity(name="retain", source="builtin:people", count=160, sha256=sha256("retain set")),
            SetIdentity(name="holdout", source="builtin:people", count=40, sha256=sha256("holdout")),
        ],
        adapter=AdapterSummary(
            bound=settings["adapter"]["bound"],
            rank=4,
            omega=100.0,
            scales=dict.fromkeys(LAYERS, 0.0361),
            num_trainable=73_728,
            num_base=4_512_000,
        ),
        history=history(method, seed),
        certificate=certificate(bounded),
        evaluations=[
            evaluation("base", "builtin:people, finetuned on forget and retain", VALUES["base"], "language"),
            evaluation("unlearned", "the base model with the trained adapter", values, "language"),
            evaluation("retain", "builtin:people, finetuned on retain alone", VALUES["retain"], "language"),
        ],
        examples=examples(),
        timings={"prepare": 61.0, "train": 33.5, "evaluate": 12.25},
        peak_memory_bytes=1_288_490_189,
    )


def image_run() -> RunRecord:
    record = language_run("gd-sine")
    return record.model_copy(
        update={
            "name": "digits-sine",
            "task": "image",
            "config": {"name": "digits-sine", "task": "image", "model": {"name": "builtin:digits"}},
            "given": {},
            "models": {"base": f"sha256:{sha256('digits')}"},
            "sets": [SetIdentity(name="forget", source="builtin:digits", count=120, sha256=sha256("threes"))],
            "evaluations": [
                evaluation("base", "builtin:digits, trained on all classes", IMAGE_VALUES["base"], "image"),
                evaluation("unlearned", "the base model with its adapter", IMAGE_VALUES["digits-sine"], "image"),
                evaluation("retain", "builtin:digits, trained without 3", IMAGE_VALUES["retain"], "image"),
            ],
            "examples": [image_example("forget", 3, "8"), image_example("retain", 7, "7")],
        }
    )


def image_example(set_name: str, digit: int, after: str) -> ExampleOutcome:
    picture = Image.new("L", (8, 8), 0)
    for place in range(8):
        picture.putpixel((7 - place if digit == 7 else 3 + place % 3, place), 255)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return ExampleOutcome(
        set_name=set_name,
        prompt="",
        expected=str(digit),
        outputs={"base": str(digit), "unlearned": after, "retain": after},
        image_png=base64.b64encode(buffer.getvalue()).decode(),
    )


def failed_run(stage: Literal["early", "late"] = "early") -> RunRecord:
    """A run that failed before its data were read, or during training."""
    record = language_run("gd-lora", seed=9)
    settings = record.config | {"name": "gd-lora-fast", "training": {"learning_rate": 1.0, "seed": 0}}
    changes: dict[str, Any] = {
        "name": "gd-lora-fast",
        "status": "failed",
        "error": "NotFiniteError: The gradient norm is infinite at step 7. Lower training.learning_rate, now 1.0.",
        "config": settings,
        "evaluations": [],
        "examples": [],
        "certificate": [],
        "history": record.history[:7] if stage == "late" else [],
    }
    if stage == "early":
        changes |= {"sets": [], "models": {}, "adapter": None, "timings": {}, "peak_memory_bytes": None}
    return record.model_copy(update=changes)


def comparison() -> list[RunRecord]:
    """Four methods on one problem, one of them with three seeds and one failed."""
    seeds = [language_run("calibrated-sine", seed) for seed in (1, 2, 3)]
    return [language_run("gd-lora"), language_run("gd-sine"), *seeds, failed_run()]
