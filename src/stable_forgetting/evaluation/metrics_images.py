"""Metrics of image classifiers: accuracies, comparisons with base and retain model, attacks, and a linear probe."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from stable_forgetting.evaluation.classification import h_score, js_divergence, tug_of_war, tug_of_war_interval
from stable_forgetting.evaluation.metric import Measurement, Metric, MetricInputs, Need
from stable_forgetting.evaluation.patterns import Means
from stable_forgetting.evaluation.statistics import Floats, mean
from stable_forgetting.evaluation.trained_attacks import (
    cross_validated_calls,
    draw_balanced,
    regression_calls,
    svc_calls,
)

_TOW_SETS = ("forget", "retain", "retain_test")


def _tow(inputs: MetricInputs) -> Measurement:
    pairs = [inputs.pairs(name, "correct") for name in _TOW_SETS]
    interval = None
    if inputs.num_resamples:
        interval = tug_of_war_interval(*pairs, num_resamples=inputs.num_resamples, seed=inputs.seed)
    return Measurement(float(tug_of_war(*pairs)), sum(map(len, pairs)), interval)


def _h_score(inputs: MetricInputs) -> Measurement:
    forget = inputs.pairs("forget_test", "correct", "base")
    kept = inputs.column("retain_test", "correct")
    value, count = float(h_score(forget, kept)), len(forget) + len(kept)
    details = {"drop": float(forget[:, 1].mean() - forget[:, 0].mean()), "kept": float(kept.mean())}
    return Measurement(value, count, inputs.interval(forget, kept, statistic=h_score), details)


def _js(set_name: str) -> Metric:
    def measure(inputs: MetricInputs) -> Measurement:
        own, retain = (inputs.column(set_name, "class_log_probabilities", model) for model in ("own", "retain"))
        if own.shape[1] != retain.shape[1]:
            reason = f"the model tells {own.shape[1]} classes apart, the retain model {retain.shape[1]}"
            return Measurement(None, len(own), reason=reason)
        values = js_divergence(own, retain)
        return Measurement(float(mean(values)), len(values), inputs.interval(values, statistic=mean))

    return Metric(
        name=f"{set_name}_js",
        tasks=("image",),
        direction="lower",
        needs=tuple(Need(set_name, "class_log_probabilities", model) for model in ("own", "retain")),
        range=(0.0, math.log(2)),
        description="Jensen-Shannon divergence in nats between this and the retain model's probabilities of the "
        f"classes. Mean over the {set_name} set.",
        function=measure,
    )


def _attack(name: str, column: str, score: Callable[[Floats, Floats, Floats], Floats], description: str) -> Metric:
    """An attack trained on retain (members) and retain test images (non-members), and let loose on the forget set.

    Its interval is over the forget set, for the attack as it was trained.
    """

    def measure(inputs: MetricInputs) -> Measurement:
        known = inputs.column("retain", column), inputs.column("retain_test", column)
        members, nonmembers = draw_balanced(*known, seed=inputs.seed)
        called = score(members, nonmembers, inputs.column("forget", column))
        details = {"num_members": float(len(members)), "num_nonmembers": float(len(nonmembers))}
        return replace(inputs.share(called), details=details)

    return Metric(
        name=name,
        tasks=("image",),
        direction="retain",
        needs=tuple(Need(set_name, column) for set_name in ("forget", "retain", "retain_test")),
        range=(0.0, 1.0),
        description=description,
        function=measure,
    )


def _called_nonmember(members: Floats, nonmembers: Floats, judged: Floats) -> Floats:
    return 1 - svc_calls(members, nonmembers, judged)


def _balanced_mean(members: Floats, nonmembers: Floats) -> Floats:
    return (mean(members) + mean(nonmembers)) / 2


def _mia_loss(inputs: MetricInputs) -> Measurement:
    """Share of right calls; its interval is over the examples, for the attacks as they were trained."""
    members, nonmembers = draw_balanced(
        inputs.column("forget", "nll"), inputs.column("holdout", "nll"), seed=inputs.seed
    )
    count = len(members)
    details = {"num_members": float(count), "num_nonmembers": float(count)}
    if count == 1:
        return Measurement(None, 2, details=details, reason="needs two forget and two holdout examples at least")
    called, wrongly_called = cross_validated_calls(members, nonmembers, seed=inputs.seed)
    right = called, 1 - wrongly_called
    interval = inputs.interval(*right, statistic=_balanced_mean)
    return Measurement(float(_balanced_mean(*right)), 2 * count, interval, details)


_ACCURACY = Means(
    "accuracy",
    "correct",
    {"forget": "retain", "forget_test": "retain", "retain": "higher", "retain_test": "higher"},
    (0.0, 1.0),
    "Whether the most likely class is the right one.",
    tasks=("image",),
    flags=True,
)

_FORGOTTEN_BEFORE = Means(
    "accuracy",
    "correct",
    {"forgotten_before": "retain"},
    (0.0, 1.0),
    "Whether the most likely class is the right one.",
    tasks=("image",),
    listed_with=("forgotten_before",),
    flags=True,
)

_PROBE = Means(
    "accuracy",
    "probe_correct",
    {"forget_test": "retain", "retain_test": "higher"},
    (0.0, 1.0),
    "Whether a linear probe on the model's features, trained on forget and retain set, finds the right class.",
    tasks=("image",),
    prefix="probe_",
    flags=True,
)

IMAGE_METRICS: tuple[Metric, ...] = (
    *_ACCURACY.metrics(),
    *_FORGOTTEN_BEFORE.metrics(),
    Metric(
        name="tow",
        tasks=("image",),
        direction="higher",
        needs=tuple(Need(name, "correct", model) for model in ("own", "retain") for name in _TOW_SETS),
        range=(0.0, 1.0),
        description="Product over forget, retain and retain test images of 1 - |accuracy - the retain model's|.",
        function=_tow,
    ),
    Metric(
        name="h_score",
        tasks=("image",),
        direction="higher",
        needs=(
            Need("forget_test", "correct"),
            Need("retain_test", "correct"),
            Need("forget_test", "correct", "base"),
        ),
        range=(0.0, 1.0),
        description="2 D R / (D + R), D the drop of the accuracy on forget test images from the base model's, at least "
        "0, and R the accuracy on retain test images.",
        function=_h_score,
    ),
    _js("forget"),
    _js("forget_test"),
    *_PROBE.metrics(),
    _attack(
        "mia_entropy",
        "entropy",
        regression_calls,
        "Share of the forget set that a logistic regression on the entropy over the classes calls members, trained on "
        "as many retain (members) as retain test images.",
    ),
    _attack(
        "mia_confidence",
        "probability",
        _called_nonmember,
        "Share of the forget set that a support vector machine on the probability of the right class calls "
        "non-members, trained on as many retain (members) as retain test images.",
    ),
    Metric(
        name="mia_loss",
        tasks=("image",),
        direction="retain",
        needs=(Need("forget", "nll"), Need("holdout", "nll")),
        range=(0.0, 1.0),
        description="Share of as many forget and holdout examples that logistic regressions on the loss tell apart, "
        "each example judged by one that has not seen it; 0.5 where the loss tells nothing.",
        function=_mia_loss,
    ),
)
"""In the order in which they are shown."""
