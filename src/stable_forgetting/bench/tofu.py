"""TOFU (Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs", 2024): its sets and methods as a comparison.

Nothing is special to TOFU but the table of its files: base and retain model, unlearning and evaluation are those of
any other run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from stable_forgetting.bench.comparison import Comparison
from stable_forgetting.config import apply_change, read_yaml
from stable_forgetting.errors import ConfigError, DataError, unknown_name

HUB_NAME = "locuslab/TOFU"

_TEMPLATE = Path(__file__).parent / "problems" / "tofu.yaml"
_COLUMNS = {"prompt": "question", "answer": "answer"}
_WORLD = {"real_authors": "real_authors_perturbed", "world_facts": "world_facts_perturbed"}


@dataclass(frozen=True)
class TofuModels:
    """The models of the benchmark.

    Args:
        model: The model that is finetuned, or the base model if there is a retain model or log.
        retain_model: A model that was never taught the forget set. None: base and retain model are finetuned from
            `model`, unless there is a log.
        retain_log: Evaluation log of such a model, in its place.
    """

    model: str
    retain_model: str | None = None
    retain_log: str | None = None


def split_names() -> list[str]:
    """Names of the splits."""
    return list(read_yaml(_TEMPLATE)["splits"])


def tofu_comparison(
    models: TofuModels,
    split: str,
    *,
    data: str = HUB_NAME,
    objectives: Sequence[str] = ("gradient_difference",),
    bounds: Sequence[str] = ("identity", "sine"),
    seeds: Sequence[int] = (0,),
    changes: Sequence[tuple[str, Any]] = (),
) -> Comparison:
    """Every objective with every bound and every seed on one split.

    Args:
        models: What is unlearned, and the reference.
        split: forget01, forget05 or forget10; tofu-20 or tofu-20-validation for the twenty authors of forget10 alone.
        data: The hub's name of the data set, or a folder with its files.
        objectives: As `forget list objectives` shows, or calibrated_pretrained and calibrated_mean.
        bounds: As `forget list bounds` shows.
        seeds: Of the order of the examples and of the adapter's start.
        changes: Settings that replace the shared ones.

    Returns:
        One method for each combination, named OBJECTIVE-BOUND-seedN.

    Raises:
        ConfigError: The split, an objective or a bound is unknown.
        DataError: The folder lacks one of the files.
    """
    template = read_yaml(_TEMPLATE)
    shared: dict[str, Any] = template["shared"]
    shared["model"] = {"name": models.model}
    if models.retain_model is None and models.retain_log is None:
        shared["model"]["finetune"] = template["finetune"]
    shared |= {"retain_model": models.retain_model, "retain_log": models.retain_log}
    shared["data"] |= _sources(_chosen("split", split, template["splits"]), data)
    for limited, limit in template["splits"][split].get("limits", {}).items():
        if limited == "retain":
            shared["evaluation"]["retain_limit"] = limit
        else:
            shared["data"][limited]["limit"] = limit
    for place, value in changes:
        apply_change(shared, place, value)
    methods = {}
    for objective, bound, seed in product(objectives, bounds, seeds):
        methods[f"{objective}-{bound}-seed{seed}"] = {
            "objective.name": objective,
            "adapter.bound": bound,
            **_chosen("objective", objective, template["objectives"]),
            **_chosen("bound", bound, template["bounds"]),
            "training.seed": seed,
            "adapter.seed": seed,
        }
    return Comparison(shared, methods)


def _chosen(what: str, name: str, table: Mapping[str, Any]) -> dict[str, Any]:
    if name not in table:
        raise ConfigError(unknown_name(what, name, table))
    return dict(table[name])


def _sources(split: Mapping[str, Any], data: str) -> dict[str, Any]:
    """The source of each set."""
    roles = ("forget", "retain", "retain_evaluation", "holdout")
    files = {role: split[role] for role in roles if role in split} | _WORLD
    sources = {}
    for role, file in files.items():
        name, where = (file, None) if isinstance(file, str) else file
        sources[role] = {**_place(name, data), **_COLUMNS} | ({} if where is None else {"where": where})
    return sources


def _place(name: str, data: str) -> dict[str, str]:
    """A file of the folder, or a subset of the hub's data set."""
    folder = Path(data).expanduser()
    if not folder.is_dir():
        return {"path": data, "subset": name, "split": "train"}
    for ending in (".json", ".jsonl"):
        if (folder / f"{name}{ending}").is_file():
            return {"path": str(folder / f"{name}{ending}")}
    raise DataError(
        f"The folder '{data}' has no file {name}.json of the TOFU data set. Give a folder with all its files, or the "
        f"hub's name {HUB_NAME}."
    )
