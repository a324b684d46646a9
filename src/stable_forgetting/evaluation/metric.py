"""What a metric is made of: its needs, its inputs, and its outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from stable_forgetting.evaluation.columns import column
from stable_forgetting.evaluation.scores import TaskName
from stable_forgetting.evaluation.statistics import Floats, Interval, Statistic, bootstrap_interval
from stable_forgetting.evaluation.values import Definitions, SetValues
from stable_forgetting.records import Direction
from stable_forgetting.wilson import wilson_interval

ModelOfNeed = Literal["own", "retain", "base"]
"""The measured model itself, the retain model, or the base model."""


@dataclass(frozen=True)
class Need:
    """Something a metric cannot do without.

    Args:
        set_name: Example set.
        column: One number per example, by a name in `COLUMNS`.
        model: The measured model itself, the retain model, or the base model.
    """

    set_name: str
    column: str = "nll"
    model: ModelOfNeed = "own"


@dataclass(frozen=True, eq=False)
class MetricInputs:
    """What a metric is computed from.

    Args:
        own: Sets of the measured model.
        retain: Sets of the retain model; empty if there is none.
        num_resamples: Bootstrap resamples; 0: no intervals.
        seed: Of the bootstrap.
        definitions: Choices between published definitions.
        base: Sets of the base model; empty if they are not known.
    """

    own: Mapping[str, SetValues]
    retain: Mapping[str, SetValues]
    num_resamples: int
    seed: int
    definitions: Definitions
    base: Mapping[str, SetValues] = field(default_factory=dict)
    _known: dict[Need, Floats] = field(default_factory=dict, repr=False)

    def column(self, set_name: str, name: str, model: ModelOfNeed = "own") -> Floats:
        """A column, (N,) or a row for each example, computed once however many metrics need it.

        Raises:
            DataError: It cannot be had; the message says why.
        """
        need = Need(set_name, name, model)
        if need not in self._known:
            self._known[need] = column(self.sets(model)[set_name], name, self.definitions)
        return self._known[need]

    def pairs(self, set_name: str, name: str, other: ModelOfNeed = "retain") -> Floats:
        """A column of this and of another model side by side, (N, 2), so that resamples keep them together."""
        return np.stack([self.column(set_name, name), self.column(set_name, name, other)], axis=1)

    def sets(self, model: ModelOfNeed) -> Mapping[str, SetValues]:
        """Sets of one of the models."""
        found: Mapping[str, SetValues] = getattr(self, model)
        return found

    def interval(self, *groups: Floats, statistic: Statistic) -> Interval | None:
        """Bootstrap interval of a statistic over the examples of each group."""
        if self.num_resamples == 0:
            return None
        return bootstrap_interval(*groups, statistic=statistic, num_resamples=self.num_resamples, seed=self.seed)

    def share(self, flags: Floats) -> Measurement:
        """Share of the examples with a 1, (N,) of 0 and 1 (0.5 where undecided), with its score interval.

        A bootstrap has no width where all examples are alike, which would make every difference to them a clear one.
        """
        value, count = float(flags.mean()), len(flags)
        interval = Interval(*wilson_interval(value, count)) if self.num_resamples else None
        return Measurement(value, count, interval)


@dataclass(frozen=True)
class Measurement:
    """Value, number of examples and interval; or no value and the reason."""

    value: float | None
    count: int
    interval: Interval | None = None
    details: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None


@dataclass(frozen=True)
class Metric:
    """One metric.

    Args:
        name: Name in records and reports.
        tasks: Kinds of models that have it.
        direction: Which way is better; ``"retain"``: close to the retain model's value.
        needs: What has to be there; else it is not available.
        range: Smallest and largest value.
        description: The definition in one sentence.
        function: Computes it.
        listed_with: If given, the metric is shown, with or without a value, only for models of which one of these parts
            was measured (see `ModelValues.parts`): a run on plain questions need not read that it is no benchmark.
    """

    name: str
    tasks: tuple[TaskName, ...]
    direction: Direction
    needs: tuple[Need, ...]
    range: tuple[float, float]
    description: str
    function: Callable[[MetricInputs], Measurement]
    listed_with: tuple[str, ...] = ()

    @property
    def compares(self) -> bool:
        """Whether it says how like the retain model a model is, so that the retain model has no value of its own."""
        return self.direction != "retain" and any(need.model == "retain" for need in self.needs)

    @property
    def starts_from_base(self) -> bool:
        """Whether it says how far a model is from the base model, so that the base model has no value of its own."""
        return any(need.model == "base" for need in self.needs)

    @property
    def keeps(self) -> bool:
        """Whether it says how much of the rest is left: it has a best value that no other model decides on."""
        return self.direction != "retain" and not self.compares and not self.starts_from_base
