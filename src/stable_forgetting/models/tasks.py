"""Tasks: how a batch of examples becomes predictions at label positions, for language and for images.

Objectives, training and metrics know only `Task` and `Predictions`; nothing above this file asks which kind of model
it is handling in order to compute a value.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from stable_forgetting.data.examples import Example, ImageExample, LanguageExample
from stable_forgetting.errors import ModelError
from stable_forgetting.models.output_head import predictions_at
from stable_forgetting.models.predictions import Predictions
from stable_forgetting.models.prefix_trees import TreeRow, find_tree_row
from stable_forgetting.models.processors import pixel_values
from stable_forgetting.models.tree_attention import reading_trees
from stable_forgetting.models.trunk import FrozenTrunk

Batch = dict[str, Tensor]

IGNORED = -100
"""Label of positions that do not count, as everywhere in transformers."""


class Task(Protocol):
    """What a kind of model has to be able to do."""

    @property
    def name(self) -> Literal["language", "image"]:
        """The kind."""
        ...

    @property
    def trunk(self) -> FrozenTrunk | None:
        """The frozen part of the model whose outputs are kept."""
        ...

    def collate(self, examples: Sequence[Any]) -> Batch:
        """Stack examples into a batch; every tensor has one row per example."""
        ...

    def predict(self, model: nn.Module, batch: Batch) -> Predictions:
        """One forward pass: the model's predictions at the label positions."""
        ...

    def with_trunk(self, trunk: FrozenTrunk | None) -> Task:
        """The same task with the outputs of a frozen part kept; None: with the whole model run each time."""
        ...


class LanguageTask:
    """Causal language models: label positions are the answer tokens and the end token.

    Args:
        tokenizer: A transformers tokenizer; it needs a pad token, whose id is never looked at again: the attention
            mask comes from lengths, so that a pad token equal to the end token does no harm.
        trunk: The frozen part below the first block that changes, if its outputs are kept: it then runs once for each
            text, and the model reads its outputs, (T, D), wherever it would read token ids, (T,).
        hides_pad_tokens: Whether true tokens of a text that equal the pad token are hidden from the others, as by code
            that takes the attention mask from token ids.
    """

    name: Literal["language"] = "language"

    def __init__(self, tokenizer: Any, *, trunk: FrozenTrunk | None = None, hides_pad_tokens: bool = False) -> None:
        self.tokenizer = tokenizer
        self.trunk = trunk
        self.hides_pad_tokens = hides_pad_tokens

    def with_trunk(self, trunk: FrozenTrunk | None) -> LanguageTask:
        """The same task with the outputs of a frozen part kept."""
        return LanguageTask(self.tokenizer, trunk=trunk, hides_pad_tokens=self.hides_pad_tokens)

    def hiding_pad_tokens(self) -> LanguageTask:
        """The same task with true pad tokens hidden; without kept outputs, which are those of texts seen whole."""
        return LanguageTask(self.tokenizer, hides_pad_tokens=True)

    def visible(self, input_ids: Tensor) -> Tensor:
        """1 for each token of a text that the others see, and 0 for those that are hidden, (T,)."""
        return (
            (input_ids != self.tokenizer.pad_token_id).long() if self.hides_pad_tokens else torch.ones_like(input_ids)
        )

    def inputs(self, examples: Sequence[LanguageExample]) -> list[Tensor]:
        """What the model reads of each example: token ids, (T,), or what the trunk makes of them, (T, D)."""
        input_ids = [torch.tensor(example.input_ids) for example in examples]
        if self.trunk is None:
            return input_ids
        return self.trunk.outputs(input_ids, [example.input_sha256 for example in examples])

    def reading(self) -> AbstractContextManager[None]:
        """Within, the model reads what `inputs` gives."""
        return nullcontext() if self.trunk is None else self.trunk.skipped()

    def collate(self, examples: Sequence[LanguageExample]) -> Batch:
        """Pad on the right: input_ids, attention_mask and labels, (E, T) each.

        With a trunk input_ids are what it gives, (E, T, D), and the tokens themselves are token_ids.
        """
        tokens = [torch.tensor(example.input_ids) for example in examples]
        token_ids = pad_sequence(tokens, batch_first=True, padding_value=int(self.tokenizer.pad_token_id))
        visible = [self.visible(row) for row in tokens]
        labels = pad_sequence(tokens, batch_first=True, padding_value=IGNORED)
        for row, example in zip(labels, examples, strict=True):
            row[: example.num_prompt_tokens] = IGNORED
        batch = {"attention_mask": pad_sequence(visible, batch_first=True), "labels": labels}
        if self.trunk is None:
            return {"input_ids": token_ids, **batch}
        return {"input_ids": pad_sequence(self.inputs(examples), batch_first=True), "token_ids": token_ids, **batch}

    def predict(self, model: nn.Module, batch: Batch) -> Predictions:
        """Predictions of each answer token from the tokens before it.

        What texts begin with alike is read once, and no padding, where the model can read a tree. The output head runs
        at label positions only: for a large vocabulary the logits of the questions and of the padding would cost more
        than the rest of the batch.
        """
        labels, mask = batch["labels"][:, 1:], batch["attention_mask"]
        tree = None
        if not self.hides_pad_tokens:
            tree = find_tree_row(model, batch.get("token_ids", batch["input_ids"]), mask)
        padded = {"input_ids": batch["input_ids"], "attention_mask": mask}
        inputs = padded if tree is None else tree.inputs(batch["input_ids"])
        return self.predict_next(model, {**inputs, "use_cache": False}, labels, tree)

    def predict_next(
        self, model: nn.Module, inputs: Mapping[str, Any], labels: Tensor, tree: TreeRow | None = None
    ) -> Predictions:
        """Predictions of labels that are given place by place.

        Args:
            model: The model.
            inputs: What its forward pass takes.
            labels: (E, T), the token after each of the first T tokens of each text, `IGNORED` where it is no label.
            tree: Where these tokens are in the inputs; None: each text has a row.
        """
        text, position = (labels != IGNORED).nonzero(as_tuple=True)
        where, state = ((text, position), None) if tree is None else tree.places(text, position)
        with self.reading(), nullcontext() if tree is None else reading_trees(model):
            return predictions_at(model, inputs, where, state, labels[text, position], text, len(labels))


class ImageTask:
    """Image classifiers: one label position per image.

    Args:
        processor: The image processor that made the examples' pixel values; kept so that it is saved with the model.
        interpolate: Whether the model has to be told that images are of another size than it was trained on, so that
            it interpolates its position embeddings.
        trunk: The frozen part below the first block that changes, if its outputs are kept: it then runs once for each
            image.
    """

    name: Literal["image"] = "image"

    def __init__(self, processor: Any, *, interpolate: bool = False, trunk: FrozenTrunk | None = None) -> None:
        self.processor = processor
        self.interpolate = interpolate
        self.trunk = trunk

    @classmethod
    def of(cls, model: nn.Module, processor: Any) -> ImageTask:
        """The task of a model and the image processor that it is used with.

        Raises:
            ModelError: The model reads images of another number of channels than its processor gives.
        """
        config = getattr(model.config, "vision_config", model.config)  # CLIP and SigLIP: one for images, one for texts
        size = pixel_values(processor, [np.zeros((64, 64, 3), dtype=np.uint8)]).shape[1:]
        channels = getattr(config, "num_channels", size[0])
        if channels != size[0]:
            raise ModelError(
                f"The model reads images of {channels} channels and its image processor gives {size[0]}: only models "
                "of colour images can be used, which read grey ones as well."
            )
        return cls(processor, interpolate=_has_to_interpolate(model, config, size[1:]))

    def with_trunk(self, trunk: FrozenTrunk | None) -> ImageTask:
        """The same task with the outputs of a frozen part kept."""
        return ImageTask(self.processor, interpolate=self.interpolate, trunk=trunk)

    @property
    def options(self) -> dict[str, Any]:
        """Further arguments of the model's forward pass."""
        return {"interpolate_pos_encoding": True} if self.interpolate else {}

    def collate(self, examples: Sequence[ImageExample]) -> Batch:
        """Stack pixel_values (E, C, H, W), or what the trunk makes of them, and labels (E,)."""
        arrays = [example.pixel_values for example in examples]
        if self.trunk is not None:
            arrays = self.trunk.outputs(arrays, [example.values_sha256 for example in examples])
        return {
            "pixel_values": torch.stack(arrays),
            "labels": torch.tensor([example.label for example in examples]),
        }

    def predict(self, model: nn.Module, batch: Batch) -> Predictions:
        """Predictions of the class of each image."""
        labels = batch["labels"]
        dtype = next((weight.dtype for weight in model.parameters() if weight.is_floating_point()), torch.float32)
        with nullcontext() if self.trunk is None else self.trunk.skipped():
            logits = model(pixel_values=batch["pixel_values"].to(dtype), **self.options).logits
        return Predictions(
            logits=logits,
            labels=labels,
            example=torch.arange(len(labels), device=labels.device),
            num_examples=len(labels),
        )


def _has_to_interpolate(model: nn.Module, config: Any, found: Sequence[int]) -> bool:
    """Whether images have another height and width than the model's position embeddings were made for."""
    expected = getattr(config, "image_size", None)
    if expected is None or not _can_interpolate(model):
        return False
    return tuple(found) != (tuple(expected) if isinstance(expected, Sequence) else (expected, expected))


def _can_interpolate(model: nn.Module) -> bool:
    """Whether the model takes the option that interpolates, by its name or for one of its parts."""
    found = [inspect.signature(type(part).forward).parameters for part in model.modules()]
    hands_on = any(parameter.kind == parameter.VAR_KEYWORD for parameter in found[0].values())
    return any("interpolate_pos_encoding" in parameters for parameters in (found if hands_on else found[:1]))


def num_labels(examples: Sequence[Example]) -> int:
    """Number of label positions of some examples."""
    return sum(example.num_labels for example in examples)
