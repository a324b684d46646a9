"""Objective terms: functions from predictions to one value per example.

Notation, for one example: S = summed negative log-likelihood over its label positions, n = their number, l = S / n.
A term returns numerators; `Term.per` says what they are divided by when examples are put together: the number of
labels (CE = ΣS / Σn) or the number of examples. So neither padding nor the way in which a batch is split can change a
value.

`reference` always means the base model: the same model with its adapter switched off.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stable_forgetting.errors import ConfigError, unknown_name
from stable_forgetting.models.predictions import Predictions

Need = Literal[
    "reference_nll_sum",
    "target",
    "label_targets",
    "mean_target",
    "target_tokens",
    "target_probabilities",
    "reference_logits",
    "beta",
    "limit",
]
"""What a term takes beside the predictions; see the argument of the same name."""


@dataclass(frozen=True)
class Term:
    """A named term and what it needs.

    Args:
        name: Name in configs and records.
        function: From predictions and the needs to a numerator per example, (E,).
        per: What the sum of the numerators is divided by.
        side: Which examples it is meant for.
        formula: The equation, as shown to people.
        needs: Names of the further arguments of the function.
    """

    name: str
    function: Callable[..., Tensor]
    per: Literal["label", "example"]
    side: Literal["forget", "retain"]
    formula: str
    needs: frozenset[Need] = field(default=frozenset())


def nll(predictions: Predictions) -> Tensor:
    """S: descending on it, divided by the labels, is ordinary training."""
    return predictions.nll_sum


def ascent(predictions: Predictions) -> Tensor:
    """−S: gradient ascent on the cross entropy. It has no lower limit."""
    return -predictions.nll_sum


def bounded_ascent(predictions: Predictions, *, limit: float | None) -> Tensor:
    """max(0, n·limit − S): ascent that ends at a limit (GS-LoRA, Zhao et al. 2024, arXiv 2403.11530, without its LoRA).

    Below the limit it has the gradient of ascent, at and above it none, so nothing takes an overshoot back. The paper
    compares the mean over a batch with its limit (BND, 110 nats, which no single example comes near in practice). Here
    every example has its own end, because a mean over a batch would depend on how the batch is split. Where all are on
    the same side of the limit, the two are the same.

    Args:
        predictions: Of the forget examples.
        limit: Nats per label, more than 0. None: ln V, a uniform guess. From there on the right label has at most the
            probability 1 / V, so that a classifier cannot prefer it to all others.
    """
    highest = math.log(predictions.logits.shape[-1]) if limit is None else limit
    return F.relu(highest * predictions.num_labels - predictions.nll_sum)


def npo(predictions: Predictions, *, reference_nll_sum: Tensor, beta: float) -> Tensor:
    """−(2/β) log σ(β (S − S_ref)): negative preference optimisation (Zhang et al. 2024, arXiv 2404.05868, eq. 3).

    Summed log-likelihoods, and a mean over examples, as in the paper. Where the model is the reference it is (2/β) ln 2
    with the gradient of −mean S, to which its gradient also tends for β → 0. That is n̄ times the gradient of `ascent`,
    which is −ΣS / Σn; n̄: mean number of labels of an example. So the same forget weight is more for npo.

    Args:
        predictions: Of the forget examples.
        reference_nll_sum: (E,), S of the base model on the same examples.
        beta: β > 0; the larger, the sooner an example counts as forgotten.
    """
    return -2 / beta * F.logsigmoid(beta * (predictions.nll_sum - reference_nll_sum))


def calibrated(predictions: Predictions, *, target: Tensor) -> Tensor:
    """(l − t)² / (2 t): forget until the example looks unseen, and no further.

    Two-sided, so that it cannot overshoot; divided by the target so that its slope at l = 0 is that of ascent. Ours.

    Args:
        predictions: Of the forget examples.
        target: (E,), t > 0: the likelihood at which each example would look unseen, in nats per label.
    """
    return (predictions.nll_mean - target).square() / (2 * target)


def calibrated_labels(predictions: Predictions, *, label_targets: Tensor, mean_target: Tensor) -> Tensor:
    """Σ_j (l_j − t_j)² / (2 T): forget until every label looks unseen, and no further.

    A mean per example can be right while a few labels have all of it: the first word of an answer is made impossible,
    and the rest is known as before. Here every label has its own target. Ours.

    Args:
        predictions: Of the forget examples.
        label_targets: (E, most labels), t_j > 0: the NLL at which each label would look unseen; what is behind the last
            label of an example is not looked at.
        mean_target: (E,), T > 0: the mean of t_j over the labels of the whole forget set, the same for all examples. It
            makes the slope at l = 0 that of ascent on average.
    """
    targets = label_targets[predictions.example, predictions.position]
    return predictions.sum_by_example((predictions.nll - targets).square()) / (2 * mean_target)


def calibrated_distribution(
    predictions: Predictions,
    *,
    label_targets: Tensor,
    mean_target: Tensor,
    target_tokens: Tensor,
    target_probabilities: Tensor,
) -> Tensor:
    """Σ_j KL(q_j ‖ p_j) + (l_j − t_j)² / (2 T): forget until every label looks unseen, and say something in its place.

    Each part does what the other cannot. `calibrated_labels` leaves open what comes instead of a label, and has no
    gradient where the label has the probability 1. The divergence has one there, and says what comes instead; but it
    weighs probabilities, so that it hardly tells 0.01 from 0.0001, which the likelihood of a text does. q_j is known of
    K tokens one by one and of all others together, and the divergence is that of these K + 1 groups: at most the one
    over single tokens, and equal to it if K = V. Ours.

    Args:
        predictions: Of the forget examples.
        label_targets: (E, most labels), t_j; see `calibrated_labels`.
        mean_target: (E,), T.
        target_tokens: (E, most labels, K), K tokens or classes at each label, without repetition; what is behind the
            last label of an example is not looked at, here and below.
        target_probabilities: (E, most labels, K + 1), q of each of them and, last, of all others together; sums of 1.
    """
    tokens = target_tokens[predictions.example, predictions.position].long()
    target = target_probabilities[predictions.example, predictions.position]
    log_probs = torch.log_softmax(predictions.logits.float(), dim=-1)
    groups = log_probs.gather(1, tokens)
    if tokens.shape[1] < log_probs.shape[1]:
        # Not −inf: where a model excludes all others, that would be a sum over nothing, without a gradient.
        nothing = torch.finfo(log_probs.dtype).min
        others = log_probs.scatter(1, tokens, nothing).logsumexp(dim=-1, keepdim=True)
        groups = torch.cat([groups, others], dim=1)
    target = target[:, : groups.shape[1]]
    divergence = predictions.sum_by_example(torch.xlogy(target, target).sum(dim=-1) - _expected(target, groups))
    return divergence + calibrated_labels(predictions, label_targets=label_targets, mean_target=mean_target)


def kl(predictions: Predictions, *, reference_logits: Tensor) -> Tensor:
    """Σ over label positions of KL(p_ref ‖ p): keep the base model's whole distribution, not only the right labels.

    Args:
        predictions: Of the retain examples.
        reference_logits: (P, V), of the base model at the same label positions.
    """
    reference = torch.log_softmax(reference_logits.float(), dim=-1)
    log_probs = torch.log_softmax(predictions.logits.float(), dim=-1)
    return predictions.sum_by_example(_expected(reference.exp(), reference - log_probs))


def _expected(probabilities: Tensor, values: Tensor) -> Tensor:
    """Σ p · value over the last axis. Tokens that a model excludes have p = 0 and values that are no numbers."""
    return torch.where(probabilities > 0, probabilities * values, 0.0).sum(dim=-1)


FORGET_TERMS = {
    term.name: term
    for term in (
        Term("ascent", ascent, per="label", side="forget", formula="−CE(F)"),
        Term(
            "bounded_ascent",
            bounded_ascent,
            per="label",
            side="forget",
            formula="Σ max(0, n·limit − S) / Σn",
            needs=frozenset({"limit"}),
        ),
        Term(
            "npo",
            npo,
            per="example",
            side="forget",
            formula="−(2/β) mean log σ(β (S − S_ref))",
            needs=frozenset({"reference_nll_sum", "beta"}),
        ),
        Term(
            "calibrated",
            calibrated,
            per="example",
            side="forget",
            formula="mean (l − t)² / (2 t)",
            needs=frozenset({"target"}),
        ),
        Term(
            "calibrated_labels",
            calibrated_labels,
            per="label",
            side="forget",
            formula="Σ (l_j − t_j)² / (2 T) / Σn",
            needs=frozenset({"label_targets", "mean_target"}),
        ),
        Term(
            "calibrated_distribution",
            calibrated_distribution,
            per="label",
            side="forget",
            formula="Σ (KL(q_j ‖ p_j) + (l_j − t_j)² / (2 T)) / Σn",
            needs=frozenset({"label_targets", "mean_target", "target_tokens", "target_probabilities"}),
        ),
    )
}

RETAIN_TERMS = {
    term.name: term
    for term in (
        Term("nll", nll, per="label", side="retain", formula="CE(R)"),
        Term(
            "kl",
            kl,
            per="label",
            side="retain",
            formula="mean KL(p_ref ‖ p) over label positions",
            needs=frozenset({"reference_logits"}),
        ),
    )
}


def get_term(side: Literal["forget", "retain"], name: str) -> Term:
    """Look a term up.

    Raises:
        ConfigError: There is no such term.
    """
    table = FORGET_TERMS if side == "forget" else RETAIN_TERMS
    if name not in table:
        raise ConfigError(unknown_name(f"{side} term", name, table))
    return table[name]
