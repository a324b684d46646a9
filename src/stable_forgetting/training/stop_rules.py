"""Stop rules: when validations end a training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from transformers import TrainerCallback

from stable_forgetting.config import StopRule


class Measured(NamedTuple):
    """A validation metric after a step."""

    step: int
    value: float


@dataclass(frozen=True)
class Stop:
    """A stop rule: the training ends when a validation metric has passed a value, or has passed one and falls again.

    Args:
        metric: Name of the metric.
        above: Ends it when the metric is greater.
        below: Ends it when the metric is smaller.
        peak: Ends it when the metric's best is greater, and `patience` validations since then are below the best.
        patience: At least 1.
    """

    metric: str
    above: float = math.inf
    below: float = -math.inf
    peak: float = math.inf
    patience: int = 1

    @classmethod
    def of(cls, rule: StopRule) -> Stop:
        """The rule of a config."""
        given = {name: limit for name in ("above", "below", "peak") if (limit := getattr(rule, name)) is not None}
        return cls(rule.metric, **given, patience=rule.patience)

    def reason(self, found: Sequence[Measured]) -> str | None:
        """What is said of a training that this rule ends after the last of the validations so far; None: it goes on.

        It depends on nothing else, so that a resumed training ends where an uninterrupted one does.

        Args:
            found: The metric's values in order, at least one, all finite.
        """
        step, value = found[-1]
        if value > self.above:
            return f"stop rule: {self.metric} above {self.above:g} ({value:.4g} in step {step})"
        if value < self.below:
            return f"stop rule: {self.metric} below {self.below:g} ({value:.4g} in step {step})"
        if self.peak == math.inf:
            return None
        best = max(measured.value for measured in found)
        last_best = max(place for place, measured in enumerate(found) if measured.value == best)
        if best <= self.peak or len(found) - 1 - last_best < self.patience:
            return None
        return (
            f"stop rule: {self.metric} was above {self.peak:g} and falls again "
            f"({best:.4g} in step {found[last_best].step}, {value:.4g} in step {step})"
        )


class StopRules(TrainerCallback):  # type: ignore[misc]
    """Ends the training when one of the rules applies; `reason` then says which."""

    def __init__(self, rules: Sequence[Stop]) -> None:
        self.rules = tuple(rules)
        self.reason: str | None = None

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        """Try the rules in order on the validations so far, of which a checkpoint's state keeps those before it."""
        for rule in self.rules:
            name = f"eval_{rule.metric}"
            found = [Measured(entry["step"], entry[name]) for entry in state.log_history if name in entry]
            reason = rule.reason(found)
            if reason is not None:
                self.reason = reason
                control.should_training_stop = True
                control.should_save = True
                return


def wrong_peaks(rules: Sequence[StopRule], greater_is_better: Mapping[str, bool]) -> list[str]:
    """One sentence for each rule that waits for the peak of a metric of which less is better.

    Such a rule would end the training where the metric begins to get better.

    Args:
        rules: The rules.
        greater_is_better: For each metric whether more is better; rules of other metrics are passed over.
    """
    return [
        f"training.stop has 'peak' for {rule.metric}, but of that less is better: falling is what it should do. Use "
        "'above' or 'below', or another metric."
        for rule in rules
        if rule.peak is not None and not greater_is_better.get(rule.metric, True)
    ]
