"""What the forget term of a run needs, and what that is made of: likelihoods of forget and unseen examples."""

from __future__ import annotations

from functools import partial
from typing import Any

from stable_forgetting.data.examples import ExampleSet
from stable_forgetting.data.ragged import RowValues
from stable_forgetting.evaluation import LikelihoodScores, ModelScores
from stable_forgetting.models.load import LoadedModel
from stable_forgetting.objectives import Objective
from stable_forgetting.runs.constants import ends_of, forget_constants
from stable_forgetting.runs.likelihoods import Measuring, reference_likelihoods
from stable_forgetting.runs.models import RunModels
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
        ends=ends_of(_sources(models, objective)),
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
    found: Likelihoods = {}
    missing: dict[str, ExampleSet[Any]] = {}
    measured = scores.sets if models.config.evaluation.compat is None else {}
    for name, examples in _sources(models, objective).items():
        if name in measured and examples is models.sets.by_name.get(name):
            found[name] = measured[name].likelihood
        elif objective.needs:
            missing[name] = examples
    if missing:
        found |= reference_likelihoods(lambda: base, missing, _how(models, objective, "base model"), model=sha256)
    return found


def pretrained_likelihoods(models: RunModels, objective: Objective) -> Likelihoods:
    """What the pretrained model says about the sets that targets come from; nothing if they do not come from it."""
    target = models.config.objective.target
    if not objective.needs_targets or not target.needs_pretrained:
        return {}
    sets = _sources(models, objective)
    if target.source != "holdout":
        sets.pop("holdout", None)
    how = _how(models, objective, "pretrained model")
    return reference_likelihoods(models.pretrained, sets, how, model=models.pretrained_sha256)


def _how(models: RunModels, objective: Objective, description: str) -> Measuring:
    by_label = "label_targets" in objective.needs
    return Measuring(by_label, models.config.evaluation.batch_size, models.progress, description)


def _sources(models: RunModels, objective: Objective) -> dict[str, ExampleSet[Any]]:
    """What targets come from: ``forget``, and the unseen examples, if there are any, by the name ``holdout``."""
    sets = models.sets.by_name
    asked = objective.needs_targets and models.config.objective.target.source == "holdout"
    unseen = models.sets.unseen if asked else sets.get("holdout")
    return {"forget": models.sets.forget, **({} if unseen is None else {"holdout": unseen})}
