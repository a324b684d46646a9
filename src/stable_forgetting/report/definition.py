"""What a report says of a metric: its name, the group that it is shown in, and one sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MetricGroup = Literal["forgetting", "keeping", "privacy", "other"]


@dataclass(frozen=True)
class Definition:
    """How a metric is shown and what it says."""

    label: str
    """Name in the report, a few words."""
    group: MetricGroup
    sentence: str
    """One sentence that says how the number is made."""
