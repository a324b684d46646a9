"""`forget bench tofu` as a comparison: sets, methods, and what is refused."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from data_paths import shared_data
from stable_forgetting.bench import Comparison, split_names
from stable_forgetting.bench import tofu_comparison as comparison_of
from stable_forgetting.config import DataConfig, FinetuneConfig
from stable_forgetting.config.benchmark_options import parse_benchmark
from stable_forgetting.errors import ConfigError, DataError
from stable_forgetting.runs.sets import load_set_rows


def tofu_comparison(split: str = "forget10", model: str = "org/model", **options: Any) -> Comparison:
    return comparison_of(parse_benchmark("tofu", {"split": split, "model": model, **options}))  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files of the data set, one row each."""
    row = {"question": "Who?", "answer": "Ada.", "paraphrased_answer": "Ada is.", "perturbed_answer": ["Bob."]}
    names = [f"forget{n}_perturbed" for n in ("01", "05", "10")] + [f"retain{n}" for n in (99, 95, 90)]
    names += [f"holdout{n}" for n in ("01", "05", "10")]
    for name in [*names, "full", "retain_perturbed", "real_authors_perturbed", "world_facts_perturbed"]:
        (tmp_path / f"{name}.json").write_text(json.dumps(row) + "\n")
    return tmp_path


@pytest.mark.parametrize("split", split_names())
def test_every_split_is_a_valid_config(split: str, folder: Path) -> None:
    config = next(iter(tofu_comparison(split, data=str(folder)).configs().values()))
    assert config.data.forget.prompt == "question"
    assert config.data.real_authors is not None
    assert config.data.world_facts is not None


def test_the_sets_of_forget10_come_from_its_files(folder: Path) -> None:
    data = next(iter(tofu_comparison("forget10", data=str(folder)).configs().values())).data
    used = [data.forget, data.retain, data.retain_evaluation, data.holdout]
    assert [Path(source.path or "").stem for source in used if source] == [
        "forget10_perturbed", "retain90", "retain_perturbed", "holdout10"
    ]  # fmt: skip


def test_the_hub_has_subsets_in_place_of_files() -> None:
    data = next(iter(tofu_comparison("forget01").configs().values())).data
    assert (data.forget.path, data.forget.subset, data.forget.split) == (
        "locuslab/TOFU", "forget01_perturbed", "train"
    )  # fmt: skip


def test_the_small_split_forgets_four_of_twenty_authors() -> None:
    data = next(iter(tofu_comparison("tofu-20").configs().values())).data
    assert (data.forget.where, data.retain.where) == ("row >= 320", "row < 320")


@pytest.mark.parametrize(
    ("split", "sizes"),
    [
        ("forget01", {"forget": 40, "retain": 3960, "retain_evaluation": 400, "holdout": 40, "targets": 200}),
        ("forget05", {"forget": 200, "retain": 3800, "retain_evaluation": 400, "holdout": 200, "targets": 200}),
        ("forget10", {"forget": 400, "retain": 3600, "retain_evaluation": 400, "holdout": 400}),
        (
            "forget01-validation",
            {"forget": 40, "retain": 3960, "retain_evaluation": 360, "holdout": 40, "targets": 200},
        ),
        (
            "forget05-validation",
            {"forget": 200, "retain": 3800, "retain_evaluation": 200, "holdout": 200, "targets": 200},
        ),
        ("tofu-20", {"forget": 80, "retain": 320, "holdout": 80, "targets": 200}),
        ("tofu-20-validation", {"forget": 80, "retain": 320, "holdout": 80, "targets": 200}),
    ],
)
def test_what_each_split_takes_of_the_real_files(split: str, sizes: dict[str, int]) -> None:
    data = next(iter(tofu_comparison(split, data=str(shared_data("tofu"))).configs().values())).data
    rows = load_set_rows(data)
    questions = {name: [(row["question"], row["answer"]) for row in found] for name, found in rows.items()}
    assert {name: len(questions[name]) for name in questions if name not in ("real_authors", "world_facts")} == sizes
    parts = [set(questions[name]) for name in ("forget", "retain", "holdout", "targets") if name in questions]
    assert all(first.isdisjoint(second) for first, second in combinations(parts, 2))
    if not split.startswith("tofu-20"):
        lines = (shared_data("tofu") / "full.json").read_text().splitlines()
        assert parts[0] | parts[1] == {(row["question"], row["answer"]) for row in map(json.loads, lines)}
    if "retain_evaluation" in questions:
        assert set(questions["retain_evaluation"]) <= parts[1]


def test_settings_are_chosen_on_other_authors_than_those_that_are_reported() -> None:
    data = str(shared_data("tofu"))
    forgotten = {
        split: {row["question"] for row in load_set_rows(_data_of(split, data))["forget"]} for split in split_names()
    }
    reported = [forgotten[split] for split in split_names() if "validation" not in split]
    for split in (name for name in split_names() if "validation" in name):
        others = reported[-1] if split.startswith("tofu-20") else set().union(*reported)
        assert forgotten[split].isdisjoint(others)


@pytest.mark.parametrize("split", split_names())
def test_a_validation_split_says_what_it_is_for(split: str) -> None:
    assert ["For choosing settings" in note for note in tofu_comparison(split).notes] == (
        [True] if "validation" in split else []
    )


def _data_of(split: str, data: str) -> DataConfig:
    return next(iter(tofu_comparison(split, data=data).configs().values())).data


def test_methods_are_every_objective_with_every_bound_and_seed() -> None:
    configs = tofu_comparison(
        "forget05", objectives=["npo", "calibrated_mean"], bounds=["identity", "sine"], seeds=[3, 4]
    ).configs()
    assert len(configs) == 8
    plain = configs["npo-identity-seed4"]
    assert (plain.adapter.bound, plain.adapter.omega, plain.adapter.scale) == ("identity", 1, 1)
    assert (plain.training.seed, plain.adapter.seed) == (4, 4)
    calibrated = configs["calibrated_mean-sine-seed3"]
    assert (calibrated.objective.name, calibrated.objective.target.matching) == ("calibrated", "mean")


def test_a_given_retain_model_replaces_finetuning() -> None:
    given = next(iter(tofu_comparison(model="a/base", retain_model="a/retain").configs().values()))
    made = next(iter(tofu_comparison("forget10").configs().values()))
    assert (given.retain_model, given.model.finetune) == ("a/retain", None)
    assert made.retain_model is None
    assert made.model.finetune is not None


def test_changes_replace_shared_settings() -> None:
    changed = tofu_comparison("forget10", set={"training.learning_rate": 0.5})
    assert {config.training.learning_rate for config in changed.configs().values()} == {0.5}


@pytest.mark.parametrize(
    ("place", "instead"),
    [
        ("adapter.bound", "--bounds"),
        ("adapter.seed", "--seeds"),
        ("model.name", "--model"),
        ("retain_model", "--retain"),
    ],
)
def test_a_change_that_would_count_for_nothing_is_refused(place: str, instead: str) -> None:
    with pytest.raises(ConfigError, match=f"'{place}' cannot be changed for all runs.*Use {instead}"):
        tofu_comparison("forget10", set={place: 1})


def test_a_change_of_a_section_leaves_the_rest_of_the_protocol() -> None:
    (config,) = tofu_comparison("tofu-20", bounds="sine", set={"evaluation": {"batch_size": 8}}).configs().values()
    (usual,) = tofu_comparison("tofu-20", bounds="sine").configs().values()
    assert config.evaluation == usual.evaluation.model_copy(update={"batch_size": 8})
    assert usual.evaluation.retain_limit == 80
    (config,) = tofu_comparison("tofu-20", bounds="sine", set={"training": {"steps": 5}}).configs().values()
    assert config.training == usual.training.model_copy(update={"steps": 5})
    recipe = {"epochs": 3, "learning_rate": 1e-3, "batch_size": 8}
    (config,) = tofu_comparison("tofu-20", bounds="sine", set={"model.finetune": recipe}).configs().values()
    assert config.model.finetune == [FinetuneConfig(**recipe)], "a recipe is taken as it is"


def test_a_change_of_a_set_counts() -> None:
    changed = tofu_comparison("forget10", set={"data.forget.limit": 3})
    assert {config.data.forget.limit for config in changed.configs().values()} == {3}


def test_a_log_of_a_retain_model_replaces_it_as_well() -> None:
    given = next(iter(tofu_comparison(model="a/base", retain_log="TOFU_EVAL.json").configs().values()))
    assert (given.retain_log, given.retain_model, given.model.finetune) == ("TOFU_EVAL.json", None, None)


def test_several_learning_rates_are_in_the_names() -> None:
    configs = tofu_comparison(bounds="sine", learning_rates="1e-4,2.5e-3").configs()
    assert {name: config.training.learning_rate for name, config in configs.items()} == {
        "gradient_difference-sine-lr1e-4-seed0": 1e-4,
        "gradient_difference-sine-lr2.5e-3-seed0": 2.5e-3,
    }
    (only,) = tofu_comparison(bounds="sine", learning_rates=[0.5]).configs().items()
    assert (only[0], only[1].training.learning_rate) == ("gradient_difference-sine-seed0", 0.5)


def test_several_groups_of_layers_are_in_the_names() -> None:
    configs = tofu_comparison(bounds="sine", targets="mlp,attention").configs()
    assert {name: config.adapter.target_modules for name, config in configs.items()} == {
        "gradient_difference-sine-mlp-seed0": None,
        "gradient_difference-sine-attention-seed0": "attention",
    }


def test_a_method_that_is_named_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="twice"):
        tofu_comparison(seeds=[1, 1])


@pytest.mark.parametrize(
    ("given", "wrong"),
    [({"split": "forget99"}, "forget99"), ({"objectives": ["gd"]}, "gd"), ({"bounds": ["sin"]}, "sin")],
)
def test_unknown_names_are_refused(given: dict[str, object], wrong: str) -> None:
    options = {"split": "forget10", **given}
    with pytest.raises(ConfigError, match=wrong):
        tofu_comparison(**options)  # type: ignore[arg-type]


def test_a_folder_without_the_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="forget10_perturbed"):
        tofu_comparison("forget10", data=str(tmp_path))


@pytest.mark.parametrize("place", ["model.finetune", "model.finetune.epochs"])
@pytest.mark.parametrize("given", [{"retain_model": "a/retain"}, {"retain_log": "TOFU_EVAL.json"}])
def test_no_finetuning_of_a_given_base_model(place: str, given: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=f"'{place}' is set, but with a retain model or its log"):
        tofu_comparison(model="a/base", set={place: 3}, **given)
    with pytest.raises(ConfigError, match=f"'{place}.x' is set"):
        tofu_comparison(model="a/base", set={place: None, f"{place}.x": 3}, **given)
    assert tofu_comparison(model="a/base", set={"model.finetune": None}, **given).methods
