"""A training step without content: what it allocates, found by going through it on tensors that have only a shape.

No formula for each architecture: the model's own code, autograd, the precision and the checkpointing of a real step run
under torch's fake tensors, and every storage is counted from its birth to its end. So the estimate holds for any model
of transformers whose code does not look at values.

Two things are not gone through as they are. A bounded layer cuts its work into thousands of slices; here it makes its
large allocations once. And of many equal blocks only two or three are kept: each further one adds their difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
)
from torch.utils.hooks import RemovableHandle

from stable_forgetting.errors import ModelError
from stable_forgetting.models.predictions import Predictions
from stable_forgetting.objectives import UNSEEN_TERM, Objective
from stable_forgetting.runs.skeleton import are_alike, blocks_of, made_fake, skeleton_of
from stable_forgetting.runs.storages import StorageTracker
from stable_forgetting.runs.target_distributions import NUM_KEPT

FEW_BLOCKS = 2
"""Blocks that are gone through; with one more, what each further block adds is known."""


@dataclass(frozen=True)
class StepShape:
    """Shape of the largest batch of a training.

    Args:
        forget_rows: Forget examples; 0 if the objective has no use for them.
        retain_rows: Retain examples, and unseen ones; 0 if the objective has no use for either.
        forget_labels: Label positions of all forget examples together.
        retain_labels: Label positions of all these together.
        example: Shape of an example: (tokens,), or (channels, height, width).
    """

    forget_rows: int
    retain_rows: int
    forget_labels: int
    retain_labels: int
    example: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Examples in a forward pass."""
        return self.forget_rows + self.retain_rows

    def scaled(self, factor: int, divisor: int) -> StepShape:
        """The same with factor / divisor times as many examples, where divisor divides both numbers of rows."""
        rows = (self.forget_rows * factor // divisor, self.retain_rows * factor // divisor)
        labels = (-(-self.forget_labels * factor // divisor), -(-self.retain_labels * factor // divisor))
        return StepShape(*rows, *labels, self.example)


@dataclass(frozen=True)
class StepBytes:
    """What a training step needs beside weights, gradients and optimizer, at its peak.

    Args:
        activations: The batch, and what everything below the output head keeps for the backward pass.
        logits: Kept by the output head and the loss.
        temporaries: What is there besides at the peak, and gone before the step ends.
    """

    activations: int
    logits: int
    temporaries: int

    def with_blocks(self, more: int, one_more: StepBytes) -> StepBytes:
        """The same with more blocks, each of which adds what it adds in `one_more`."""
        activations = self.activations + more * (one_more.activations - self.activations)
        logits = self.logits + more * (one_more.logits - self.logits)
        return StepBytes(activations, logits, self.temporaries + more * (one_more.temporaries - self.temporaries))


def rehearse(
    model: Any, shape: StepShape, objective: Objective, *, dtype: torch.dtype, bf16: bool, checkpointing: bool
) -> StepBytes:
    """Bytes of one training step, beside weights, gradients and optimizer.

    Args:
        model: Model of transformers with the adapter attached; its layers may be on the meta device. It is not changed.
        shape: The batch.
        objective: Decides about the reference pass.
        dtype: Type of the frozen weights.
        bf16: Whether the forward pass runs under autocast.
        checkpointing: Whether activations are computed again in the backward pass.

    Returns:
        The bytes.

    Raises:
        ModelError: The model's code looks at values, or knows no checkpointing.
    """
    total = len(blocks_of(model))
    step = _Step(shape, objective, bf16=bf16, checkpointing=checkpointing)
    with _explained(model):
        if total <= FEW_BLOCKS + 1 or not are_alike(blocks_of(model)):
            return step.bytes_of(skeleton_of(model, total, dtype))
        few, one_more = (step.bytes_of(skeleton_of(model, number, dtype)) for number in (FEW_BLOCKS, FEW_BLOCKS + 1))
    return few.with_blocks(total - FEW_BLOCKS, one_more)


class _Step:
    """The step: forward, loss, backward."""

    def __init__(self, shape: StepShape, objective: Objective, *, bf16: bool, checkpointing: bool) -> None:
        self.shape, self.objective = shape, objective
        self.bf16, self.checkpointing = bf16, checkpointing

    def bytes_of(self, skeleton: Any) -> StepBytes:
        with FakeTensorMode(allow_non_fake_inputs=True):
            model = made_fake(skeleton, checkpointing=self.checkpointing)
            gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
            with StorageTracker([*model.parameters(), *model.buffers(), *gradients]) as tracker:
                at_head: list[int] = []
                batch = self._batch(self.shape.rows)  # the trainer holds it until the step is over
                loss = self._loss(model, batch, lambda: at_head.append(tracker.now()))
                kept = tracker.live
                logits = tracker.live_since(at_head[0] if at_head else tracker.now())
                loss.backward()  # type: ignore[no-untyped-call]
        return StepBytes(kept - logits, logits, tracker.peak - kept)

    def _loss(self, model: Any, batch: dict[str, Tensor], at_head: Callable[[], None]) -> Tensor:
        """The objective, with the allocations of the trainer; `at_head` is called before the output head runs."""
        shape, forget, retain = self.shape, self.objective.forget, self.objective.retain
        if self.objective.uses_unseen:
            # Of retain examples, too: where their own term has no reference, this is more than is needed.
            retain = UNSEEN_TERM
        logits = self._logits(model, batch, shape.forget_labels + shape.retain_labels, at_head)
        parts = _Parts.apply(logits, shape.forget_labels, shape.retain_labels)  # type: ignore[no-untyped-call]
        loss = torch.zeros(())
        if shape.forget_rows and forget is not None:
            predictions = _predictions(parts[0], shape.forget_rows)
            constants = self._constants(num_tokens=parts[0].shape[1])
            loss = loss + forget.function(predictions, **{name: constants[name] for name in forget.needs}).sum()
        if shape.retain_rows and retain is not None:
            predictions = _predictions(parts[1], shape.retain_rows)
            needs = {"reference_logits": self._reference(model)} if retain.needs else {}
            loss = loss + retain.function(predictions, **needs).sum()
        return loss

    def _constants(self, num_tokens: int) -> dict[str, Any]:
        """What forget terms are given beside predictions, by name, as `forget_constants` makes it for a batch."""
        rows = self.shape.forget_rows
        most_labels, num_kept = -(-self.shape.forget_labels // rows), min(NUM_KEPT, num_tokens)
        shapes = {
            "reference_nll_sum": (rows,),
            "target": (rows,),
            "label_targets": (rows, most_labels),
            "mean_target": (rows,),
            "target_probabilities": (rows, most_labels, num_kept + 1),
        }
        tokens = torch.zeros(rows, most_labels, num_kept, dtype=torch.int32)
        constants = {name: torch.zeros(shape) for name, shape in shapes.items()}
        return constants | {"target_tokens": tokens, "beta": self.objective.beta, "limit": self.objective.limit}

    def _reference(self, model: Any) -> Tensor:
        """The reference pass over the retain rows. The adapter stays on: one weight more than the truth, once."""
        with torch.no_grad():
            return self._logits(model, self._batch(self.shape.retain_rows), self.shape.retain_labels)

    def _batch(self, rows: int) -> dict[str, Tensor]:
        if len(self.shape.example) > 1:
            return {"pixel_values": torch.zeros(rows, *self.shape.example)}
        tokens = torch.zeros(rows, *self.shape.example, dtype=torch.long)
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}

    def _logits(
        self, model: Any, batch: dict[str, Tensor], positions: int, at_head: Callable[[], None] = lambda: None
    ) -> Tensor:
        """Logits at label positions, (P, V), as the tasks compute them."""
        precision = torch.autocast("cpu", torch.bfloat16) if self.bf16 else nullcontext()
        head = None if "pixel_values" in batch else model.get_output_embeddings()
        with precision, _head_at(head, positions, at_head):
            options = {} if "pixel_values" in batch else {"use_cache": False}
            logits: Tensor = model(**batch, **options).logits
        logits = logits.float() if self.bf16 else logits  # accelerate gives outputs of autocast in float32
        return logits if head is None else logits[0]


def _predictions(logits: Tensor, rows: int) -> Predictions:
    zeros = torch.zeros(len(logits), dtype=torch.long)
    return Predictions(logits, zeros, zeros, rows)


class _Parts(torch.autograd.Function):
    """The logits of the forget and of the retain rows.

    Each part's gradient is written into a tensor of all positions, and the two are added in place. With fake tensors
    autograd would do this out of place, with one tensor more.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, num_forget: int, num_retain: int) -> tuple[Tensor, Tensor]:
        num_classes = logits.shape[1]
        return logits.new_empty(num_forget, num_classes), logits.new_empty(num_retain, num_classes)

    @staticmethod
    def backward(ctx: Any, forget: Tensor, retain: Tensor) -> tuple[Tensor, None, None]:
        whole = forget.new_zeros(len(forget) + len(retain), forget.shape[1])
        second = torch.empty_like(min(forget, retain, key=len))  # of the second whole one, what the first part leaves
        del second
        return whole, None, None


@contextmanager
def _head_at(head: nn.Module | None, positions: int, at_head: Callable[[], None]) -> Iterator[None]:
    """Let the output head see some positions only, as `LanguageTask` does, and call `at_head` before."""
    handle: RemovableHandle | None = None
    if head is not None:

        def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            at_head()
            place = torch.zeros(positions, dtype=torch.long)
            return (inputs[0][:, :-1][place, place].unsqueeze(0), *inputs[1:])

        handle = head.register_forward_pre_hook(keep)
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


@contextmanager
def _explained(model: Any) -> Iterator[None]:
    """Turn what torch raises for code that looks at values into one sentence."""
    try:
        yield
    except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedFakeTensorException) as error:
        raise ModelError(
            f"The memory of {type(model).__name__} cannot be estimated without its weights, because its code looks at "
            f"values ({' '.join(str(error).split())[:200]}). Measure a run of a few steps instead."
        ) from error
