"""What the forget term needs of each forget example: constants of the base model, computed once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stable_forgetting.config import TargetConfig
from stable_forgetting.errors import ConfigError
from stable_forgetting.evaluation import LikelihoodScores
from stable_forgetting.evaluation.likelihood_scores import Floats, Ints
from stable_forgetting.objectives import Objective
from stable_forgetting.objectives.targets import holdout_targets, positive_targets

_LEAST_NLL = 1e-7
"""About what single precision makes of a probability that is not quite 1."""

_LEAST_MEAN = 1e-3
"""Targets below it are of data that a model knows by heart."""


def forget_constants(
    objective: Objective,
    *,
    forget: LikelihoodScores | None,
    holdout: LikelihoodScores | None,
    pretrained: LikelihoodScores | None,
    target: TargetConfig,
) -> dict[str, Tensor]:
    """Constants by name, each with a row for each forget example.

    Args:
        objective: Says what is needed.
        forget: The base model's likelihoods of the forget set; may be None if nothing is needed.
        holdout: The base model's likelihoods of the holdout set, if there is one.
        pretrained: The pretrained model's likelihoods of the forget set, if there is one.
        target: Where calibrated targets come from.

    Returns:
        The constants that the objective's forget term needs; no others. `label_targets` has a row of label targets for
        each example, with zeros behind the last.

    Raises:
        ConfigError: What the targets come from is missing.
    """
    if forget is None:
        return {}
    constants: dict[str, Floats] = {}
    if "reference_nll_sum" in objective.needs:
        constants["reference_nll_sum"] = forget.nll_sum
    if "target" in objective.needs:
        constants["target"] = _targets(
            forget.nll,
            holdout=None if holdout is None else holdout.nll,
            pretrained=None if pretrained is None else pretrained.nll,
            target=target,
        )
    if "label_targets" in objective.needs:
        targets = _targets(
            _of_labels(forget),
            holdout=None if holdout is None else _of_labels(holdout),
            pretrained=None if pretrained is None else _of_labels(pretrained),
            target=target,
        )
        if targets.mean() < _LEAST_MEAN:
            raise ConfigError(
                f"The targets of calibrated_labels are {targets.mean():.2g} nats per label on average; they must be at "
                f"least {_LEAST_MEAN}, or nothing is forgotten. Give a holdout set that the base model has not seen, "
                "or another pretrained_model."
            )
        constants["label_targets"] = _padded(targets, forget.num_labels)
        constants["mean_target"] = np.full(len(forget), targets.mean())
    return {name: torch.tensor(values, dtype=torch.float32) for name, values in constants.items()}


def _targets(forget: Floats, *, holdout: Floats | None, pretrained: Floats | None, target: TargetConfig) -> Floats:
    """Targets of examples or labels from their NLLs under the base model."""
    if target.source == "number":
        if target.nll is None:
            raise ConfigError("The target source 'number' needs objective.target.nll, in nats per label.")
        return positive_targets(np.full(len(forget), target.nll))
    order = pretrained if target.needs_pretrained else forget
    if order is None:
        raise ConfigError(
            "Targets from the pretrained model need a config with pretrained_model or model.finetune. Use the source "
            "'holdout' and the order 'base' here."
        )
    if target.source == "pretrained":
        return positive_targets(order)
    if holdout is None:
        raise ConfigError(
            "Calibrated forgetting stops where unseen data are, so it needs a holdout set: unseen examples of the same "
            "kind. Give one, or a target with source 'number' and its nll."
        )
    return holdout_targets(order, holdout, target.matching)


def _of_labels(scores: LikelihoodScores) -> Floats:
    """NLL of each label; what is so likely that it rounds to 0 is a little above it, as targets have to be."""
    return np.maximum(scores.label_nll, _LEAST_NLL)


def _padded(values: Floats, lengths: Ints) -> Floats:
    """Values of consecutive examples, (sum of lengths,), as rows of zeros behind the values: (N, longest)."""
    rows = np.zeros((len(lengths), lengths.max()))
    rows[np.arange(rows.shape[1]) < lengths[:, None]] = values
    return rows
