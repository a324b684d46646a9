"""Methods of a benchmark: every objective with every bound, group of layers, learning rate and seed."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

from stable_forgetting.config import read_yaml
from stable_forgetting.config.benchmark_options import BenchmarkOptions
from stable_forgetting.errors import ConfigError, unknown_name

PROBLEMS_DIR = Path(__file__).parent / "problems"

Changes = dict[str, Any]


def method_changes(
    options: BenchmarkOptions, own_objectives: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Changes]:
    """What each method changes, by its name.

    Args:
        options: Which objectives, bounds, groups of layers, learning rates and seeds.
        own_objectives: What further objectives change, which only this benchmark has.

    Returns:
        One entry for each combination, named OBJECTIVE-BOUND-seedN; the group of layers and the learning rate are in
        the name if there are several of them.

    Raises:
        ConfigError: An objective, a bound or a group of layers is unknown, or one is named twice.
    """
    tables = read_yaml(PROBLEMS_DIR / "methods.yaml")
    objectives = {**tables["objectives"], **(own_objectives or {})}
    found: dict[str, Changes] = {}
    rates: list[float | None] = [None] if options.learning_rates is None else [*options.learning_rates]
    for objective, bound, target, rate, seed in product(
        options.objectives, options.bounds, options.targets, rates, options.seeds
    ):
        parts = [objective, bound]
        parts += [target] if len(options.targets) > 1 else []
        parts += [f"lr{_short(rate)}"] if rate is not None and len(rates) > 1 else []
        name = "-".join([*parts, f"seed{seed}"])
        if name in found:
            raise ConfigError(f"The method '{name}' is named twice. Name each objective, bound, rate and seed once.")
        found[name] = {
            "objective.name": objective,
            "adapter.bound": bound,
            **_chosen("objective", objective, objectives),
            **_chosen("bound", bound, tables["bounds"]),
            **_chosen("group of layers", target, tables["targets"]),
            **({} if rate is None else {"training.learning_rate": rate}),
            "training.seed": seed,
            "adapter.seed": seed,
        }
    return found


def _chosen(what: str, name: str, table: Mapping[str, Any]) -> Changes:
    if name not in table:
        raise ConfigError(unknown_name(what, name, table))
    return dict(table[name])


def _short(rate: float) -> str:
    """A rate as it is usually written, such as 3e-4."""
    mantissa, exponent = f"{rate:e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
