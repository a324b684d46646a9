"""What the forget term needs of each forget example: constants of the base model, computed once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stable_forgetting.config import TargetConfig
from stable_forgetting.errors import ConfigError
from stable_forgetting.evaluation import LikelihoodScores
from stable_forgetting.objectives import Objective
from stable_forgetting.objectives.targets import holdout_targets, positive_targets


def forget_constants(
    objective: Objective,
    *,
    forget: LikelihoodScores | None,
    holdout: LikelihoodScores | None,
    pretrained: LikelihoodScores | None,
    target: TargetConfig,
) -> dict[str, Tensor]:
    """Constants by name, each (number of forget examples,).

    Args:
        objective: Says what is needed.
        forget: The base model's likelihoods of the forget set; may be None if nothing is needed.
        holdout: The base model's likelihoods of the holdout set, if there is one.
        pretrained: The pretrained model's likelihoods of the forget set, if there is one.
        target: Where calibrated targets come from.

    Returns:
        The constants that the objective's forget term needs; no others.

    Raises:
        ConfigError: What the targets come from is missing.
    """
    constants = {}
    if "reference_nll_sum" in objective.needs and forget is not None:
        constants["reference_nll_sum"] = torch.tensor(forget.nll_sum, dtype=torch.float32)
    if "target" in objective.needs and forget is not None:
        constants["target"] = torch.tensor(_targets(forget, holdout, pretrained, target), dtype=torch.float32)
    return constants


def _targets(
    forget: LikelihoodScores,
    holdout: LikelihoodScores | None,
    pretrained: LikelihoodScores | None,
    target: TargetConfig,
) -> npt.NDArray[np.float64]:
    if target.source == "number":
        if target.nll is None:
            raise ConfigError("The target source 'number' needs objective.target.nll, in nats per label.")
        return positive_targets(np.full(len(forget), target.nll))
    if target.source == "pretrained":
        if pretrained is None:
            raise ConfigError("The target source 'pretrained' needs a config with model.finetune. Use 'holdout' here.")
        return positive_targets(pretrained.nll)
    if holdout is None:
        raise ConfigError(
            "Calibrated forgetting stops where unseen data are, so it needs a holdout set: unseen examples of the same "
            "kind. Give one, or a target with source 'number' and its nll."
        )
    return holdout_targets(forget.nll.tolist(), holdout.nll.tolist(), target.matching)
