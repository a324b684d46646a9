"""Membership attacks on the forget set, and privacy leakage."""

from __future__ import annotations

import math
from functools import partial

from stable_forgetting.evaluation.membership import privacy_leakage
from stable_forgetting.evaluation.metric import Measurement, Metric, MetricInputs, Need
from stable_forgetting.evaluation.patterns import attack_metric
from stable_forgetting.evaluation.privacy import auc_of_lower
from stable_forgetting.evaluation.statistics import Floats

_WITH_HOLDOUT = ("holdout",)
_SETS = ("forget", "holdout")


def _both_models(inputs: MetricInputs, column: str) -> list[Floats]:
    """Column of forget and holdout set under this and the retain model, each (N, 2)."""
    return [inputs.pairs(name, column) for name in _SETS]


def _counts(members: Floats, nonmembers: Floats) -> dict[str, float]:
    return {"num_members": float(len(members)), "num_nonmembers": float(len(nonmembers))}


def _mia_reference(inputs: MetricInputs) -> Measurement:
    members, nonmembers = (pairs[:, 0] - pairs[:, 1] for pairs in _both_models(inputs, "nll"))
    interval = inputs.interval(members, nonmembers, statistic=auc_of_lower)
    value = float(auc_of_lower(members, nonmembers))
    return Measurement(value, len(members) + len(nonmembers), interval, _counts(members, nonmembers))


def _privacy_leakage(inputs: MetricInputs) -> Measurement:
    members, nonmembers = _both_models(inputs, "min_k")
    leakage = partial(privacy_leakage, compat=inputs.definitions.compat)
    count, value = len(members) + len(nonmembers), float(leakage(members, nonmembers))
    details = _counts(members, nonmembers)
    details["auc"] = float(auc_of_lower(members[:, 0], nonmembers[:, 0]))
    details["auc_retain"] = float(auc_of_lower(members[:, 1], nonmembers[:, 1]))
    if not math.isfinite(value):
        reason = "the retain model separates the two sets fully, so that its AUC cannot be divided by"
        return Measurement(None, count, details=details, reason=reason)
    interval = inputs.interval(members, nonmembers, statistic=leakage)
    if interval is not None and not all(map(math.isfinite, interval)):
        interval = None
    return Measurement(value, count, interval, details)


def _needs_of_both(column: str) -> tuple[Need, ...]:
    return tuple(Need(name, column, model) for model in ("own", "retain") for name in _SETS)


MEMBERSHIP_METRICS: tuple[Metric, ...] = (
    attack_metric(
        "mia_loss_auc",
        "nll",
        tasks=("language", "image"),
        description="Probability that a forget example has a lower NLL per label than a holdout example; "
        "0.5 where the loss tells nothing, 1 where the forget set is still known.",
    ),
    attack_metric(
        "mia_zlib_auc",
        "zlib",
        description="The same for the NLL per label over the answer's length after zlib.",
        listed_with=_WITH_HOLDOUT,
    ),
    Metric(
        name="mia_reference_auc",
        tasks=("language",),
        direction="retain",
        needs=_needs_of_both("nll"),
        range=(0.0, 1.0),
        description="The same for the NLL per label minus the retain model's; 0.5 for the retain model itself.",
        function=_mia_reference,
        listed_with=_WITH_HOLDOUT,
    ),
    attack_metric(
        "mia_min_k_auc",
        "min_k",
        description="The same for minus the mean log-probability of the 40 % least likely labels.",
        listed_with=_WITH_HOLDOUT,
    ),
    attack_metric(
        "mia_min_k_plus_plus_auc",
        "min_k_plus_plus",
        description="The same with each log-probability standardised under the model's own next-token distribution.",
        listed_with=_WITH_HOLDOUT,
    ),
    attack_metric(
        "mia_gradient_norm_auc",
        "gradient_norm",
        description="The same for the norm of the gradient of the example's NLL per label.",
        listed_with=("gradient_norm",),
    ),
    Metric(
        name="privacy_leakage",
        tasks=("language",),
        direction="retain",
        needs=_needs_of_both("min_k"),
        range=(-100.0, math.inf),
        description="100 (A − A of the retain model) / A of the retain model, A = 1 − mia_min_k_auc; −100 where the "
        "forget set is still known, 0 as the retain model, above 0 where it stands out by being unlikely.",
        function=_privacy_leakage,
        listed_with=_WITH_HOLDOUT,
    ),
)
"""In the order in which they are shown."""
