"""What a metric is made of: its needs, its inputs, and its outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from stable_forgetting.evaluation.scores import SetScores, TaskName
from stable_forgetting.evaluation.statistics import Interval
from stable_forgetting.records import Direction


@dataclass(frozen=True)
class Need:
    """Something a metric cannot do without.

    Args:
        set_name: Example set.
        what: Its likelihood or its answers.
        model: The measured model itself, or the retain model.
    """

    set_name: str
    what: Literal["likelihood", "answers"] = "likelihood"
    model: Literal["own", "retain"] = "own"


@dataclass(frozen=True, eq=False)
class MetricInputs:
    """What a metric is computed from.

    Args:
        own: Sets of the measured model.
        retain: Sets of the retain model; empty if there is none.
        num_resamples: Bootstrap resamples.
        seed: Of the bootstrap.
    """

    own: Mapping[str, SetScores]
    retain: Mapping[str, SetScores]
    num_resamples: int
    seed: int


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
    """

    name: str
    tasks: tuple[TaskName, ...]
    direction: Direction
    needs: tuple[Need, ...]
    range: tuple[float, float]
    description: str
    function: Callable[[MetricInputs], Measurement]

    @property
    def compares(self) -> bool:
        """Whether it compares with the retain model, which therefore has no value of its own."""
        return any(need.model == "retain" for need in self.needs)
