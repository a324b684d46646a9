"""The three forms that most metrics have: a mean over a set, an attack's AUC, a KS test against the retain model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from stable_forgetting.evaluation.metric import Measurement, Metric, MetricInputs, Need
from stable_forgetting.evaluation.privacy import auc_of_lower
from stable_forgetting.evaluation.scores import TaskName
from stable_forgetting.evaluation.statistics import ks_test, mean
from stable_forgetting.records import Direction


@dataclass(frozen=True)
class Means:
    """A column whose mean over each of several sets is a metric.

    Args:
        suffix: The metric's name is the prefix, the set's name, an underscore, and this.
        column: Name of the column.
        sets: Sets that it is taken over, and which way is better on each.
        range: Smallest and largest value.
        description: What the value is.
        tasks: Kinds of models that have it.
        listed_with: See `Metric`.
        prefix: Put before the metric's name.
        flags: Whether the column has only 0 and 1, so that the mean is a share.
    """

    suffix: str
    column: str
    sets: Mapping[str, Direction]
    range: tuple[float, float]
    description: str
    tasks: tuple[TaskName, ...] = ("language",)
    listed_with: tuple[str, ...] = ()
    prefix: str = ""
    flags: bool = False

    def metrics(self) -> list[Metric]:
        """One metric for each set."""
        return [
            Metric(
                name=f"{self.prefix}{name}_{self.suffix}",
                tasks=self.tasks,
                direction=direction,
                needs=(Need(name, self.column),),
                range=self.range,
                description=f"{self.description} Mean over the {name} set.",
                function=_share_over(name, self.column) if self.flags else _mean_over(name, self.column),
                listed_with=self.listed_with,
            )
            for name, direction in self.sets.items()
        ]


def _mean_over(set_name: str, column: str) -> Callable[[MetricInputs], Measurement]:
    def measure(inputs: MetricInputs) -> Measurement:
        values = inputs.column(set_name, column)
        return Measurement(float(mean(values)), len(values), inputs.interval(values, statistic=mean))

    return measure


def _share_over(set_name: str, column: str) -> Callable[[MetricInputs], Measurement]:
    return lambda inputs: inputs.share(inputs.column(set_name, column))


def attack_metric(
    name: str,
    column: str,
    *,
    description: str,
    tasks: tuple[TaskName, ...] = ("language",),
    listed_with: tuple[str, ...] = (),
) -> Metric:
    """AUC of a membership attack: forget set (members, positive) against holdout set, a low column meaning a member."""

    def measure(inputs: MetricInputs) -> Measurement:
        members, nonmembers = (inputs.column(set_name, column) for set_name in ("forget", "holdout"))
        interval = inputs.interval(members, nonmembers, statistic=auc_of_lower)
        counts = {"num_members": float(len(members)), "num_nonmembers": float(len(nonmembers))}
        return Measurement(float(auc_of_lower(members, nonmembers)), sum(map(int, counts.values())), interval, counts)

    return Metric(
        name=name,
        tasks=tasks,
        direction="retain",
        needs=(Need("forget", column), Need("holdout", column)),
        range=(0.0, 1.0),
        description=description,
        function=measure,
        listed_with=listed_with,
    )


def ks_metric(
    name: str,
    column: str,
    *,
    description: str,
    tasks: tuple[TaskName, ...] = ("language",),
    listed_with: tuple[str, ...] = (),
) -> Metric:
    """P-value of a KS test between a column of this and of the retain model on the forget set; without interval."""

    def measure(inputs: MetricInputs) -> Measurement:
        own, retain = inputs.column("forget", column), inputs.column("forget", column, "retain")
        result = ks_test(own, retain)
        details = {"D": result.statistic, "log10_p": result.log10_p, "n": float(len(own))}
        return Measurement(result.p, len(own), details=details)

    return Metric(
        name=name,
        tasks=tasks,
        direction="higher",
        needs=(Need("forget", column), Need("forget", column, "retain")),
        range=(0.0, 1.0),
        description=description,
        function=measure,
        listed_with=listed_with,
    )
