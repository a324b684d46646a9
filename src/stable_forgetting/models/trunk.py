"""The trunk of a transformer: what lies below the first block that changes, run once for each image or text.

While nothing in it is trained and images are not varied at random, the trunk gives the same for an example in every
epoch, in every evaluation, and under every adapter of the blocks above. Its outputs are kept on disk, by the trunk's
weights and the example, and shared by all models with the same trunk.

T = tokens or patches of an example, D = width of the model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedConfig

from stable_forgetting.data.array_store import CAN_GROW, ArrayStore

IMAGE_FAMILIES = frozenset({"vit", "deit", "dinov2", "dinov2_with_registers"})
"""Families whose blocks pass on hidden states and nothing else, from one list, behind a module of embeddings. BEiT's
and Swin's blocks need to know the image's size as well."""

LANGUAGE_FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""The same of language models, with rotary positions. Gemma's model changes what its embeddings give it."""

_RANDOM = ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "drop_path_rate")
"""Entries of a config that make a forward pass random in training."""


CACHE_FORMAT = 2
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
        input_name: The argument of the model's forward pass that the embeddings read.
        options: Further arguments of it.
        root: The folder of all trunks' outputs.
    """

    def __init__(
        self,
        model: nn.Module,
        embeddings: nn.Module,
        blocks: Sequence[nn.Module],
        *,
        input_name: str,
        options: dict[str, Any],
        root: Path,
    ) -> None:
        self.model = model
        self.embeddings = embeddings
        self.blocks = list(blocks)
        self.input_name = input_name
        self.options = options
        self._root = root

    @cached_property
    def _store(self) -> ArrayStore:
        return ArrayStore(self._root / self._sha256()[:24])

    @property
    def has_outputs(self) -> bool:
        """Whether outputs of this trunk are kept already, by whichever model."""
        return self._store.folder.is_dir()

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.embeddings.parameters()).dtype

    def outputs(self, inputs: Sequence[Tensor], keys: Sequence[str]) -> list[Tensor]:
        """What the trunk gives for each example, (T, D) each, float32, on the processor.

        Args:
            inputs: Pixel values of one size, (C, H, W) each, or token ids (T,) of each example.
            keys: One for each of them; equal keys mean equal inputs.
        """
        return self._store.arrays(keys, lambda places: self._run([inputs[place] for place in places]))

    @contextmanager
    def skipped(self) -> Iterator[None]:
        """Within, the model takes the trunk's outputs in place of pixel values or token ids."""
        parts = (self.embeddings, *self.blocks)
        if self.model.training and torch.is_grad_enabled():
            trained = [weight for part in parts for weight in part.parameters() if weight.requires_grad]
            assert not trained, "the outputs of a trunk are kept, but its weights are trained"
        with ExitStack() as stack:
            for number, part in enumerate(parts):
                stack.enter_context(_passing_on(part, number - 1, self._dtype))
            yield

    def output_size(self, example: Tensor) -> int:
        """Numbers in the output for one example, pixel values (C, H, W) or token ids (T,)."""
        return self._run([example])[0].numel()

    def _run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Outputs of some examples in one pass; the padding of texts is on the right, where no token looks."""
        weight = next(self.embeddings.parameters())
        batch = pad_sequence(list(inputs), batch_first=True).to(weight.device)
        if batch.is_floating_point():
            batch = batch.to(weight.dtype)

        def stop(_: nn.Module, __: Any, output: Tensor) -> None:
            raise _Reached(output)

        handle = self.blocks[-1].register_forward_hook(stop)
        try:
            with torch.no_grad():
                self.model(**{self.input_name: batch}, **self.options)
        except _Reached as reached:
            is_text = not inputs[0].is_floating_point()
            return [row[: len(read)] if is_text else row for row, read in zip(reached.output, inputs, strict=True)]
        finally:
            handle.remove()
        raise AssertionError("the model did not run its own blocks")

    def _sha256(self) -> str:
        """Hash of all that decides on the outputs, but for the examples."""
        device = next(self.embeddings.parameters()).device.type
        made_by = [CACHE_FORMAT, *(version(name) for name in ("torch", "transformers")), device]
        attention = getattr(self.model.config, "_attn_implementation", None)
        key = [made_by, _structure(self.model.config), attention, self.options]
        structure = json.dumps(key, sort_keys=True, default=str)
        digest = hashlib.sha256(structure.encode())
        for part in (self.embeddings, *self.blocks):
            for name, value in sorted(part.state_dict().items()):
                digest.update(f"{type(part).__name__} {name} {tuple(value.shape)} {value.dtype}".encode())
                digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def find_trunk(model: Any, num_blocks: int, options: dict[str, Any], root: Path) -> FrozenTrunk | None:
    """The trunk of a model, or None where its outputs cannot be kept.

    Args:
        model: An image classifier or a causal language model.
        num_blocks: Blocks of the trunk.
        options: Further arguments of the model's forward pass.
        root: The folder of all trunks' outputs.

    Returns:
        None if there are no blocks below the first one that changes, if the model is of another family than
        `IMAGE_FAMILIES` and `LANGUAGE_FAMILIES` or comes with code of its own, or if its forward pass is random in
        training.
    """
    config = model.config
    is_random = any(getattr(config, name, 0) for name in _RANDOM)
    if not CAN_GROW or num_blocks < 1 or is_random:
        return None
    if config.model_type in IMAGE_FAMILIES:
        embeddings_name, input_name = "embeddings", "pixel_values"
    elif config.model_type in LANGUAGE_FAMILIES:
        embeddings_name, input_name, options = "embed_tokens", "input_ids", {**options, "use_cache": False}
    else:
        return None
    parent = next((module for module in model.modules() if embeddings_name in dict(module.named_children())), None)
    if parent is None:
        return None
    lists = [part for part in parent.modules() if isinstance(part, nn.ModuleList)]
    blocks = next((part for part in lists if len(part) == config.num_hidden_layers), None)
    if blocks is None or not all(is_of_transformers(part) for part in (parent, blocks[0])):
        return None
    embeddings, first = parent.get_submodule(embeddings_name), list(blocks)[:num_blocks]
    return FrozenTrunk(model, embeddings, first, input_name=input_name, options=options, root=root)


def is_of_transformers(module: nn.Module) -> bool:
    """Code that comes with a model can do anything between its blocks, under the name of a known family."""
    return type(module).__module__.startswith("transformers.models.")


def _structure(config: Any) -> dict[str, Any]:
    """Entries of a config that its family has of its own: not what training, saving or another head leave in it."""
    own = type(config)().to_dict().keys() - PreTrainedConfig().to_dict().keys() - {"use_cache"}
    return {name: getattr(config, name) for name in own}


@contextmanager
def _passing_on(part: nn.Module, number: int, dtype: torch.dtype) -> Iterator[None]:
    """Let a module give its first input as its output; a `forward` of its own that it had is put back afterwards.

    Args:
        part: The module.
        number: Of the block. Models count the tokens that they have read by what the first block keeps of them, so a
            block that is skipped keeps a 0 of each.
        dtype: Of the output.
    """

    def forward(hidden: Tensor, *_: Any, past_key_values: Any = None, **__: Any) -> Tensor:
        if past_key_values is not None:
            nothing = hidden.new_zeros(len(hidden), 1, hidden.shape[1], 1)
            past_key_values.update(nothing, nothing, number)
        return hidden.to(dtype)

    own = part.__dict__.get("forward")
    part.forward = forward
    try:
        yield
    finally:
        del part.forward
        if own is not None:
            part.forward = own
