"""TOFU (Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs", 2024): its sets and methods as a comparison.

Nothing is special to TOFU but the table of its files: base and retain model, unlearning and evaluation are those of
any other run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stable_forgetting.bench.comparison import Comparison
from stable_forgetting.bench.methods import PROBLEMS_DIR, method_changes, refuse_finetuning
from stable_forgetting.config import apply_change, read_yaml
from stable_forgetting.config.benchmark_options import TofuOptions
from stable_forgetting.errors import ConfigError, DataError, unknown_name

HUB_NAME = "locuslab/TOFU"

_TEMPLATE = PROBLEMS_DIR / "tofu.yaml"
_COLUMNS = {"prompt": "question", "answer": "answer"}
_FOR_CHOOSING = (
    "For choosing settings: the authors that are forgotten are others than those of the split that is reported."
)
_WORLD = {"real_authors": "real_authors_perturbed", "world_facts": "world_facts_perturbed"}


def split_names() -> list[str]:
    """Names of the splits."""
    return list(read_yaml(_TEMPLATE)["splits"])


def tofu_comparison(options: TofuOptions) -> Comparison:
    """Every method on one split.

    Args:
        options: Model, split and methods.

    Returns:
        One method for each combination; see `method_changes`.

    Raises:
        ConfigError: The split, an objective or a bound is unknown.
        DataError: The folder lacks one of the files.
    """
    template = read_yaml(_TEMPLATE)
    shared: dict[str, Any] = template["shared"]
    shared["model"] = {"name": options.model}
    if options.retain_model is None and options.retain_log is None:
        shared["model"]["finetune"] = template["finetune"]
    else:
        refuse_finetuning(options, "a retain model or its log")
    shared |= {"retain_model": options.retain_model, "retain_log": options.retain_log}
    if options.split not in template["splits"]:
        raise ConfigError(unknown_name("split", options.split, template["splits"]))
    split, is_validation = template["splits"][options.split], options.split.endswith("-validation")
    shared["data"] |= _sources(split, options.data)
    for limited, limit in split.get("limits", {}).items():
        if limited == "retain":
            shared["evaluation"]["retain_limit"] = limit
        else:
            shared["data"][limited]["limit"] = limit
    for place, value in options.set.items():
        apply_change(shared, place, value)
    return Comparison(shared, method_changes(options), notes=[_FOR_CHOOSING] if is_validation else [])


def _sources(split: Mapping[str, Any], data: str) -> dict[str, Any]:
    """The source of each set."""
    roles = ("forget", "retain", "retain_evaluation", "holdout", "targets")
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
