"""Slow, obvious versions of the adapter's fast paths: plain formulas, differentiated by autograd."""

import torch
import torch.nn.functional as F

FORMULAS = {
    "sine": torch.sin,
    "tanh": torch.tanh,
    "clip": lambda z: torch.clamp(z, -1, 1),
    "softsign": lambda z: z / (1 + z.abs()),
    "identity": lambda z: z,
}


def naive_delta(lora_a, lora_b, *, bound, omega, scale):
    """scale * bound(omega * (B @ A)) in one line."""
    return scale * FORMULAS[bound](omega * (lora_b @ lora_a))


def naive_linear(x, weight, bias, adapters, *, transposed=False):
    """F.linear with the changed weight; ``adapters`` holds (A, B, bound, omega, scale)."""
    weight = weight.t() if transposed else weight
    for lora_a, lora_b, bound, omega, scale in adapters:
        weight = weight + naive_delta(lora_a, lora_b, bound=bound, omega=omega, scale=scale)
    return F.linear(x, weight, bias)


def naive_effective_weight(weight, adapters, *, transposed=False):
    """W plus every change, in float64; ``adapters`` holds (A, B, bound, omega, scale)."""
    total = (weight.t() if transposed else weight).double()
    for lora_a, lora_b, bound, omega, scale in adapters:
        total = total + naive_delta(lora_a.double(), lora_b.double(), bound=bound, omega=omega, scale=scale)
    return total.t() if transposed else total


def naive_change_facts(delta, limit):
    """Largest entry, Frobenius norm and share within 1 % of the limit, by loops over entries."""
    entries = [abs(v) for row in delta.double().tolist() for v in row]
    saturated = None if limit is None else sum(v >= 0.99 * limit for v in entries) / len(entries)
    return max(entries), sum(v * v for v in entries) ** 0.5, saturated


def clipped_entries(matrix: torch.Tensor, limit: float) -> list[list[float]]:
    """Every entry, or the limit with its sign where it is further from 0 than that."""
    nearest = torch.tensor(limit, dtype=matrix.dtype).item()
    return [[max(-nearest, min(nearest, entry)) for entry in row] for row in matrix.tolist()]
