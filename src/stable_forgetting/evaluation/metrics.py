"""The table of metrics: what each is, what it needs, and how it is computed from per-example values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stable_forgetting.evaluation.classification import correct, tug_of_war
from stable_forgetting.evaluation.metric import Measurement, Metric, MetricInputs, Need
from stable_forgetting.evaluation.privacy import auc_of_lower, membership_auc
from stable_forgetting.evaluation.scores import SetScores, TaskName
from stable_forgetting.evaluation.statistics import (
    Floats,
    Interval,
    bootstrap_interval,
    ks_test,
    mean,
    ratio_of_sums,
)
from stable_forgetting.evaluation.text import exact_memorization, extraction_strength, rouge_l_recall

_LARGEST_EXPONENT = 700.0
"""exp of more is no finite number."""


Column = Callable[[SetScores], Floats]
"""Value of each example of a set, (N,)."""


@dataclass(frozen=True)
class _Family:
    """A value per example, whose mean over each of several sets is a metric.

    Args:
        suffix: The metric's name is the set's name, an underscore, and this.
        column: Value of each example.
        sets: Sets that it is taken over.
        better: Which way is better on sets that are kept; on the others the retain model's value is the target.
        range: Smallest and largest value.
        description: What the value is.
        tasks: Kinds of models that have it.
        what: What it is computed from.
    """

    suffix: str
    column: Column
    sets: tuple[str, ...]
    better: Literal["higher", "lower"]
    range: tuple[float, float]
    description: str
    tasks: tuple[TaskName, ...] = ("language",)
    what: Literal["likelihood", "answers"] = "likelihood"

    def metrics(self) -> list[Metric]:
        """One metric for each set."""
        return [
            Metric(
                name=f"{name}_{self.suffix}",
                tasks=self.tasks,
                direction=self.better if name.startswith("retain") else "retain",
                needs=(Need(name, self.what),),
                range=self.range,
                description=f"{self.description} Mean over the {name} set.",
                function=_mean_over(name, self.column),
            )
            for name in self.sets
        ]


def _mean_over(set_name: str, column: Column) -> Callable[[MetricInputs], Measurement]:
    def measure(inputs: MetricInputs) -> Measurement:
        values = column(inputs.own[set_name])
        interval = bootstrap_interval(values, num_resamples=inputs.num_resamples, seed=inputs.seed)
        return Measurement(float(mean(values)), len(values), interval)

    return measure


def _rouge(scores: SetScores) -> Floats:
    pairs = zip(scores.references or (), scores.answers or (), strict=True)
    return np.array([rouge_l_recall(reference, answer) for reference, answer in pairs])


def _correct(scores: SetScores) -> Floats:
    predicted, label = scores.likelihood.predicted, scores.likelihood.label
    assert predicted is not None
    assert label is not None
    return correct(predicted, label)


def _perplexity(inputs: MetricInputs) -> Measurement:
    scores = inputs.own["test"].likelihood
    pairs = np.stack([scores.nll_sum, scores.num_labels], axis=1)
    nll = float(ratio_of_sums(pairs))
    interval = bootstrap_interval(pairs, statistic=ratio_of_sums, num_resamples=inputs.num_resamples, seed=inputs.seed)
    details = {"nll_per_token": nll, "num_tokens": float(scores.num_labels.sum())}
    if max([nll, *(interval or ())]) > _LARGEST_EXPONENT:
        reason = f"too large for a number: the NLL is {nll:.1f} nats per token"
        return Measurement(None, len(scores), details=details, reason=reason)
    bounds = interval and Interval(math.exp(interval.low), math.exp(interval.high))
    return Measurement(math.exp(nll), len(scores), bounds, details)


def _mia_loss_auc(inputs: MetricInputs) -> Measurement:
    members, nonmembers = (inputs.own[name].likelihood.nll for name in ("forget", "holdout"))
    interval = bootstrap_interval(
        members, nonmembers, statistic=auc_of_lower, num_resamples=inputs.num_resamples, seed=inputs.seed
    )
    counts = {"num_members": float(len(members)), "num_nonmembers": float(len(nonmembers))}
    return Measurement(membership_auc(members, nonmembers), len(members) + len(nonmembers), interval, counts)


def _forget_nll_ks(inputs: MetricInputs) -> Measurement:
    own, retain = (scores["forget"].likelihood for scores in (inputs.own, inputs.retain))
    result = ks_test(own.nll, retain.nll)
    details = {"D": result.statistic, "log10_p": result.log10_p, "n": float(len(own))}
    return Measurement(result.p, len(own), details=details)


_TOW_SETS = ("forget", "retain", "retain_test")


def _tow(inputs: MetricInputs) -> Measurement:
    pairs = [np.stack([_correct(inputs.own[name]), _correct(inputs.retain[name])], axis=1) for name in _TOW_SETS]
    interval = bootstrap_interval(*pairs, statistic=tug_of_war, num_resamples=inputs.num_resamples, seed=inputs.seed)
    return Measurement(float(tug_of_war(*pairs)), sum(map(len, pairs)), interval)


_FAMILIES = (
    _Family(
        "probability",
        lambda scores: scores.likelihood.probability,
        ("forget", "retain", "holdout"),
        "higher",
        (0.0, 1.0),
        "exp(-S/n): probability of the answer per label, from its summed NLL S and its n labels.",
    ),
    _Family(
        "nll",
        lambda scores: scores.likelihood.nll,
        ("forget", "retain"),
        "lower",
        (0.0, math.inf),
        "S/n: NLL per label in nats.",
        tasks=("language", "image"),
    ),
    _Family(
        "rouge_l_recall",
        _rouge,
        ("forget", "retain"),
        "higher",
        (0.0, 1.0),
        "Share of the right answer's words in the longest common subsequence with the greedy answer, words stemmed.",
        what="answers",
    ),
    _Family(
        "exact_memorization",
        lambda scores: exact_memorization(scores.likelihood),
        ("forget", "retain"),
        "higher",
        (0.0, 1.0),
        "Share of labels that are the most likely token, given the right tokens before them.",
    ),
    _Family(
        "extraction_strength",
        lambda scores: extraction_strength(scores.likelihood),
        ("forget", "retain"),
        "higher",
        (0.0, 1.0),
        "1 - k/n, k the smallest index from which every label is the most likely token.",
    ),
    _Family(
        "accuracy",
        _correct,
        ("forget", "forget_test", "retain", "retain_test"),
        "higher",
        (0.0, 1.0),
        "Whether the most likely class is the right one.",
        tasks=("image",),
    ),
)

_SINGLE = (
    Metric(
        name="test_perplexity",
        tasks=("language",),
        direction="lower",
        needs=(Need("test"),),
        range=(1.0, math.inf),
        description="exp of the NLL per token over all tokens of the test texts.",
        function=_perplexity,
    ),
    Metric(
        name="mia_loss_auc",
        tasks=("language", "image"),
        direction="retain",
        needs=(Need("forget"), Need("holdout")),
        range=(0.0, 1.0),
        description="Probability that a forget example has a lower NLL per label than a holdout example; "
        "0.5 where the loss tells nothing, 1 where the forget set is still known.",
        function=_mia_loss_auc,
    ),
    Metric(
        name="forget_nll_ks",
        tasks=("language", "image"),
        direction="higher",
        needs=(Need("forget"), Need("forget", model="retain")),
        range=(0.0, 1.0),
        description="p-value of a two-sample KS test between the NLLs per label of this and of the retain model on the "
        "forget set; near 1 where the test cannot tell them apart.",
        function=_forget_nll_ks,
    ),
    Metric(
        name="tow",
        tasks=("image",),
        direction="higher",
        needs=tuple(Need(name, model=model) for model in ("own", "retain") for name in _TOW_SETS),
        range=(0.0, 1.0),
        description="Product over forget, retain and retain test images of 1 - |accuracy - the retain model's|.",
        function=_tow,
    ),
)

METRICS: dict[str, Metric] = {
    metric.name: metric for metric in [*(m for family in _FAMILIES for m in family.metrics()), *_SINGLE]
}
"""Every metric by name, in the order in which they are shown."""
