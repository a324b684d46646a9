"""What all sections of a config have in common, and the kinds of numbers in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stable_forgetting.config.refusals import refusal

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
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
