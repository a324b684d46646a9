"""The output head at label positions only, and values of labels for which it never gives all logits at once.

P = label positions, R = hidden states that they follow, at most P, H = hidden size, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from stable_forgetting.models.packing import causal_model
from stable_forgetting.models.predictions import Predictions
from stable_forgetting.models.trunk import LANGUAGE_FAMILIES, is_of_transformers

WORDS_AT_ONCE = 4096
"""Part of the vocabulary whose logits are there at once: few enough to stay in a processor's cache."""


class HeadPredictions(Predictions):
    """Predictions from hidden states, for which the head gives a part of the vocabulary after the other.

    All logits of a batch can take more memory than the rest of a pass without gradients, and moving them most of the
    time that a processor spends on the head. Whoever asks for them gets them.

    Args:
        hidden: (R, H), hidden states.
        head: The output head.
        row: (P,), hidden state that each label follows; None: R = P, each follows its own.
        labels: As those of `Predictions`, like what comes behind.
        example: The example of each position.
        num_examples: Number of examples.
    """

    hidden: Tensor
    head: nn.Linear
    row: Tensor

    def __init__(
        self, hidden: Tensor, head: nn.Linear, row: Tensor | None, labels: Tensor, example: Tensor, num_examples: int
    ) -> None:
        rows = torch.arange(len(labels), device=labels.device) if row is None else row
        given = {"labels": labels, "example": example, "num_examples": num_examples}
        self.__dict__.update(given, hidden=hidden, head=head, row=rows)  # no attribute of the class can be set

    @cached_property
    def logits(self) -> Tensor:
        """(P, V)."""
        return self.logits_of(torch.arange(len(self.labels), device=self.labels.device))

    @torch.inference_mode()
    def logits_of(self, positions: Tensor) -> Tensor:
        """Logits of some positions, (chosen, V)."""
        found: Tensor = self.head(self.hidden[self.row[positions]])
        return found

    @cached_property
    def nll(self) -> Tensor:
        """Negative log-likelihood of each label, (P,), in nats."""
        return self._nll_and_best[0]

    @cached_property
    def correct(self) -> Tensor:
        """Whether the most likely token is the label, (P,), bool."""
        return self._nll_and_best[1][self.row] == self.labels

    @cached_property
    @torch.inference_mode()
    def _nll_and_best(self) -> tuple[Tensor, Tensor]:
        """NLL of each label, (P,), and the most likely token, of several the first, behind each hidden state, (R,)."""
        label_logits = torch.zeros(len(self.labels), device=self.hidden.device, dtype=_wide(self.hidden.dtype))
        highest, tokens, log_sums = [], [], []
        for start in range(0, self.head.out_features, WORDS_AT_ONCE):
            logits = self._logits_from(start)
            place, num_words = self.labels - start, logits.shape[1]
            own = logits[self.row, place.clamp(0, num_words - 1)]
            label_logits = torch.where((place >= 0) & (place < num_words), own, label_logits)
            high, token = logits.max(dim=-1)
            # Taken off, so that nothing overflows; a part that is all -inf has nothing to take off.
            shift = high.clamp(min=torch.finfo(logits.dtype).min)
            log_sums.append(logits.sub_(shift[:, None]).exp_().sum(dim=-1).log() + shift)
            highest.append(high)
            tokens.append(token + start)
        log_sum = torch.stack(log_sums).logsumexp(dim=0)
        part = torch.stack(highest).argmax(dim=0)
        return log_sum[self.row] - label_logits, torch.stack(tokens).gather(0, part[None])[0]

    def _logits_from(self, start: int) -> Tensor:
        """Logits of a part of the vocabulary, (R, words), in float32 or better."""
        words = slice(start, start + WORDS_AT_ONCE)
        bias = None if self.head.bias is None else self.head.bias[words]
        return F.linear(self.hidden, self.head.weight[words], bias).to(_wide(self.hidden.dtype))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def predictions_at(
    model: nn.Module,
    inputs: Mapping[str, Any],
    where: tuple[Tensor, Tensor],
    row: Tensor | None,
    labels: Tensor,
    example: Tensor,
    num_examples: int,
) -> Predictions:
    """Predictions of labels from one forward pass in which the head runs at the tokens that they follow only.

    Args:
        model: The model.
        inputs: What its forward pass takes.
        where: Row and column in the inputs of R tokens, (R,) each.
        row: (P,), the one of them that each label follows; None: R = P, each follows its own.
        labels: As those of `Predictions`, like what comes behind.
        example: The example of each position.
        num_examples: Number of examples.
    """
    head = _head(model)
    if head is None:
        logits = model(**inputs).logits[where]
    elif torch.is_inference_mode_enabled() and _is_plain(head, model):
        with _head_sees(head, where, at_most=0) as hidden:
            model(**inputs)
        return HeadPredictions(hidden[0], head, row, labels, example, num_examples)
    else:
        with _head_sees(head, where):
            logits = model(**inputs).logits[0]
    return Predictions(logits if row is None else logits[row], labels, example, num_examples)


def _head(model: nn.Module) -> nn.Module | None:
    unwrapped = extract_model_from_parallel(model)
    find_head = getattr(unwrapped, "get_output_embeddings", None)
    head = find_head() if find_head is not None else None
    return head if isinstance(head, nn.Module) else None


def _is_plain(head: nn.Module, model: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether the model's logits are the product of its hidden states with a weight that is there as a whole."""
    inner = causal_model(model)
    is_known = inner.config.model_type in LANGUAGE_FAMILIES and is_of_transformers(inner)
    is_linear = type(head) is nn.Linear and type(head.weight) is nn.Parameter
    is_hooked = hasattr(head, "_hf_hook") or head._forward_hooks or head._forward_pre_hooks
    return is_known and is_linear and not is_hooked


@contextmanager
def _head_sees(head: nn.Module, where: tuple[Tensor, Tensor], *, at_most: int | None = None) -> Iterator[list[Tensor]]:
    """Let the output head see only the hidden states that predict a label, at most so many of them.

    A hook on the head, and not a call of the decoder and then of the head, so that whatever a model does to its logits
    afterwards (scaling, soft caps) stays in force, and wrappers for adapters and sharding need not be known here.

    Args:
        head: The output head; its input is (rows, columns, H).
        where: Row and column of each token that a label follows, (R,) each.
        at_most: None: all of them.

    Yields:
        A list that gets the hidden states, (R, H), when the head is called.
    """
    seen: list[Tensor] = []

    def keep_label_positions(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *rest = inputs
        seen.append(hidden[where])
        return (seen[-1][None, :at_most], *rest)

    handle = head.register_forward_pre_hook(keep_label_positions)
    try:
        yield seen
    finally:
        handle.remove()
