"""What a training sees: its sets, and the constants of the forget examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stable_forgetting.data.examples import ExampleSet
from stable_forgetting.data.ragged import RowValues
from stable_forgetting.errors import ConfigError
from stable_forgetting.objectives import Objective

ForgetConstants = Mapping[str, RowValues]
"""What the forget term needs of each forget example, by name, in the order of the forget set: constants of the base
model, computed once."""

_OF_THE_OBJECTIVE = {"beta", "limit"}
"""What terms need of the objective itself, the same for all examples."""


@dataclass(frozen=True)
class Sets:
    """What a training sees.

    Args:
        forget: Forget set; None in finetuning.
        retain: Retain set; None if the objective has no retain term.
        constants: What the forget term needs of each forget example.
        unseen: Examples that the model has never seen; may be None if the objective has no use for them.
    """

    forget: ExampleSet[Any] | None
    retain: ExampleSet[Any] | None
    constants: ForgetConstants = field(default_factory=dict)
    unseen: ExampleSet[Any] | None = None

    def check_complete(self, objective: Objective) -> None:
        """Refuse a training without all that its objective needs: it would look like one that diverged.

        Raises:
            ConfigError: A set or constants are missing.
        """
        sides = (
            ("forget set", objective.uses_forget, self.forget),
            ("retain set", objective.uses_retain, self.retain),
            ("set of unseen examples", objective.uses_unseen, self.unseen),
        )
        for what, is_used, examples in sides:
            if is_used and not examples:
                raise ConfigError(f"The objective needs a {what}, but there is none. Give train() one in its sets.")
        term = objective.forget if objective.uses_forget else None
        missing = [] if term is None else sorted(term.needs - _OF_THE_OBJECTIVE - self.constants.keys())
        if term is not None and missing:
            raise ConfigError(
                f"The forget term '{term.name}' needs constants of each forget example that are not there: "
                f"{', '.join(missing)}. Give them to train() in its sets, or call unlearn()."
            )
