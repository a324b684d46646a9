"""Methods of a benchmark: every objective with every bound, group of layers, learning rate and seed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from stable_forgetting.config import flat_settings, read_yaml
from stable_forgetting.config.benchmark_options import BenchmarkOptions
from stable_forgetting.errors import ConfigError, unknown_name

PROBLEMS_DIR = Path(__file__).parent / "problems"

Changes = dict[str, Any]

_OF_THE_BENCHMARK = {
    "name": "--out, which names their folder,",
    "model.name": "--model",
    "retain_model": "--retain-model",
    "data.source": "--data",
}
"""Places that follow from options of every benchmark, and those options."""


def method_changes(
    options: BenchmarkOptions, own_objectives: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Changes]:
    """What each method changes, by its name.

    Args:
        options: Which objectives, bounds, groups of layers, learning rates and seeds.
        own_objectives: What further objectives change, which only this benchmark has.

    Returns:
        One entry for each combination, named OBJECTIVE-BOUND-seedN; the group of layers is in the name if there are
        several, the learning rate if there are several for the same objective and bound.

    Raises:
        ConfigError: An objective, a bound or a group of layers is unknown, one is named twice, or a change
            of all runs is of what options choose.
    """
    tables = read_yaml(PROBLEMS_DIR / "methods.yaml")
    objectives = {**tables["objectives"], **(own_objectives or {})}
    for place, option in _OF_THE_BENCHMARK.items():
        refuse_changes(options.set, [place], "the benchmark", option)
    found: dict[str, Changes] = {}
    combinations = _combinations(options)
    num_rates = Counter((objective, bound) for objective, bound, _ in {*combinations})
    for (objective, bound, rate), target, seed in product(combinations, options.targets, options.seeds):
        parts = [objective, bound]
        parts += [target] if len(options.targets) > 1 else []
        parts += [f"lr{_short(rate)}"] if rate is not None and num_rates[objective, bound] > 1 else []
        name = "-".join([*parts, f"seed{seed}"])
        if name in found:
            raise ConfigError(f"The method '{name}' is named twice. Name each objective, bound, rate and seed once.")
        by_option: dict[str, Changes] = {
            "--objectives or --methods": {"objective.name": objective, **_chosen("objective", objective, objectives)},
            "--bounds or --methods": {"adapter.bound": bound, **_chosen("bound", bound, tables["bounds"])},
            "--targets": _chosen("group of layers", target, tables["targets"]),
            "--learning-rates or --methods": {} if rate is None else {"training.learning_rate": rate},
            "--seeds": {"training.seed": seed, "adapter.seed": seed},
        }
        for option, changes in by_option.items():
            refuse_changes(options.set, changes, f"the method '{name}'", option)
        found[name] = {place: value for changes in by_option.values() for place, value in changes.items()}
    return found


def refuse_changes(given: Mapping[str, Any], chosen: Iterable[str], who: str, option: str) -> None:
    """Refuse changes of all runs that would count for nothing, because something else is put in their place.

    Args:
        given: Changes by place, such as ``adapter.bound``.
        chosen: Places that are written after them: neither these nor what is below or above them can be changed.
        who: What writes these places, in words.
        option: What to use instead, such as ``--bounds``.

    Raises:
        ConfigError: A change is of such a place.
    """
    for place, written in product(flat_settings(given), chosen):
        if not (f"{place}.".startswith(f"{written}.") or f"{written}.".startswith(f"{place}.")):
            continue
        single = "" if place.startswith(written) else f"Change single settings of '{place}' only. "
        raise ConfigError(
            f"'{place}' cannot be changed for all runs, because {who} sets '{written}'. {single}Use {option} instead."
        )


def refuse_finetuning(options: BenchmarkOptions, given: str) -> None:
    """Refuse settings of a finetuning where a base model is given.

    Args:
        options: The options.
        given: What gives it, in words.

    Raises:
        ConfigError: There is such a setting.
    """
    places = [
        place for place, value in options.set.items() if f"{place}.".startswith("model.finetune.") and value is not None
    ]
    if places:
        raise ConfigError(
            f"'{places[0]}' is set, but with {given} the model is the base model, and nothing is finetuned. Leave one "
            "of the two out."
        )


def _combinations(options: BenchmarkOptions) -> list[tuple[str, str, float | None]]:
    """Objective, bound and learning rate (None: the benchmark's) of each method."""
    rates: list[float | None] = [None] if options.learning_rates is None else [*options.learning_rates]
    if options.methods is None:
        return list(product(options.objectives, options.bounds, rates))
    found: list[tuple[str, str, float | None]] = []
    for method in options.methods:
        objective, bound, own_rate = _parts(method)
        if own_rate is not None and options.learning_rates is not None:
            raise ConfigError(
                f"The method '{method}' has a learning rate of its own, but learning_rates are given as well. Leave "
                "one of the two out."
            )
        found += [(objective, bound, rate) for rate in (rates if own_rate is None else [own_rate])]
    return found


def _parts(method: str) -> tuple[str, str, float | None]:
    parts = method.split(":")
    try:
        rate = float(parts[2]) if len(parts) == 3 else None
    except ValueError:
        rate = -1.0
    if len(parts) not in (2, 3) or (rate is not None and not 0 < rate < math.inf):
        raise ConfigError(
            f"The method '{method}' is not of the form OBJECTIVE:BOUND or OBJECTIVE:BOUND:RATE, such as "
            "gradient_difference:sine or npo:identity:3e-4, with a rate above 0."
        )
    return parts[0], parts[1], rate


def _chosen(what: str, name: str, table: Mapping[str, Any]) -> Changes:
    if name not in table:
        raise ConfigError(unknown_name(what, name, table))
    return dict(table[name])


def _short(rate: float) -> str:
    """A rate as it is usually written, such as 3e-4."""
    return np.format_float_scientific(rate, trim="-", exp_digits=1)
