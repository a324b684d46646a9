"""Bounding functions: what the weight change of an adapted layer is passed through, elementwise.

A bounding function is 0 at 0, so that a fresh adapter changes nothing, and never larger than its limit, so that
``scale * limit`` is the largest change any weight can get. ``identity`` has no limit: it makes plain LoRA, the
baseline. To add a bound, write its function and its derivative and enter them in `BOUNDS`; the test batteries
run over the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from stable_forgetting.errors import ConfigError, unknown_name


class Elementwise(Protocol):
    """Function of a tensor, entry by entry."""

    def __call__(self, z: Tensor, out: Tensor | None = None) -> Tensor:
        """Values at ``z``, of its shape; written into ``out`` if given, which may be ``z`` itself."""
        ...


@dataclass(frozen=True)
class Bound:
    """A bounding function with what is known about it.

    Attributes:
        name: Key in `BOUNDS` and in configs.
        function: The function; 0 at 0 and never larger in size than ``limit``.
        derivative: Its derivative, for the backward pass that keeps nothing.
        limit: Largest absolute value, or None if there is none.
        formula: The function as mathematics.
        description: What it is used for, in one sentence.
    """

    name: str
    function: Elementwise
    derivative: Elementwise
    limit: float | None
    formula: str
    description: str


def _sine(z: Tensor, out: Tensor | None = None) -> Tensor:
    return torch.sin(z, out=out)


def _sine_derivative(z: Tensor, out: Tensor | None = None) -> Tensor:
    return torch.cos(z, out=out)


def _tanh(z: Tensor, out: Tensor | None = None) -> Tensor:
    return torch.tanh(z, out=out)


def _tanh_derivative(z: Tensor, out: Tensor | None = None) -> Tensor:
    value = torch.tanh(z, out=out)
    return torch.mul(value, value, out=out).neg_().add_(1.0)


def _clip(z: Tensor, out: Tensor | None = None) -> Tensor:
    return torch.clamp(z, -1.0, 1.0, out=out)


def _clip_derivative(z: Tensor, out: Tensor | None = None) -> Tensor:
    inside = z.abs() <= 1.0
    return inside.to(z.dtype) if out is None else out.copy_(inside)


def _softsign(z: Tensor, out: Tensor | None = None) -> Tensor:
    return torch.div(z, z.abs().add_(1.0), out=out)


def _softsign_derivative(z: Tensor, out: Tensor | None = None) -> Tensor:
    denominator = torch.abs(z, out=out).add_(1.0)
    return torch.mul(denominator, denominator, out=out).reciprocal_()


def _identity(z: Tensor, out: Tensor | None = None) -> Tensor:
    if out is None:
        return z.clone()
    return out if out is z else out.copy_(z)


def _identity_derivative(z: Tensor, out: Tensor | None = None) -> Tensor:
    return torch.ones_like(z) if out is None else out.fill_(1.0)


_TABLE = (
    Bound(
        "sine",
        _sine,
        _sine_derivative,
        limit=1.0,
        formula="sin(z)",
        description="The choice of the paper; with a high omega it also raises the effective rank of the change.",
    ),
    Bound(
        "tanh",
        _tanh,
        _tanh_derivative,
        limit=1.0,
        formula="tanh(z)",
        description="Saturates smoothly; entries near the limit hardly get a gradient.",
    ),
    Bound(
        "clip",
        _clip,
        _clip_derivative,
        limit=1.0,
        formula="min(max(z, -1), 1)",
        description="Weight clipping; entries beyond the limit get no gradient.",
    ),
    Bound(
        "softsign",
        _softsign,
        _softsign_derivative,
        limit=1.0,
        formula="z / (1 + |z|)",
        description="Approaches the limit slowly; every entry keeps some gradient.",
    ),
    Bound(
        "identity",
        _identity,
        _identity_derivative,
        limit=None,
        formula="z",
        description="Unbounded: plain LoRA with the factor omega * scale, as the baseline.",
    ),
)

BOUNDS: dict[str, Bound] = {bound.name: bound for bound in _TABLE}
"""Every bounding function by its name."""


def get_bound(name: str) -> Bound:
    """Bounding function of that name.

    Args:
        name: Key of `BOUNDS`.

    Returns:
        The entry of the table.

    Raises:
        ConfigError: If there is none of that name.

    Example:
        >>> get_bound("tanh").limit
        1.0
    """
    if name not in BOUNDS:
        raise ConfigError(unknown_name("bound", name, BOUNDS))
    return BOUNDS[name]
