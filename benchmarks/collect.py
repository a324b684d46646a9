"""One small file of the records of an experiment: what each run was, what it measured, and what it took.

    python benchmarks/collect.py RUNS_DIR results/class_deletion/rates.json

Histories, examples and certificates are left out, but for the largest change of a weight; settings are those in
effect, defaults included, since a default may change; what all runs share is written once, the environment as that of
the first run. The values of base and retain models are written once for each pair of models and sets.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from stable_forgetting.records import ModelEvaluation, RunRecord, read_record

SIGNIFICANT = 6
"""Digits of the values: more than their intervals deserve."""


def metrics_of(evaluation: ModelEvaluation) -> dict[str, list[float | int | None]]:
    """Value, lower and upper end of the interval, and count of each metric that has a value."""
    return {
        metric.name: [_short(metric.value), _short(metric.low), _short(metric.high), metric.count]
        for metric in evaluation.metrics
        if metric.value is not None
    }


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{SIGNIFICANT}g}")


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their full names without those that are null; of paths of one machine only the last part."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        elif value is not None:
            found[f"{prefix}{name}"] = _public(value)
    return found


def _public(value: Any) -> Any:
    return re.sub(r"(?:/[^\s,'/]+)+/", "", value) if isinstance(value, str) else value


def collect(records: list[RunRecord]) -> dict[str, Any]:
    """The content of the file."""
    settings = [flat(record.config) for record in records]
    names = sorted({name for found in settings for name in found})
    shared = {n: settings[0].get(n) for n in names if all(found.get(n) == settings[0].get(n) for found in settings)}
    environment = records[0].environment.model_dump(mode="json")
    references: dict[str, dict[str, Any]] = {}
    runs = []
    for record, found in zip(records, settings, strict=True):
        key = "/".join(str(record.models.get(role))[:12] for role in ("base", "retain"))
        known = {entry.role: metrics_of(entry) for entry in record.evaluations}
        references[key] = {role: known[role] for role in ("base", "retain") if role in known}
        runs.append(
            {
                "name": record.name,
                "status": record.status,
                "stopped": record.stopped,
                "settings": {name: found.get(name) for name in names if name not in shared},
                "models": key,
                "unlearned": known.get("unlearned"),
                "seconds": {phase: round(seconds, 1) for phase, seconds in record.timings.items()},
                "largest_gradient_norm": max((step.grad_norm or 0.0 for step in record.history), default=None),
                "largest_change_of_a_weight": _short(
                    max((layer.largest_entry for layer in record.certificate), default=None)
                ),
                **_other_environment(record, environment),
            }
        )
    sets = {entry.name: {"count": entry.count, "source": _public(entry.source)} for entry in records[0].sets}
    return {"environment": environment, "shared": shared, "sets": sets, "references": references, "runs": runs}


def _other_environment(record: RunRecord, first: dict[str, Any]) -> dict[str, Any]:
    """What was other than in the first run, if anything was."""
    own = record.environment.model_dump(mode="json")
    other = {name: value for name, value in own.items() if value != first[name]}
    return {"environment": other} if other else {}


def main() -> None:
    """Read the records under a folder, write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, help="folder with one folder for each run")
    parser.add_argument("output", type=Path)
    chosen = parser.parse_args()
    records = [read_record(path.parent) for path in sorted(chosen.runs.glob("*/record.json"))]
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text(json.dumps(collect(records), indent=1) + "\n")


if __name__ == "__main__":
    main()
