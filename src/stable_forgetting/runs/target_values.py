"""What the forget term of a run needs, and what that is made of: likelihoods of forget and unseen examples."""

from __future__ import annotations

from functools import partial
from typing import Any

from stable_forgetting.data.examples import ExampleSet
from stable_forgetting.data.ragged import RowValues
from stable_forgetting.evaluation import LikelihoodScores, ModelScores
from stable_forgetting.models.load import LoadedModel
from stable_forgetting.objectives import Objective
from stable_forgetting.runs.constants import forget_constants
from stable_forgetting.runs.likelihoods import Measuring, reference_likelihoods
from stable_forgetting.runs.models import RunModels
from stable_forgetting.runs.sets import TARGETS, Sets
from stable_forgetting.runs.target_distributions import target_distributions
from stable_forgetting.training.surroundings import set_aside

Likelihoods = dict[str, LikelihoodScores]
"""By the names that `forget_constants` knows: ``forget`` and, of unseen examples, ``holdout``."""


def constants_of_run(
    models: RunModels, objective: Objective, base: LoadedModel, scores: ModelScores, sha256: str
) -> dict[str, RowValues]:
    """Constants of each forget example; see `forget_constants`.

    Args:
        models: The models of the run.
        objective: Says what is needed.
        base: The base model.
        scores: Its values on the measured sets.
        sha256: Its hash.
    """
    of_base = base_likelihoods(models, objective, base, scores, sha256)
    with set_aside(base.model):
        of_pretrained = pretrained_likelihoods(models, objective)
    return forget_constants(
        objective,
        base=of_base,
        pretrained=of_pretrained,
        target=models.config.objective.target,
        distributions=partial(
            target_distributions,
            model=base.model,
            task=base.task,
            forget=models.sets.forget,
            batch_size=models.config.evaluation.batch_size,
            progress=models.progress,
        ),
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
        found |= reference_likelihoods(lambda: base, missing, _how(models, objective, "base model"), model=sha256)
    return found


def pretrained_likelihoods(models: RunModels, objective: Objective) -> Likelihoods:
    """What the pretrained model says about the sets that targets come from; nothing if they do not come from it."""
    target = models.config.objective.target
    if not objective.needs_targets or not target.needs_pretrained:
        return {}
    sets = {"forget": models.sets.forget}
    if target.source == "holdout":
        sets["holdout"] = _unseen(models.sets)
    how = _how(models, objective, "pretrained model")
    return reference_likelihoods(models.pretrained, sets, how, model=models.pretrained_sha256)


def _how(models: RunModels, objective: Objective, description: str) -> Measuring:
    by_label = "label_targets" in objective.needs
    return Measuring(by_label, models.config.evaluation.batch_size, models.progress, description)


def _unseen(sets: Sets) -> ExampleSet[Any]:
    """The unseen examples that targets come from."""
    return sets.by_name[TARGETS if TARGETS in sets.by_name else "holdout"]
