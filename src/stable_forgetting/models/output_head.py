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

from stable_forgetting.models.predictions import Predictions
from stable_forgetting.models.reading import causal_model
from stable_forgetting.models.trunk import LANGUAGE_FAMILIES, is_of_transformers

TOKENS_AT_ONCE = 4096
"""Part of the vocabulary whose logits are there at once: few enough to stay in a processor's cache."""


class HeadPredictions(Predictions):
    """Predictions from hidden states, for which the head gives a part of the vocabulary after the other.

    All logits of a batch can take more memory than the rest of a pass without gradients, and moving them most of the
    time that a processor spends on the head. Likelihoods and right tokens are found at once; whoever asks for logits
    gets them.

    Args:
        hidden: (R, H), hidden states.
        head: The output head.
        state: (P,), the hidden state that each label follows; None: R = P, each follows its own.
        labels: As those of `Predictions`, like what comes behind.
        example: The example of each position.
        num_examples: Number of examples.
    """

    hidden: Tensor
    head: nn.Linear
    state: Tensor

    def __init__(
        self, hidden: Tensor, head: nn.Linear, state: Tensor | None, labels: Tensor, example: Tensor, num_examples: int
    ) -> None:
        states = torch.arange(len(labels), device=labels.device) if state is None else state
        nll, best = _nll_and_best(hidden, head, states, labels)
        given = {"labels": labels, "example": example, "num_examples": num_examples}
        found = {"nll": nll, "correct": best[states] == labels}
        self.__dict__.update(given, **found, hidden=hidden, head=head, state=states)  # a frozen class sets nothing

    @cached_property
    def logits(self) -> Tensor:
        """(P, V)."""
        return self.logits_of(torch.arange(len(self.labels), device=self.labels.device))

    @torch.inference_mode()
    def logits_of(self, positions: Tensor) -> Tensor:
        """Logits of some positions, (chosen, V)."""
        found: Tensor = self.head(self.hidden[self.state[positions]])
        return found


@torch.inference_mode()
def _nll_and_best(hidden: Tensor, head: nn.Linear, state: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """NLL of each label, (P,), and the most likely token, of several the first, behind each hidden state, (R,)."""
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    label_logits = torch.zeros(len(labels), device=hidden.device, dtype=dtype)
    highest, tokens, log_sums = [], [], []
    for start in range(0, len(head.weight), TOKENS_AT_ONCE):
        part = slice(start, start + TOKENS_AT_ONCE)
        logits = F.linear(hidden, head.weight[part], None if head.bias is None else head.bias[part]).to(dtype)
        place, num_tokens = labels - start, logits.shape[1]
        own = logits[state, place.clamp(0, num_tokens - 1)]
        label_logits = torch.where((place >= 0) & (place < num_tokens), own, label_logits)
        high, token = logits.max(dim=-1)
        # Taken off, so that nothing overflows; a part that is all -inf has nothing to take off.
        shift = high.clamp(min=torch.finfo(dtype).min)
        log_sums.append(logits.sub_(shift[:, None]).exp_().sum(dim=-1).log() + shift)
        highest.append(high)
        tokens.append(token + start)
    best, part_of_best = torch.stack(highest).max(dim=0)
    # How much less likely than the best one the label is, and how much of the rest there is beside it: both at least 0.
    rest = (torch.stack(log_sums) - best).logsumexp(dim=0)
    return (best[state] - label_logits) + rest[state], torch.stack(tokens).gather(0, part_of_best[None])[0]


def predictions_at(
    model: nn.Module,
    inputs: Mapping[str, Any],
    where: tuple[Tensor, Tensor],
    state: Tensor | None,
    labels: Tensor,
    example: Tensor,
    num_examples: int,
) -> Predictions:
    """Predictions of labels from one forward pass in which the head runs at the tokens that they follow only.

    Args:
        model: The model.
        inputs: What its forward pass takes.
        where: Row and column in the inputs of R tokens, (R,) each.
        state: (P,), the one of them that each label follows; None: R = P, each follows its own.
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
        return HeadPredictions(hidden[0], head, state, labels, example, num_examples)
    else:
        with _head_sees(head, where):
            logits = model(**inputs).logits[0]
    return Predictions(logits if state is None else logits[state], labels, example, num_examples)


def _head(model: nn.Module) -> nn.Module | None:
    unwrapped = extract_model_from_parallel(model)
    find_head = getattr(unwrapped, "get_output_embeddings", None)
    head = find_head() if find_head is not None else None
    return head if isinstance(head, nn.Module) else None


def _is_plain(head: nn.Module, model: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether the model's logits are the product of its hidden states with a weight that is there as a whole."""
    inner = causal_model(model)
    is_known = is_of_transformers(inner) and inner.config.model_type in LANGUAGE_FAMILIES
    is_linear = type(head) is nn.Linear and type(head.weight) is nn.Parameter
    called = (head, inner, model, extract_model_from_parallel(model))
    return is_known and is_linear and not head._forward_pre_hooks and not any(map(_is_changed, called))


def _is_changed(module: nn.Module) -> bool:
    """Whether calling a module does more than its class says: hooks, offloading, autocast, compiled code."""
    names = vars(module)
    return bool(module._forward_hooks) or "forward" in names or names.get("_compiled_call_impl") is not None


@contextmanager
def _head_sees(head: nn.Module, where: tuple[Tensor, Tensor], *, at_most: int | None = None) -> Iterator[list[Tensor]]:
    """Let the output head see only the hidden states that predict a label, at most so many of them.

    A hook on the head, and not a call of the decoder and then of the head, so that whatever a model does to its logits
    afterwards (scaling, soft caps) stays in force where it sees them, and wrappers for adapters and sharding need not
    be known here.

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
