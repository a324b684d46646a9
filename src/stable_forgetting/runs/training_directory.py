"""The folder that `unlearn` keeps checkpoints in: whose they are, so that no training goes on from another's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stable_forgetting import processes
from stable_forgetting.adapters import BoundedLoraConfig
from stable_forgetting.config import TargetConfig, TrainingConfig
from stable_forgetting.data.examples import ExampleSet
from stable_forgetting.errors import RunDirectoryError
from stable_forgetting.models.load import model_sha256
from stable_forgetting.objectives import Objective, Term
from stable_forgetting.records import write_text
from stable_forgetting.runs.target_distributions import VERSION as DISTRIBUTIONS_VERSION
from stable_forgetting.training.checkpoints import check_no_checkpoints, last_complete_checkpoint

IDENTITY_NAME = "training.json"

_NOT_IDENTITY = ("base_model_name_or_path", "peft_version", "revision", "auto_mapping")
"""Entries of an adapter's config that say where it came from and not what it computes."""


def training_identity(
    model: Any,
    objective: Objective,
    target: TargetConfig,
    settings: TrainingConfig,
    adapter: BoundedLoraConfig,
    sets: Mapping[str, ExampleSet[Any]],
) -> dict[str, str]:
    """Hashes, by name, of all that decides on the result of a training.

    Args:
        model: The base model, before the adapter is attached.
        objective: What is minimised.
        target: Where it stops, if it stops at targets.
        settings: Steps, rates and batches.
        adapter: What is trained.
        sets: What it is trained on, and the holdout set.
    """
    parts = vars(objective) | {"forget": _term(objective.forget), "retain": _term(objective.retain)}
    options = {name: value for name, value in adapter.to_dict().items() if name not in _NOT_IDENTITY}
    values: dict[str, Mapping[str, Any]] = {
        "objective": parts,
        "training": settings.model_dump(mode="json"),
        "adapter": options,
    }
    if objective.needs_targets:
        values["target"] = target.model_dump(mode="json")
    if "target_probabilities" in objective.needs:
        values["target distributions"] = {"version": DISTRIBUTIONS_VERSION}
    hashes = {
        name: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest() for name, value in values.items()
    }
    measured = settings.evaluate_every is not None  # the best checkpoint may be chosen by paraphrased and wrong answers
    taught = {f"{name} set": found.sha256 if measured else found.taught_sha256 for name, found in sets.items()}
    return hashes | {"model": model_sha256(model)} | taught


def _term(term: Term | None) -> str | None:
    return None if term is None else f"{term.name}: {term.formula}"


def claim(output_dir: Path, identity: Mapping[str, str], *, resume: bool) -> None:
    """Check that the folder is free for a training, or holds this one; and write down whose it is from now on.

    Args:
        output_dir: The folder.
        identity: Of `training_identity`.
        resume: Whether to go on from its last complete checkpoint.

    Raises:
        RunDirectoryError: It is a file, holds checkpoints that are not to be resumed, or those of another training.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise RunDirectoryError(f"The output directory '{output_dir}' is a file. Choose another output_dir.")
    if resume:
        _check_same(output_dir, identity)
    else:
        check_no_checkpoints(output_dir)
    processes.wait_for_all()  # every process has looked at the folder before one writes to it
    if not processes.is_main_process():
        return
    try:
        write_text(output_dir / IDENTITY_NAME, json.dumps(dict(identity), indent=1))
    except OSError as error:
        raise RunDirectoryError(
            f"The output directory '{output_dir}' cannot be written: {error.strerror}. Choose another output_dir."
        ) from error


def _check_same(output_dir: Path, identity: Mapping[str, str]) -> None:
    if last_complete_checkpoint(output_dir) is None:
        return
    path = output_dir / IDENTITY_NAME
    if not path.is_file():
        raise RunDirectoryError(
            f"The output directory '{output_dir}' holds checkpoints, but no {IDENTITY_NAME} that says of which "
            "training, so it cannot be resumed. Choose another output_dir."
        )
    known = json.loads(path.read_text(encoding="utf-8"))
    changed = sorted(name for name in {*known, *identity} if known.get(name) != identity.get(name))
    if changed:
        raise RunDirectoryError(
            f"The output directory '{output_dir}' holds another training (changed: {', '.join(changed)}), so it cannot "
            "be resumed. Choose another output_dir, or call with what that training was given."
        )
