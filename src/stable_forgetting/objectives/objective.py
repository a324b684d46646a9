"""objective = forget weight × forget term + retain weight × retain term + unseen weight × unseen term."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from stable_forgetting.errors import ConfigError, unknown_name
from stable_forgetting.models.predictions import Predictions
from stable_forgetting.objectives.terms import Term, get_term

UNSEEN_TERM = get_term("retain", "kl")
"""What keeps a model as it is where it has nothing to forget: to questions that were never asked in its training it is
to say what the base model says. Ours."""


@dataclass(frozen=True)
class Objective:
    """What is minimised. A term that is None or has the weight 0 is not computed.

    Args:
        forget: Forget term; None for plain finetuning.
        retain: Retain term; None to forget without regard to the rest.
        forget_weight: At least 0.
        retain_weight: At least 0.
        beta: Of terms that need it, more than 0.
        limit: Of terms that need it, in nats per label and more than 0; None: ln of the number of classes or tokens.
        unseen_weight: At least 0; of `UNSEEN_TERM`, on examples that the model has never seen.

    Raises:
        ConfigError: A number is not allowed.
    """

    forget: Term | None
    retain: Term | None
    forget_weight: float = 1.0
    retain_weight: float = 1.0
    beta: float = 0.1
    limit: float | None = None
    unseen_weight: float = 0.0

    def __post_init__(self) -> None:
        for name in ("forget_weight", "retain_weight", "unseen_weight"):
            weight = getattr(self, name)
            if not 0 <= weight < math.inf:
                raise ConfigError(f"{name} is {weight}; it must be finite and 0 or more. 0 leaves the term out.")
        if not 0 < self.beta < math.inf:
            raise ConfigError(f"beta is {self.beta}; it must be finite and more than 0. The default, of npo, is 0.1.")
        if self.limit is not None and not 0 < self.limit < math.inf:
            raise ConfigError(
                f"limit is {self.limit}; it must be finite and more than 0 nats per label. Leave it out for a uniform "
                "guess."
            )

    @property
    def uses_forget(self) -> bool:
        """Whether the forget set takes part."""
        return self.forget is not None and self.forget_weight > 0

    @property
    def uses_retain(self) -> bool:
        """Whether the retain set takes part."""
        return self.retain is not None and self.retain_weight > 0

    @property
    def uses_unseen(self) -> bool:
        """Whether the unseen set takes part."""
        return self.unseen_weight > 0

    @property
    def needs(self) -> frozenset[str]:
        """What the forget and the retain term, as far as they are used, need beside the predictions."""
        needs = self.forget.needs if self.forget is not None and self.uses_forget else frozenset[str]()
        return needs | (self.retain.needs if self.retain is not None and self.uses_retain else frozenset())

    @property
    def needs_targets(self) -> bool:
        """Whether the forget term stops at targets."""
        return not self.needs.isdisjoint({"target", "label_targets"})


OBJECTIVES: dict[str, tuple[str | None, str | None, str]] = {
    "ascent": ("ascent", None, "ascend on the forget set alone: the simplest, and the least stable"),
    "gradient_difference": ("ascent", "nll", "ascend on the forget set, descend on the retain set: the paper's"),
    "bounded_ascent": (
        "bounded_ascent",
        "nll",
        "ascend to a limit, descend on the retain set: after GS-LoRA, per example",
    ),
    "kl": ("ascent", "kl", "ascend on the forget set, stay near the base model on the retain set"),
    "npo": ("npo", "nll", "negative preference optimisation: ascent that fades once an example is forgotten"),
    "calibrated": ("calibrated", "nll", "move each forget example to the likelihood of unseen data, no further"),
    "calibrated_labels": ("calibrated_labels", "nll", "the same for each label: each word of an answer looks unseen"),
    "calibrated_distribution": (
        "calibrated_distribution",
        "nll",
        "the same for all that could be said: what a word loses goes to what else the base model would say",
    ),
    "retain_only": (None, "nll", "finetune on the retain set alone: the usual baseline"),
}
"""Forget term, usual retain term and description of each named objective."""


def build_objective(
    name: str,
    *,
    retain: str | None = None,
    forget_weight: float = 1.0,
    retain_weight: float = 1.0,
    beta: float = 0.1,
    limit: float | None = None,
    unseen_weight: float = 0.0,
) -> Objective:
    """Make a named objective.

    Args:
        name: Key of `OBJECTIVES`.
        retain: Another retain term than the usual one.
        forget_weight: Factor of the forget term, at least 0.
        retain_weight: Factor of the retain term, at least 0.
        beta: Of npo, more than 0.
        limit: Of bounded_ascent, in nats per label and more than 0; None: ln of the number of classes or tokens.
        unseen_weight: Factor of the term that keeps what the model says of unseen examples, at least 0.

    Returns:
        The objective.

    Raises:
        ConfigError: The name is unknown, a weight is negative, beta or the limit is not above 0, or no term is left.

    Example:
        >>> build_objective("gradient_difference").forget.formula
        '−CE(F)'
    """
    if name not in OBJECTIVES:
        raise ConfigError(unknown_name("objective", name, OBJECTIVES))
    forget_name, usual, _ = OBJECTIVES[name]
    retain_name = retain or usual
    objective = Objective(
        forget=get_term("forget", forget_name) if forget_name else None,
        retain=get_term("retain", retain_name) if retain_name else None,
        forget_weight=forget_weight,
        retain_weight=retain_weight,
        beta=beta,
        limit=limit,
        unseen_weight=unseen_weight,
    )
    if not objective.uses_forget and not objective.uses_retain:
        raise ConfigError(
            f"The objective '{name}' has no term left: forget_weight is {forget_weight} and retain_weight is "
            f"{retain_weight}. Give a term that it has a weight above 0."
        )
    return objective


def term_value(
    term: Term, predictions: Predictions, needs: Mapping[str, Tensor | float | None], count: Tensor
) -> Tensor:
    """Value of a term on a batch, or on one part of a batch that is split.

    Args:
        term: The term.
        predictions: Of the part.
        needs: What the term needs, by name.
        count: Scalar: labels or examples (`Term.per`) in the WHOLE batch, so that the values of its parts add up.

    Returns:
        Scalar.
    """
    numerators = term.function(predictions, **{name: needs[name] for name in term.needs})
    return numerators.sum() / count
