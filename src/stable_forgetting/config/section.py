"""What all sections of a config have in common, and the kinds of numbers in them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Schedule = Literal["linear", "cosine", "constant_with_warmup"]


class Section(BaseModel):
    """A section: unknown settings are refused, and nothing changes after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
