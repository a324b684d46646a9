"""Which runs belong together: the same problem, and within it the same method with other seeds."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from stable_forgetting.config import EvaluationConfig
from stable_forgetting.records import RunRecord

_PROTOCOL = ("retain_limit", "test_limit", "seed", "generate", "max_new_tokens", "compat")
"""Settings of the evaluation that decide which examples are measured, and how."""

_SEEDED = ("model", "adapter", "training")
"""Sections whose seeds a method is repeated over; that of the evaluation draws what is measured."""

_FOLDERS = re.compile(r"[\\/]")
_SHARES = re.compile(r"[\d.]+ < share_in\([^)]*\) <= [\d.]+")
_SEED_SUFFIX = re.compile(r"[-_. /]*seed[-_= ]?\d+$", re.IGNORECASE)


def name_without_seed(name: str) -> str:
    """The run's name without a seed at its end.

    Example:
        >>> name_without_seed("gd-sine-seed3")
        'gd-sine'
    """
    return _SEED_SUFFIX.sub("", name) or name


def earlier_run(record: RunRecord) -> str | None:
    """Name without its seed of the run whose merged model is unlearned here; None if the base model is another one."""
    *folders, last = _FOLDERS.split(str(record.config.get("base_model")))
    return name_without_seed(folders[-1]) if folders and last == "merged" else None


def group_by_problem(records: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Runs of one task, base model, retain model and data, measured in one way, in one list, by their first run.

    Runs that go on from the merged models of earlier runs have a base model for each method and seed. They belong
    together if the retain model and the data are the same, as those of one step of a sequence are.

    A run that failed before its data were read has no hashes; it joins the runs of the same task, model and data
    settings, and stands alone if there are none.
    """
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        if _is_identified(record):
            groups.setdefault(_problem_key(record), []).append(record)
    for record in records:
        if not _is_identified(record):
            groups.setdefault(_key_of_same_settings(record, groups), []).append(record)
    order = {id(record): place for place, record in enumerate(records)}
    lists = [sorted(group, key=lambda record: order[id(record)]) for group in groups.values()]
    return sorted(lists, key=lambda group: order[id(group[0])])


def group_by_method(records: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Runs whose settings differ in nothing but seeds in one list, in the order of their first run.

    Runs that did not leave measurements stay alone, and so does a second run with the same seeds: it is a repetition
    and says nothing about the spread.
    """
    groups: dict[tuple[str, int], list[RunRecord]] = {}
    repeats: Counter[tuple[str, str]] = Counter()
    failures = 0
    for record in records:
        method = _method_key(record)
        if record.status == "failed" or not record.evaluations:
            failures += 1
            groups[method, -failures] = [record]
            continue
        seeds = json.dumps([_seeds_of(record.config.get(name)) for name in _SEEDED]) if record.config else record.name
        groups.setdefault((method, repeats[method, seeds]), []).append(record)
        repeats[method, seeds] += 1
    return list(groups.values())


def learning_rate(record: RunRecord) -> float | None:
    """The learning rate of the unlearning; None if the record holds none."""
    training = record.config.get("training")
    return training.get("learning_rate") if isinstance(training, dict) else None


def key_without_rate(record: RunRecord) -> str:
    """Equal for runs whose settings differ in nothing but seeds and the learning rate of the unlearning."""
    training = record.config.get("training")
    if not isinstance(training, dict):
        return _method_key(record)
    others = {name: value for name, value in training.items() if name != "learning_rate"}
    return _key_of(record, _settings_of_method(record) | {"training": others}, leave_out=("base_model",))


def key_over_requests(record: RunRecord) -> str:
    """Equal for runs of one method that differ in nothing but seeds and what is forgotten, at once or before."""
    return _key_of(record, _settings_of_method(record), leave_out=("base_model", "retain_model", "data"))


def key_of_model_and_source(record: RunRecord) -> str:
    """Equal for runs on the same data with models made from the same one and measured alike, whatever is forgotten."""
    data = record.config.get("data")
    parts: dict[str, Any] = data if isinstance(data, dict) else {}
    source = [parts.get(name) for name in ("source", "num_classes")]
    named = [part for part in parts.values() if isinstance(part, dict) and part.get("path")]
    paths = sorted({(part["path"], part.get("subset") or "") for part in named})
    model = _settings_of_method(record).get("model")
    tested = _tested_on(parts.get("test"))
    return json.dumps([record.task, model, source, paths, tested, _protocol(record)], sort_keys=True, default=str)


def _tested_on(test: Any) -> Any:
    """The images that stand for the unseen ones, whatever is forgotten: their split, and their share of each class."""
    if not isinstance(test, dict):
        return None
    return [test.get("split"), sorted(set(_SHARES.findall(str(test.get("where")))))]


def unusual_protocol(record: RunRecord) -> str:
    """What the record's evaluation sets otherwise than by default, such as ``"seed 3"``; empty if it is nothing."""
    usual = EvaluationConfig()
    return ", ".join(f"{name} {value}" for name, value in _protocol(record).items() if value != getattr(usual, name))


def seed_label(record: RunRecord) -> str:
    """How one run is told from the others of its method, such as ``"seed 3"``."""
    seed = record.config.get("training", {}).get("seed") if isinstance(record.config.get("training"), dict) else None
    return record.name if seed is None else f"seed {seed}"


def _is_identified(record: RunRecord) -> bool:
    return bool(record.sets) and "base" in record.models


def _problem_key(record: RunRecord) -> str:
    sets = sorted((entry.name, entry.sha256) for entry in record.sets)
    settings = _settings_of_method(record)
    base = record.models["base"] if earlier_run(record) is None else settings.get("model")
    retain = record.models.get("retain") or settings.get("retain_log")
    return json.dumps([record.task, base, retain, sets, _protocol(record)], sort_keys=True, default=str)


def _protocol(record: RunRecord) -> dict[str, Any]:
    """How the run was measured; what a record of an earlier version lacks is the default."""
    given, usual = record.config.get("evaluation"), EvaluationConfig()
    settings: dict[str, Any] = given if isinstance(given, dict) else {}
    return {name: settings.get(name, getattr(usual, name)) for name in _PROTOCOL}


def _key_of_same_settings(record: RunRecord, groups: dict[str, list[RunRecord]]) -> str:
    settings = _problem_settings(record)
    for key, group in groups.items():
        if any(_problem_settings(member) == settings for member in group):
            return key
    return settings


def _problem_settings(record: RunRecord) -> str:
    settings = _settings_of_method(record)
    parts = {name: settings.get(name) for name in ("model", "data", "retain_model", "retain_log")}
    given = None if earlier_run(record) else settings.get("base_model")
    return json.dumps([record.task, parts, given, _protocol(record)], sort_keys=True, default=str)


def _method_key(record: RunRecord) -> str:
    return _key_of(record, _settings_of_method(record))


def _settings_of_method(record: RunRecord) -> dict[str, Any]:
    """All settings but the run's name; of a merged model not the path, which holds a seed, but the run that left it."""
    settings = {name: value for name, value in record.config.items() if name != "name"}
    earlier = earlier_run(record)
    return settings if earlier is None else settings | {"base_model": earlier}


def _key_of(record: RunRecord, settings: dict[str, Any], leave_out: Sequence[str] = ()) -> str:
    if not record.config:
        return name_without_seed(record.name)
    kept = {
        name: _without_seeds(value) if name in _SEEDED else value
        for name, value in settings.items()
        if name not in leave_out
    }
    return json.dumps(kept, sort_keys=True, default=str)


def _without_seeds(settings: Any) -> Any:
    if isinstance(settings, dict):
        return {name: _without_seeds(value) for name, value in settings.items() if name != "seed"}
    return [_without_seeds(value) for value in settings] if isinstance(settings, list) else settings


def _seeds_of(settings: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(settings, dict):
        return {}
    found = {f"{path}.{name}": value for name, value in settings.items() if name == "seed"}
    for name, value in settings.items():
        found |= _seeds_of(value, f"{path}.{name}")
    return found
