"""What a record says about the adapter, its guarantee, and single examples."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from stable_forgetting.adapters import LayerCertificate
from stable_forgetting.data.examples import ExampleSet, ImageExample
from stable_forgetting.evaluation import ModelScores, SetScores
from stable_forgetting.records import AdapterSummary, ExampleOutcome, ModelRole
from stable_forgetting.records import LayerCertificate as LayerCertificateRecord
from stable_forgetting.runs.sets import Sets

SHOWN_SETS = {"language": ("forget", "retain"), "image": ("forget", "forget_test", "retain", "retain_test")}


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
        expected = _class_name(example)
        return ExampleOutcome(
            set_name=examples.name, prompt="", expected=expected, outputs=outputs, image_png=_png(example)
        )
    return ExampleOutcome(set_name=examples.name, prompt=example.prompt, expected=example.answer, outputs=outputs)


def _outputs(scores: SetScores) -> Sequence[str] | None:
    """Answer or predicted class of each example, if there are any."""
    if scores.answers is not None:
        return scores.answers
    predicted = scores.likelihood.predicted
    return None if predicted is None else [str(label) for label in predicted]


def _class_name(example: ImageExample) -> str:
    name = example.metadata.get("class_name")
    return f"{example.label} ({name})" if name else str(example.label)


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
