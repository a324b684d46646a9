"""The metrics of the TOFU benchmark; they are shown for models that were measured on some part of it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from stable_forgetting.evaluation.metric import Measurement, Metric, MetricInputs, ModelOfNeed, Need
from stable_forgetting.evaluation.patterns import Means, ks_metric
from stable_forgetting.evaluation.statistics import Floats, mean
from stable_forgetting.evaluation.tofu import model_utility, utility_kept

_PARTS = ("perturbed", "real_authors", "world_facts")
_GENERAL_SETS = ("real_authors", "world_facts")

UTILITY_PARTS: Mapping[str, tuple[str, str, str]] = {
    "retain": ("probability", "rouge_l_recall", "truth_ratio_score"),
    "real_authors": ("normalized_probability", "rouge_l_recall", "answer_truth_ratio_score"),
    "world_facts": ("normalized_probability", "rouge_l_recall", "answer_truth_ratio_score"),
}
"""The nine columns of model utility, by set."""


def _utility_columns(inputs: MetricInputs, model: ModelOfNeed = "own") -> dict[str, Floats]:
    return {
        name: np.stack([inputs.column(name, column, model) for column in columns], axis=1)
        for name, columns in UTILITY_PARTS.items()
    }


def _utility_needs(model: ModelOfNeed = "own") -> tuple[Need, ...]:
    return tuple(Need(name, column, model) for name, columns in UTILITY_PARTS.items() for column in columns)


def _model_utility(inputs: MetricInputs) -> Measurement:
    sets = _utility_columns(inputs)
    details = {
        f"{name}_{part}": float(mean(columns[:, index]))
        for name, columns in sets.items()
        for index, part in enumerate(("probability", "rouge_l_recall", "truth_ratio_score"))
    }
    return Measurement(
        float(model_utility(*sets.values())),
        sum(map(len, sets.values())),
        inputs.interval(*sets.values(), statistic=model_utility),
        details,
    )


def _utility_kept(inputs: MetricInputs) -> Measurement:
    own, base = _utility_columns(inputs), _utility_columns(inputs, "base")
    pairs = [np.concatenate([own[name], base[name]], axis=1) for name in own]  # resampled together
    value, count = float(utility_kept(*pairs)), sum(map(len, pairs))
    if not np.isfinite(value):
        return Measurement(None, count, reason="the base model's utility is 0, so there is nothing to be a share of")
    return Measurement(value, count, inputs.interval(*pairs, statistic=utility_kept))


_MEANS = (
    Means(
        "truth_ratio",
        "forget_truth_ratio_score",
        {"forget": "retain"},
        (0.0, 1.0),
        "min(R, 1/R), R the probability of wrong answers over that of the paraphrased right one.",
        listed_with=_PARTS,
    ),
    Means(
        "truth_ratio",
        "truth_ratio_score",
        {"retain": "higher"},
        (0.0, 1.0),
        "max(0, 1 − R), R the probability of wrong answers over that of the paraphrased right one.",
        listed_with=_PARTS,
    ),
    Means(
        "truth_ratio",
        "answer_truth_ratio_score",
        dict.fromkeys(_GENERAL_SETS, "higher"),
        (0.0, 1.0),
        "max(0, 1 − R), R the probability of wrong answers over that of the right one.",
        listed_with=_PARTS,
    ),
    Means(
        "probability",
        "normalized_probability",
        dict.fromkeys(_GENERAL_SETS, "higher"),
        (0.0, 1.0),
        "Probability of the right answer as a share of that of all answers to choose from.",
        listed_with=_PARTS,
    ),
    Means(
        "rouge_l_recall",
        "rouge_l_recall",
        dict.fromkeys(_GENERAL_SETS, "higher"),
        (0.0, 1.0),
        "Share of the right answer's words in the longest common subsequence with the greedy answer, words stemmed.",
        listed_with=_PARTS,
    ),
)

TOFU_METRICS: tuple[Metric, ...] = (
    ks_metric(
        "forget_quality",
        "truth_ratio",
        description="p-value of a two-sample KS test between the truth ratios of this and of the retain model on the "
        "forget set; near 1 where the test cannot tell them apart.",
        listed_with=_PARTS,
    ),
    *(metric for means in _MEANS for metric in means.metrics()),
    Metric(
        name="model_utility",
        tasks=("language",),
        direction="higher",
        needs=_utility_needs(),
        range=(0.0, 1.0),
        description="Harmonic mean of probability, ROUGE-L recall and truth ratio score on retain set, real authors "
        "and world facts; 0 if any of the nine is 0.",
        function=_model_utility,
        listed_with=_PARTS,
    ),
    Metric(
        name="model_utility_kept",
        tasks=("language",),
        direction="higher",
        needs=(*_utility_needs(), *_utility_needs("base")),
        range=(0.0, math.inf),
        description="Model utility as a share of the base model's; the interval compares both on the same questions.",
        function=_utility_kept,
        listed_with=_PARTS,
    ),
)
"""In the order in which they are shown."""
