"""What the forget term needs of each forget example: constants of the base model, computed once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from stable_forgetting.config import TargetConfig
from stable_forgetting.errors import ConfigError
from stable_forgetting.evaluation import LikelihoodScores
from stable_forgetting.evaluation.likelihood_scores import Floats, Ints
from stable_forgetting.objectives import Objective
from stable_forgetting.objectives.targets import holdout_targets, places_among, positive_targets, ranks
from stable_forgetting.runs.target_distributions import TargetDistributions

_LEAST_NLL = 1e-7
"""About what single precision makes of a probability that is not quite 1."""

_LEAST_MEAN = 1e-3
"""Targets below it are of data that a model knows by heart."""

Likelihoods = Mapping[str, LikelihoodScores]
"""Of the sets ``forget`` and ``holdout``, as far as they are needed and there."""


def forget_constants(
    objective: Objective,
    *,
    base: Likelihoods,
    pretrained: Likelihoods,
    target: TargetConfig,
    distributions: TargetDistributions | None = None,
) -> dict[str, Tensor]:
    """Constants by name, each with a row for each forget example.

    Args:
        objective: Says what is needed.
        base: The base model's likelihoods; may be empty if nothing is needed.
        pretrained: The pretrained model's likelihoods; may be empty if targets do not come from it.
        target: Where calibrated targets come from.
        distributions: Whole distributions at the labels of the forget set, where they are the targets.

    Returns:
        The constants that the objective's forget term needs; no others. What there is for each label is a row of an
        example, with zeros behind the last.

    Raises:
        ConfigError: What the targets come from is missing, or makes no targets.
    """
    constants: dict[str, Floats] = {}
    if "reference_nll_sum" in objective.needs:
        constants["reference_nll_sum"] = base["forget"].nll_sum
    if "target" in objective.needs:
        of_examples = ({name: scores.nll for name, scores in model.items()} for model in (base, pretrained))
        constants["target"] = _targets(*of_examples, target=target)
    if "label_targets" in objective.needs:
        of_labels = ({name: _of_labels(scores) for name, scores in model.items()} for model in (base, pretrained))
        targets = _targets(*of_labels, target=target)
        if targets.mean() < _LEAST_MEAN:
            raise ConfigError(
                f"The targets of calibrated_labels are {targets.mean():.2g} nats per label on average; they must be at "
                f"least {_LEAST_MEAN}, or nothing is forgotten. Give a holdout set that the base model has not seen, "
                "or another pretrained_model."
            )
        constants["label_targets"] = _padded(targets, base["forget"].num_labels)
        constants["mean_target"] = np.full(len(base["forget"]), targets.mean())
    found = {name: torch.tensor(values, dtype=torch.float32) for name, values in constants.items()}
    return found if distributions is None else found | distributions.constants(base["forget"].num_labels.tolist())


def _targets(base: Mapping[str, Floats], pretrained: Mapping[str, Floats], *, target: TargetConfig) -> Floats:
    """Targets of forget examples or labels, from the NLLs of both sets under both models."""
    if target.source == "number":
        if target.nll is None:
            raise ConfigError("The target source 'number' needs objective.target.nll, in nats per label.")
        return positive_targets(np.full(len(base["forget"]), target.nll))
    if target.needs_pretrained and not pretrained:
        raise ConfigError(
            "Targets from the pretrained model need a config with pretrained_model or model.finetune. Use the source "
            "'holdout' and places from the base model here."
        )
    if target.source == "pretrained":
        return positive_targets(pretrained["forget"])
    if "holdout" not in base:
        raise ConfigError(
            "Calibrated forgetting stops where unseen data are, so it needs a holdout set: unseen examples of the same "
            "kind. Give one, or a target with source 'number' and its nll."
        )
    if target.matching == "mean":
        return positive_targets(np.full(len(base["forget"]), base["holdout"].mean()))
    is_placed = target.places == "pretrained"
    places = places_among(pretrained["forget"], pretrained["holdout"]) if is_placed else ranks(base["forget"])
    return holdout_targets(places, base["holdout"])


def _of_labels(scores: LikelihoodScores) -> Floats:
    """NLL of each label; what is so likely that it rounds to 0 is a little above it, as targets have to be."""
    return np.maximum(scores.label_nll, _LEAST_NLL)


def _padded(values: Floats, lengths: Ints) -> Floats:
    """Values of consecutive examples, (sum of lengths,), as rows with zeros behind the values: (N, longest)."""
    rows = np.zeros((len(lengths), lengths.max()))
    rows[np.arange(rows.shape[1]) < lengths[:, None]] = values
    return rows
