"""What a record says about the adapter, its guarantee, single examples, and single classes."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image

from stable_forgetting.adapters import LayerCertificate
from stable_forgetting.data.examples import ExampleSet, ImageExample
from stable_forgetting.evaluation import ModelScores, SetScores, per_class_accuracy
from stable_forgetting.evaluation.likelihood import Ints
from stable_forgetting.records import AdapterSummary, ClassAccuracy, ExampleOutcome, ModelRole
from stable_forgetting.records import LayerCertificate as LayerCertificateRecord
from stable_forgetting.runs.sets import Sets

SHOWN_SETS = {"language": ("forget", "retain"), "image": ("forget", "forget_test", "retain", "retain_test")}

_IMAGES: tuple[tuple[Literal["test", "training"], tuple[str, ...]], ...] = (
    ("test", ("forget_test", "retain_test")),
    ("training", ("forget", "retain")),
)
"""Sets that accuracies of classes are made of; a class without images in the first ones is looked for in the next."""


def adapter_summary(model: Any) -> AdapterSummary:
    """What was adapted, from the model's adapter."""
    config = model.peft_config[model.active_adapter]
    trainable = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    total = sum(parameter.numel() for parameter in model.parameters())
    return AdapterSummary(
        bound=config.bound,
        rank=config.r,
        omega=config.omega,
        scales=dict(config.resolved_scales),
        num_trainable=sum(trainable),
        num_base=total - sum(trainable),
    )


def layer_certificates(layers: Sequence[LayerCertificate]) -> list[LayerCertificateRecord]:
    """The guarantee of each layer as the record keeps it."""
    return [
        LayerCertificateRecord(
            layer=layer.name,
            rank=layer.rank,
            scale=layer.scale,
            largest_entry=layer.largest_entry,
            entry_limit=layer.entry_limit,
            frobenius_norm=layer.frobenius_norm,
            frobenius_limit=layer.frobenius_limit,
            holds=None if layer.entry_limit is None else layer.holds,
        )
        for layer in layers
    ]


def example_outcomes(sets: Sets, scores: Mapping[ModelRole, ModelScores], count: int) -> list[ExampleOutcome]:
    """A few examples of each shown set, evenly spread over it, with what each model makes of them."""
    outcomes = []
    task = next(iter(scores.values())).task
    for name in SHOWN_SETS[task]:
        if name not in sets.by_name:
            continue
        examples = sets.by_name[name]
        columns = {role: found.sets[name] for role, found in scores.items()}
        if all(_outputs(column) is None for column in columns.values()):
            continue
        shown = min(count, len(examples))
        outcomes += [_outcome(examples, place * len(examples) // shown, columns) for place in range(shown)]
    return outcomes


def _outcome(examples: ExampleSet[Any], index: int, columns: Mapping[ModelRole, SetScores]) -> ExampleOutcome:
    example = examples[index]
    outputs = {role: found[index] for role, column in columns.items() if (found := _outputs(column)) is not None}
    if isinstance(example, ImageExample):
        return ExampleOutcome(
            set_name=examples.name, prompt="", expected=str(example.label), outputs=outputs, image_png=_png(example)
        )
    return ExampleOutcome(set_name=examples.name, prompt=example.prompt, expected=example.answer, outputs=outputs)


def _outputs(scores: SetScores) -> Sequence[str] | None:
    """Answer or predicted class of each example, if there are any."""
    if scores.answers is not None:
        return scores.answers
    predicted = scores.likelihood.predicted
    return None if predicted is None else [str(label) for label in predicted]


def class_names(sets: Sets) -> dict[int, str]:
    """Names of the classes by number, from the column ``class_name`` or one that names the labels.

    Empty for language, without such a column, and where it names something else than the labels, so that images of one
    label have several names.
    """
    names: dict[int, str] = {}
    for examples in sets.by_name.values():
        for example in examples:
            name = example.metadata.get("class_name") if isinstance(example, ImageExample) else None
            if name is not None and names.setdefault(example.label, str(name)) != str(name):
                return {}
    return dict(sorted(names.items()))


def class_accuracies(sets: Sets, scores: Mapping[ModelRole, ModelScores]) -> list[ClassAccuracy]:
    """Accuracy of each model on each class, on test images where the class has any; empty for language.

    A class is left out if it has test images of which none was measured, because only some were to be.

    Args:
        sets: The sets that the models were taught with, and test images of all classes that have some.
        scores: Values of each model.
    """
    if next(iter(scores.values())).task != "image":
        return []
    labels = {name: {example.label for example in sets.by_name[name]} for name in ("forget", "retain")}
    tested = {example.label for name in dict(_IMAGES)["test"] for example in sets.by_name.get(name, ())}
    found: dict[int, ClassAccuracy] = {}
    for images, names in _IMAGES:
        measured = {role: _predictions(values, names) for role, values in scores.items()}
        label = next(iter(measured.values()))[1]
        if len(label) == 0:
            continue
        accuracies = {role: per_class_accuracy(*columns) for role, columns in measured.items()}
        for kind, count in zip(*np.unique(label, return_counts=True), strict=True):
            entry = ClassAccuracy(
                label=int(kind),
                deleted=kind in labels["forget"] - labels["retain"],
                images=images,
                count=int(count),
                accuracy={role: values[int(kind)] for role, values in accuracies.items()},
            )
            if images == "test" or entry.label not in tested:
                found[entry.label] = entry
    return [found[kind] for kind in sorted(found)]


def _predictions(scores: ModelScores, names: Sequence[str]) -> tuple[Ints, Ints]:
    """Predicted and right class of all images of these sets, in their order."""
    columns = [scores.sets[name].likelihood for name in names if name in scores.sets]
    predicted = [column.predicted for column in columns if column.predicted is not None]
    label = [column.label for column in columns if column.label is not None]
    empty = np.zeros(0, dtype=np.int64)
    return np.concatenate([empty, *predicted]), np.concatenate([empty, *label])


def _png(example: ImageExample) -> str:
    """The image, PNG in base64; small ones are enlarged so that they can be seen, without smoothing."""
    image = Image.fromarray(example.pixels)
    factor = max(1, 64 // max(image.size))
    if factor > 1:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((160, 160))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()
