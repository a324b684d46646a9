"""The trunk of a vision transformer: what lies below the first block that changes, run once for each image.

While nothing in it is trained and images are not varied at random, the trunk gives the same for an image in every
epoch, in every evaluation, and under every adapter of the blocks above. Its outputs are kept on disk, by the trunk's
weights and the image, and shared by all models with the same trunk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from stable_forgetting.data.array_store import HAS_LOCKS, ArrayStore
from stable_forgetting.data.examples import ImageExample

FAMILIES = frozenset({"vit", "deit", "dinov2", "dinov2_with_registers"})
"""Families whose blocks pass on hidden states and nothing else, from one list, behind a module of embeddings. BEiT's
and Swin's blocks need to know the image's size as well."""

_RANDOM = ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "drop_path_rate")
"""Entries of a config that make a forward pass random in training."""


CACHE_FORMAT = 1
"""Grows whenever the same trunk would be given other outputs than before."""


class _Reached(Exception):  # noqa: N818  (no error: it ends a forward pass where nothing more is needed)
    def __init__(self, output: Tensor) -> None:
        self.output = output


class FrozenTrunk:
    """Embeddings and first blocks of a model, with their outputs kept.

    Args:
        model: The model, with or without adapters above the trunk.
        embeddings: Its module of embeddings.
        blocks: The first blocks, at least one.
        options: Further arguments of the model's forward pass.
        root: The folder of all trunks' outputs.
    """

    def __init__(
        self, model: nn.Module, embeddings: nn.Module, blocks: Sequence[nn.Module], options: dict[str, Any], root: Path
    ) -> None:
        self.model = model
        self.embeddings = embeddings
        self.blocks = list(blocks)
        self.options = options
        self._folder = root / self._sha256()[:24]
        self._stores: dict[torch.Size, ArrayStore] = {}

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.embeddings.parameters()).dtype

    def outputs(self, examples: Sequence[ImageExample]) -> list[Tensor]:
        """What the trunk gives for each image, (T, D) each, float32, on the processor."""
        keys = [example.values_sha256 for example in examples]

        def compute(places: list[int]) -> Tensor:
            return self._run(torch.stack([examples[place].pixel_values for place in places]))

        return self._store(examples[0].pixel_values.shape).arrays(keys, compute)

    def _store(self, image_shape: torch.Size) -> ArrayStore:
        """A store of its own for each size of images, because the outputs differ in length."""
        if image_shape not in self._stores:
            name = "x".join(str(length) for length in image_shape)
            self._stores[image_shape] = ArrayStore(self._folder / name)
        return self._stores[image_shape]

    @contextmanager
    def skipped(self) -> Iterator[None]:
        """Within, the model takes the trunk's outputs in place of pixel values."""
        parts = (self.embeddings, *self.blocks)
        if self.model.training and torch.is_grad_enabled():
            trained = [weight for part in parts for weight in part.parameters() if weight.requires_grad]
            assert not trained, "the outputs of a trunk are kept, but its weights are trained"
        with ExitStack() as stack:
            for part in parts:
                stack.enter_context(_passing_on(part, self._dtype))
            yield

    def output_size(self, image: Tensor) -> int:
        """Numbers in the output for one image, (1, C, H, W)."""
        return self._run(image)[0].numel()

    def _run(self, images: Tensor) -> Tensor:
        weight = next(self.embeddings.parameters())
        images = images.to(weight.device, weight.dtype)

        def stop(_: nn.Module, __: Any, output: Tensor) -> None:
            raise _Reached(output)

        handle = self.blocks[-1].register_forward_hook(stop)
        try:
            with torch.no_grad():
                self.model(pixel_values=images, **self.options)
        except _Reached as reached:
            return reached.output
        finally:
            handle.remove()
        raise AssertionError("the model did not run its own blocks")

    def _sha256(self) -> str:
        """Hash of all that decides on the outputs, but for the images."""
        device = next(self.embeddings.parameters()).device.type
        made_by = [CACHE_FORMAT, *(version(name) for name in ("torch", "transformers")), device]
        structure = json.dumps([made_by, _structure(self.model.config), self.options], sort_keys=True, default=str)
        digest = hashlib.sha256(structure.encode())
        for part in (self.embeddings, *self.blocks):
            for name, value in sorted(part.state_dict().items()):
                digest.update(f"{type(part).__name__} {name} {tuple(value.shape)} {value.dtype}".encode())
                digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def find_trunk(model: Any, num_blocks: int, options: dict[str, Any], root: Path) -> FrozenTrunk | None:
    """The trunk of a model, or None where its outputs cannot be kept.

    Args:
        model: An image classifier.
        num_blocks: Blocks of the trunk.
        options: Further arguments of the model's forward pass.
        root: The folder of all trunks' outputs.

    Returns:
        None if there are no blocks below the first one that changes, if the model is of another family than
        `FAMILIES`, or if its forward pass is random in training.
    """
    config = model.config
    is_random = any(getattr(config, name, 0) for name in _RANDOM)
    if not HAS_LOCKS or num_blocks < 1 or config.model_type not in FAMILIES or is_random:
        return None
    parent = next((module for module in model.modules() if "embeddings" in dict(module.named_children())), None)
    if parent is None:
        return None
    lists = [part for part in parent.modules() if isinstance(part, nn.ModuleList)]
    blocks = next((part for part in lists if len(part) == config.num_hidden_layers), None)
    if blocks is None:
        return None
    return FrozenTrunk(model, parent.embeddings, list(blocks)[:num_blocks], options, root)


def _structure(config: Any) -> dict[str, Any]:
    """Entries of a config that its family has of its own: not what training, saving or another head leave in it."""
    own = type(config)().to_dict().keys() - PreTrainedConfig().to_dict().keys()
    return {name: getattr(config, name) for name in own}


@contextmanager
def _passing_on(part: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Let a module give its first input as its output; a `forward` of its own that it had is put back afterwards."""
    own = part.__dict__.get("forward")
    part.forward = lambda hidden, *_, **__: hidden.to(dtype)
    try:
        yield
    finally:
        del part.forward
        if own is not None:
            part.forward = own
