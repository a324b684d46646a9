"""What the forget term needs of each forget example: constants of the base model, computed once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stable_forgetting.config import LEAST_TARGET, TargetConfig
from stable_forgetting.data.examples import ExampleSet, LanguageExample
from stable_forgetting.data.ragged import RowValues
from stable_forgetting.errors import ConfigError
from stable_forgetting.evaluation import LikelihoodScores
from stable_forgetting.evaluation.likelihood_scores import Floats, Ints
from stable_forgetting.objectives import Objective
from stable_forgetting.objectives.targets import holdout_targets, places_among, positive_targets, ranks
from stable_forgetting.runs.target_distributions import WantedEntropies

_LEAST_OF_LABEL = 1e-7
"""About what single precision makes of a probability that is not quite 1; lower targets of labels are raised to it."""

_LEAST_OF_EXAMPLE = LEAST_TARGET / 2
"""Lower targets of single examples are raised to it: their term is divided by them, and would outweigh all others."""

_ALL = -1
"""All kinds of labels together."""

_LEAST_OF_A_KIND = 20
"""Unseen labels of a kind from which on they are a distribution of their own."""

_PARTS_OF_A_GROUP = 3
"""Labels with low, middling and high targets have other tokens of their own sureness."""

_LEAST_LEFT = 1e-3
"""Probability beside the label from which on single precision tells how it is divided."""

Likelihoods = Mapping[str, LikelihoodScores]
"""Of the sets ``forget`` and ``holdout``, as far as they are needed and there."""

Ends = Mapping[str, npt.NDArray[np.bool_]]
"""Of each example of a set, whether its last label ends the answer, by the name of the set."""

Distributions = Callable[[Floats, WantedEntropies | None], Mapping[str, RowValues]]
"""From the targets of all labels, example after example, and how sure the model is to be of other tokens, to constants
of whole distributions."""


def forget_constants(
    objective: Objective,
    *,
    base: Likelihoods,
    pretrained: Likelihoods,
    target: TargetConfig,
    distributions: Distributions,
    ends: Ends,
) -> dict[str, RowValues]:
    """Constants by name, each with a row for each forget example.

    Args:
        objective: Says what is needed.
        base: The base model's likelihoods; may be empty if nothing is needed.
        pretrained: The pretrained model's likelihoods; may be empty if targets do not come from it.
        target: Where calibrated targets come from.
        distributions: Makes the constants of whole distributions from the targets of all labels, if it is asked.
        ends: What the last labels of the sets are; may be empty if there are no targets of labels.

    Returns:
        The constants that the objective's forget term needs; no others. What there is for each label is a row of an
        example, with zeros behind the last where a batch is taken.

    Raises:
        ConfigError: What the targets come from is missing, or makes no targets.
    """
    constants: dict[str, Floats] = {}
    if "reference_nll_sum" in objective.needs:
        constants["reference_nll_sum"] = base["forget"].nll_sum
    if "target" in objective.needs:
        of_examples = ({name: scores.nll for name, scores in model.items()} for model in (base, pretrained))
        constants["target"] = _far_enough(
            _targets(*of_examples, target=target, least=_LEAST_OF_EXAMPLE), whose="examples"
        )
    if "label_targets" not in objective.needs:
        return {**_tensors(constants)}
    groups = _groups_of_like(base, ends)
    targets = _label_targets(base, pretrained, target, groups)
    constants["label_targets"] = _padded(targets, base["forget"].num_labels)
    constants["mean_target"] = np.full(len(base["forget"]), targets.mean())
    if "target_probabilities" not in objective.needs:
        return {**_tensors(constants)}
    is_matched = target.source == "holdout" and target.matching == "quantiles"
    wanted = partial(_wanted_entropies, targets, base["holdout"], groups) if is_matched else None
    return {**_tensors(constants), **distributions(targets, wanted)}


def _tensors(constants: Mapping[str, Floats]) -> dict[str, Tensor]:
    return {name: torch.tensor(values, dtype=torch.float32) for name, values in constants.items()}


def ends_of(sets: Mapping[str, ExampleSet[Any]]) -> Ends:
    """What the last labels of some sets are, by the name of the set."""
    return {
        name: np.array([isinstance(example, LanguageExample) and example.has_end for example in examples])
        for name, examples in sets.items()
    }


def _groups_of_like(base: Likelihoods, ends: Ends) -> list[dict[str, npt.NDArray[np.bool_]]]:
    """Which labels of each set are compared with each other.

    First labels and ends have targets of their own: a model that never saw a fact still knows how answers begin and
    that they end, and one before finetuning knows neither.
    """
    kinds = {name: _kinds(scores, ends[name]) for name, scores in base.items()}
    asked = np.unique(kinds["forget"])
    apart = "holdout" not in base or all((kinds["holdout"] == kind).sum() >= _LEAST_OF_A_KIND for kind in asked)
    return [
        {name: (found == kind) | (kind == _ALL) for name, found in kinds.items()}
        for kind in (asked if apart else (_ALL,))
    ]


def _label_targets(
    base: Likelihoods, pretrained: Likelihoods, target: TargetConfig, groups: Sequence[Mapping[str, Any]]
) -> Floats:
    """Targets of all labels of the forget set.

    Raises:
        ConfigError: They are so low that nothing would be forgotten.
    """
    targets = np.empty(int(base["forget"].num_labels.sum()))
    for chosen in groups:
        of_kind = (
            {name: model[name].label_nll[labels] for name, labels in chosen.items() if name in model}
            for model in (base, pretrained)
        )
        targets[chosen["forget"]] = _targets(*of_kind, target=target, least=_LEAST_OF_LABEL)
    return _far_enough(targets, whose="labels")


def _wanted_entropies(
    targets: Floats, holdout: LikelihoodScores, groups: Sequence[Mapping[str, Any]], entropies: Floats
) -> Floats:
    """How sure the model is to be of other tokens at each forget label: quantiles of what it is at unseen labels.

    By the order of what it is at the forget labels, among those of about the same target, because a label and what is
    said in its place go together: where an unseen label is very unlikely, the model is mostly sure of another one.

    Args:
        targets: NLL that each forget label is to get, (P,), in nats.
        holdout: The base model's likelihoods of the unseen examples.
        groups: Which labels are compared with each other.
        entropies: Entropy of all tokens but the label under the base model at each forget label, (P,), in nats.

    Returns:
        The same as it should be, (P,), in nats; NaN where too few unseen labels can be compared with.
    """
    nll, unseen = holdout.label_nll, entropies_of_others(holdout)
    wanted = np.full(len(entropies), np.nan)
    for chosen in groups:
        edges = np.quantile(nll[chosen["holdout"]], np.linspace(0, 1, _PARTS_OF_A_GROUP + 1)[1:-1])
        for part in range(_PARTS_OF_A_GROUP):
            own, others = (
                chosen[name] & (np.digitize(values, edges) == part)
                for name, values in (("forget", targets), ("holdout", nll))
            )
            known = unseen[others & np.isfinite(unseen)]
            if len(known) >= _LEAST_OF_A_KIND:
                wanted[own] = np.quantile(known, ranks(entropies[own]))
    return wanted


def entropies_of_others(scores: LikelihoodScores) -> Floats:
    """Entropy of all tokens but the label at each label, (sum of n,), in nats; NaN where there is next to nothing left.

    H = h(p) + (1 − p) H_others, h: entropy of whether it is the label.
    """
    nll, whole = scores.label_nll, scores.label_entropy
    rest = -np.expm1(-nll)
    with np.errstate(divide="ignore", invalid="ignore"):
        of_others = (whole - nll * np.exp(-nll)) / rest + np.log(rest)
    return np.where(rest > _LEAST_LEFT, of_others.clip(min=0), np.nan)


def _far_enough(targets: Floats, *, whose: str) -> Floats:
    """The targets, unless they are so low that nothing would be forgotten."""
    if targets.mean() < LEAST_TARGET:
        raise ConfigError(
            f"The targets of the {whose} are {targets.mean():.2g} nats on average; they must be at least "
            f"{LEAST_TARGET}, or nothing is forgotten. Give a holdout set that the base model has not seen, or another "
            "pretrained_model."
        )
    return targets


def _kinds(scores: LikelihoodScores, has_end: npt.NDArray[np.bool_]) -> Ints:
    """Kind of each label, example after example: 1 for the first one of an example, 2 for its end, 0 for all others."""
    lasts = np.cumsum(scores.num_labels) - 1
    kinds = np.zeros(lasts[-1] + 1, dtype=np.int64)
    kinds[lasts[has_end]] = 2
    kinds[lasts + 1 - scores.num_labels] = 1
    return kinds


def _targets(
    base: Mapping[str, Floats], pretrained: Mapping[str, Floats], *, target: TargetConfig, least: float
) -> Floats:
    """Targets of forget examples or labels, from the NLLs of both sets under both models.

    What targets are made of is raised to `least`, as they have to be above 0; what only says an order is not.
    """
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
        return positive_targets(np.maximum(pretrained["forget"], least))
    if "holdout" not in base:
        raise ConfigError(
            "Calibrated forgetting stops where unseen data are, so it needs a holdout set: unseen examples of the same "
            "kind. Give one, or a target with source 'number' and its nll."
        )
    unseen = np.maximum(base["holdout"], least)
    if target.matching == "mean":
        return positive_targets(np.full(len(base["forget"]), unseen.mean()))
    is_placed = target.places == "pretrained"
    places = places_among(pretrained["forget"], pretrained["holdout"]) if is_placed else ranks(base["forget"])
    return holdout_targets(places, unseen)


def _padded(values: Floats, lengths: Ints) -> Floats:
    """Values of consecutive examples, (sum of lengths,), as rows with zeros behind the values: (N, longest)."""
    rows = np.zeros((len(lengths), lengths.max()))
    rows[np.arange(rows.shape[1]) < lengths[:, None]] = values
    return rows
