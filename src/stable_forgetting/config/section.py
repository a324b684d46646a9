"""What all sections of a config have in common, and the kinds of numbers in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from stable_forgetting.config.refusals import refusal


def _no_truth_value(given: Any) -> Any:
    """Python, and pydantic with it, take true for 1."""
    if isinstance(given, bool):
        raise ValueError("a truth value is no number; give a number")
    return given


Whole = Annotated[int, BeforeValidator(_no_truth_value)]
Finite = Annotated[float, BeforeValidator(_no_truth_value), Field(allow_inf_nan=False)]
Positive = Annotated[Finite, Field(gt=0)]
NotNegative = Annotated[Finite, Field(ge=0)]
Share = Annotated[Finite, Field(ge=0, lt=1)]
Count = Annotated[Whole, Field(ge=1)]
Seed = Annotated[Whole, Field(ge=0, lt=2**32)]
Schedule = Literal["linear", "cosine", "constant_with_warmup"]


class Section(BaseModel):
    """A section: unknown settings are refused, and nothing changes after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    if not TYPE_CHECKING:  # type checkers know the settings of each section and their types

        def __init__(self, /, **given: Any) -> None:
            """Check settings that are written in Python.

            Raises:
                ConfigError: Names all problems at once.
            """
            try:
                super().__init__(**given)
            except ValidationError as error:
                raise refusal(error, type(self), type(self).__name__) from error

        # Sections inside of others are then made as by pydantic's own: problems keep their places in the whole.
        __init__.__pydantic_base_init__ = True
