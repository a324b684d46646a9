"""What calibrated targets are made of: likelihoods of forget and unseen examples under base and pretrained model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stable_forgetting.data.examples import ExampleSet
from stable_forgetting.evaluation import LikelihoodScores, ModelScores
from stable_forgetting.models.load import LoadedModel
from stable_forgetting.objectives import Objective
from stable_forgetting.runs.models import RunModels
from stable_forgetting.runs.scoring import reference_likelihoods
from stable_forgetting.runs.sets import TARGETS, Sets
from stable_forgetting.runs.target_distributions import TargetDistributions, target_distributions

Likelihoods = dict[str, LikelihoodScores]
"""By the names that `forget_constants` knows: ``forget`` and, of unseen examples, ``holdout``."""


@dataclass(frozen=True)
class TargetValues:
    """What the targets of a run are made of.

    Args:
        base: Likelihoods under the base model.
        pretrained: Those under the pretrained model; empty if targets do not come from it.
        distributions: What the pretrained model would say at each label of the forget set; None if nobody asks.
    """

    base: Likelihoods
    pretrained: Likelihoods
    distributions: TargetDistributions | None


def target_values(
    models: RunModels, objective: Objective, base: LoadedModel, scores: ModelScores, sha256: str
) -> TargetValues:
    """Measure what the objective's targets are made of, as far as it was not measured before.

    Args:
        models: The models of the run.
        objective: Says what is needed.
        base: The base model.
        scores: Its values on the measured sets.
        sha256: Its hash.
    """
    of_base = base_likelihoods(models, objective, base, scores, sha256)
    return TargetValues(
        of_base,
        pretrained_likelihoods(models, objective),
        _distributions(models, of_base) if "target_probabilities" in objective.needs else None,
    )


def _distributions(models: RunModels, base: Likelihoods) -> TargetDistributions:
    is_as_sure_as_base = models.config.objective.target.source == "holdout"
    unseen_nll = float(base["holdout"].nll_sum.sum() / base["holdout"].num_labels.sum()) if is_as_sure_as_base else 0.0
    return target_distributions(
        models.pretrained,
        models.sets.forget,
        _unseen(models.sets) if is_as_sure_as_base else None,
        unseen_nll=unseen_nll,
        model=models.pretrained_sha256,
        batch_size=models.config.evaluation.batch_size,
        progress=models.progress,
    )


def base_likelihoods(
    models: RunModels, objective: Objective, base: LoadedModel, scores: ModelScores, sha256: str
) -> Likelihoods:
    """Likelihoods under the base model: those that were measured, and those of a set that targets alone come from.

    Where a published protocol measures in another way than models are trained, all that is needed is measured again.

    Args:
        models: The models of the run.
        objective: Says whether targets are needed.
        base: The base model.
        scores: Its values on the measured sets.
        sha256: Its hash.
    """
    sets, settings = models.sets.by_name, models.config.evaluation
    found: Likelihoods = {}
    missing: dict[str, ExampleSet[Any]] = {}
    for name in ("forget", "holdout"):
        if settings.compat is None and name in scores.sets:
            found[name] = scores.sets[name].likelihood
        elif name in sets and objective.needs:
            missing[name] = sets[name]
    if objective.needs_targets and TARGETS in sets and models.config.objective.target.source == "holdout":
        missing["holdout"] = sets[TARGETS]
    if missing:
        found |= reference_likelihoods(
            lambda: base,
            missing,
            model=sha256,
            with_tokens="label_targets" in objective.needs,
            batch_size=settings.batch_size,
        )
    return found


def pretrained_likelihoods(models: RunModels, objective: Objective) -> Likelihoods:
    """What the pretrained model says about the sets that targets come from; nothing if they do not come from it."""
    target = models.config.objective.target
    if objective.needs.isdisjoint({"target", "label_targets"}) or not target.needs_pretrained:
        return {}
    sets = {"forget": models.sets.forget}
    if target.source == "holdout":
        sets["holdout"] = _unseen(models.sets)
    return reference_likelihoods(
        models.pretrained,
        sets,
        model=models.pretrained_sha256,
        with_tokens="label_targets" in objective.needs,
        batch_size=models.config.evaluation.batch_size,
    )


def _unseen(sets: Sets) -> ExampleSet[Any]:
    """The unseen examples that targets come from."""
    return sets.by_name[TARGETS if TARGETS in sets.by_name else "holdout"]
