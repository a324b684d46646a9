"""The table of metrics: what each is, what it needs, and how it is computed from per-example values."""

from __future__ import annotations

import math

import numpy as np

from stable_forgetting.evaluation.metric import Measurement, Metric, MetricInputs, Need
from stable_forgetting.evaluation.metrics_images import IMAGE_METRICS
from stable_forgetting.evaluation.metrics_membership import MEMBERSHIP_METRICS
from stable_forgetting.evaluation.metrics_tofu import TOFU_METRICS
from stable_forgetting.evaluation.patterns import Means, ks_metric
from stable_forgetting.evaluation.statistics import Interval, ratio_of_sums

_LARGEST_EXPONENT = 700.0
"""exp of more is no finite number."""


def _perplexity(inputs: MetricInputs) -> Measurement:
    pairs = np.stack([inputs.column("test", name) for name in ("nll_sum", "num_labels")], axis=1)
    nll = float(ratio_of_sums(pairs))
    interval = inputs.interval(pairs, statistic=ratio_of_sums)
    details = {"nll_per_token": nll, "num_tokens": float(pairs[:, 1].sum())}
    if max([nll, *(interval or ())]) > _LARGEST_EXPONENT:
        reason = f"too large for a number: the NLL is {nll:.1f} nats per token"
        return Measurement(None, len(pairs), details=details, reason=reason)
    bounds = interval and Interval(math.exp(interval.low), math.exp(interval.high))
    return Measurement(math.exp(nll), len(pairs), bounds, details)


_MEANS = (
    Means(
        "probability",
        "probability",
        {"forget": "retain", "retain": "higher", "holdout": "retain"},
        (0.0, 1.0),
        "exp(-S/n): probability of the answer per label, from its summed NLL S and its n labels.",
    ),
    Means(
        "probability",
        "probability",
        {"forgotten_before": "retain"},
        (0.0, 1.0),
        "exp(-S/n): probability of the answer per label, from its summed NLL S and its n labels.",
        listed_with=("forgotten_before",),
    ),
    Means(
        "nll",
        "nll",
        {"forget": "retain", "retain": "lower"},
        (0.0, math.inf),
        "S/n: NLL per label in nats.",
        tasks=("language", "image"),
    ),
    Means(
        "rouge_l_recall",
        "rouge_l_recall",
        {"forget": "retain", "retain": "higher"},
        (0.0, 1.0),
        "Share of the right answer's words in the longest common subsequence with the greedy answer, words stemmed.",
    ),
    Means(
        "exact_memorization",
        "exact_memorization",
        {"forget": "retain", "retain": "higher"},
        (0.0, 1.0),
        "Share of labels that are the most likely token, given the right tokens before them.",
    ),
    Means(
        "extraction_strength",
        "extraction_strength",
        {"forget": "retain", "retain": "higher"},
        (0.0, 1.0),
        "1 - k/n, k the smallest index from which every label is the most likely token.",
    ),
)

_SINGLE = (
    Metric(
        name="test_perplexity",
        tasks=("language",),
        direction="lower",
        needs=(Need("test", "nll_sum"), Need("test", "num_labels")),
        range=(1.0, math.inf),
        description="exp of the NLL per token over all tokens of the test texts.",
        function=_perplexity,
    ),
    *MEMBERSHIP_METRICS,
    ks_metric(
        "forget_nll_ks",
        "nll",
        tasks=("language", "image"),
        description="p-value of a two-sample KS test between the NLLs per label of this and of the retain model on the "
        "forget set; near 1 where the test cannot tell them apart.",
    ),
    *IMAGE_METRICS,
    *TOFU_METRICS,
)

METRICS: dict[str, Metric] = {
    metric.name: metric for metric in [*(m for means in _MEANS for m in means.metrics()), *_SINGLE]
}
"""Every metric by name, in the order in which they are shown."""
