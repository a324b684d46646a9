"""Options: documented, with one default, checked together, and without one that changes nothing."""

import ast
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from stable_forgetting.config import (
    FinetuneConfig,
    RunConfig,
    StopRule,
    TargetConfig,
    TrainingConfig,
    apply_change,
    data_options,
    load_config,
    model_options,
    options,
    parse_change,
    parse_config,
)
from stable_forgetting.config.benchmark_options import parse_benchmark
from stable_forgetting.errors import ConfigError
from tiny_problem import TinyProblem, make_language_problem

SMALLEST: dict[str, Any] = {
    "task": "language",
    "model": {"name": "builtin:people"},
    "data": {"source": {"path": "builtin:people"}, "forget": {"where": "split == 'known'"}},
}
SECTIONS = [
    found
    for module in (data_options, model_options, options)
    for found in vars(module).values()
    if isinstance(found, type) and issubclass(found, BaseModel) and found.__module__ == module.__name__
]


def undocumented(section: type[BaseModel]) -> list[str]:
    """Fields without a docstring below them."""
    tree = ast.parse(Path(inspect.getfile(section)).read_text())
    (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == section.__name__)
    after = [*body[1:], ast.Pass()]
    return [
        node.target.id
        for node, following in zip(body, after, strict=True)
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and not (isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant))
    ]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_option_is_documented(section):
    assert section.__doc__
    assert not undocumented(section)


def test_defaults_are_allowed_and_few_settings_are_required():
    config = parse_config(SMALLEST)
    assert config.training == TrainingConfig()
    assert (config.adapter.bound, config.adapter.rank, config.adapter.omega) == ("sine", 4, 100.0)
    assert config.objective.name == "gradient_difference"
    assert config.retain_model is None
    assert config.merge is False
    for section in ("task", "model", "data"):
        with pytest.raises(ConfigError, match=f"{section}: this setting is required"):
            parse_config({name: value for name, value in SMALLEST.items() if name != section})


def test_a_config_survives_being_written():
    config = parse_config(
        SMALLEST | {"training": {"stop": [{"metric": "forget_nll", "above": 2}], "evaluate_every": 1}}
    )
    written = yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))
    assert RunConfig.model_validate(written) == config
    assert RunConfig.model_validate(json.loads(config.model_dump_json())) == config


def test_a_config_cannot_be_changed_by_accident():
    with pytest.raises(ValueError, match="frozen"):
        parse_config(SMALLEST).training.seed = 3


NUMBERS = [
    (section, name)
    for section in SECTIONS
    for name, field in section.model_fields.items()
    if {"int", "float"} & set(re.findall(r"\w+", repr(field.annotation)))
]


def test_every_number_has_limits():
    """Those of a stop rule have to be finite only."""
    limits = ("Ge(", "Gt(", "allow_inf_nan=False")
    assert ("TrainingConfig", "seed") in [(section.__name__, name) for section, name in NUMBERS]
    unlimited = [
        f"{section.__name__}.{name}"
        for section, name in NUMBERS
        if not any(limit in repr(section.model_fields[name]) for limit in limits)
    ]
    assert not unlimited


@pytest.mark.parametrize(("section", "name"), NUMBERS, ids=lambda part: getattr(part, "__name__", part))
def test_a_truth_value_is_no_number(section, name):
    value = [True] if "list" in repr(section.model_fields[name].annotation) else True
    with pytest.raises(ConfigError, match=rf"{name}(\.0)? = True: a truth value is no number; give a number"):
        section(**{name: value})


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_is_one_of_32_bits(seed):
    for section in ("adapter", "training", "evaluation"):
        with pytest.raises(ConfigError, match=f"{section}.seed = {seed}: input should be (greater|less) than"):
            parse_config(SMALLEST | {section: {"seed": seed}})
    with pytest.raises(ConfigError, match=f"adapter.seed = {seed}"):
        FinetuneConfig(adapter={"seed": seed})
    assert parse_benchmark("tofu", {"model": "m", "seeds": 3, "learning_rates": 0.1}).seeds == (3,)
    with pytest.raises(ConfigError, match=f"seeds.1 = {seed}"):
        parse_benchmark("tofu", {"model": "m", "seeds": f"0,{seed}"})


@pytest.mark.parametrize("limit", ["above", "below", "peak"])
def test_the_limit_of_a_stop_rule_is_finite(limit):
    with pytest.raises(ConfigError, match=f"{limit} = nan: input should be a finite number"):
        StopRule(metric="forget_nll", **{limit: float("nan")})


def test_all_problems_are_named_at_once():
    bad = SMALLEST | {"adapter": {"rank": -1, "omga": 3}, "training": {"schedule": "stairs"}}
    with pytest.raises(ConfigError) as caught:
        parse_config(bad, source="the test")
    text = str(caught.value)
    for part in ("3 problems in the test", "adapter.rank = -1", "Did you mean 'omega'", "training.schedule = 'stairs'"):
        assert part in text


def test_places_that_nothing_asks_for_are_refused():
    for other in ({"matching": "mean"}, {"source": "number", "nll": 3.0}):
        objective = {"name": "calibrated", "target": {"places": "pretrained", **other}}
        with pytest.raises(ConfigError, match="places 'pretrained' is for source 'holdout' and matching 'quantiles'"):
            parse_config(SMALLEST | {"objective": objective})


def test_a_target_of_what_is_known_by_heart_is_refused():
    objective = {"name": "calibrated", "target": {"source": "number", "nll": 0.0005}}
    with pytest.raises(ConfigError, match=r"objective\.target\.nll = 0\.0005.*0\.001"):
        parse_config(SMALLEST | {"objective": objective})


@pytest.mark.parametrize("source", ["holdout", "pretrained"])
def test_a_number_that_is_not_the_target_is_refused(source):
    message = f"nll is 3.0, but source is '{source}', which gives the target; set source to 'number', or leave nll out"
    for name in ("calibrated", "gradient_difference"):
        objective = {"name": name, "target": {"source": source, "nll": 3.0}}
        with pytest.raises(ConfigError, match=rf"objective\.target: {message}"):
            parse_config(SMALLEST | {"objective": objective})
    with pytest.raises(ConfigError, match=message):
        TargetConfig(source=source, nll=3.0)


def test_options_that_contradict_each_other_are_refused():
    both = {"objective": {"name": "calibrated"}, "retain_log": "x", "retain_model": "y"}
    with pytest.raises(ConfigError, match=r"data\.holdout.*; retain_log and retain_model are both given"):
        parse_config(SMALLEST | both)
    for name, target in (("calibrated", {"source": "pretrained"}), ("calibrated_labels", {"places": "pretrained"})):
        changes = {"objective": {"name": name, "target": target}}
        (setting,) = target
        with pytest.raises(ConfigError, match=f"{setting} 'pretrained' needs pretrained_model, or model.finetune"):
            parse_config(SMALLEST | changes)
        image = SMALLEST | changes | {"task": "image", "model": {"name": "m", "finetune": {}}}
        with pytest.raises(ConfigError, match="needs pretrained_model, a classifier of the same classes"):
            parse_config(image)
        given = {"data": SMALLEST["data"] | {"holdout": {"path": "h.jsonl"}}, "pretrained_model": "m"}
        assert parse_config(SMALLEST | changes | given).pretrained_model == "m"
    with pytest.raises(ConfigError, match="give a 'where' rule"):
        parse_config(SMALLEST | {"data": {"source": {"path": "x.jsonl"}, "forget": {}}})
    with pytest.raises(ConfigError, match="need a 'path' each"):
        parse_config(SMALLEST | {"data": {"forget": {"path": "x.jsonl"}}})


def test_an_unseen_term_needs_unseen_texts():
    given = SMALLEST | {"objective": {"name": "npo", "unseen_weight": 0.5}}
    with pytest.raises(ConfigError, match=r"unseen_weight is 0\.5, which needs data\.holdout or data\.targets"):
        parse_config(given)
    for name in ("holdout", "targets"):
        found = parse_config(given | {"data": SMALLEST["data"] | {name: {"path": "h.jsonl"}}})
        assert found.objective.unseen_weight == 0.5
    with pytest.raises(ConfigError, match=r"unseen_weight is 0\.5: only language models have it"):
        parse_config(given | {"task": "image", "data": SMALLEST["data"] | {"holdout": {"path": "h.npz"}}})


@pytest.mark.parametrize("given", [{"best_metric": "x"}, {"stop": [{"metric": "x", "above": 1}]}])
def test_what_decides_in_a_training_needs_validations_from_a_file_and_from_python(given):
    (name,) = given
    with pytest.raises(ConfigError, match=f"in the config: training: {name} needs evaluate_every, the number"):
        parse_config(SMALLEST | {"training": given})
    with pytest.raises(ConfigError, match=f"in TrainingConfig: {name} needs evaluate_every"):
        TrainingConfig(**given)


def test_settings_that_are_written_in_python_are_refused_in_one_sentence():
    with pytest.raises(ConfigError) as caught:
        TrainingConfig(steps=0, schedul="linear", stop=[{"metric": "x"}])
    text = str(caught.value)
    for part in (
        "There are 3 problems in TrainingConfig: steps = 0: input should be greater",
        "schedul: Unknown setting 'schedul'. Did you mean 'schedule'?",
        "stop.0: give one of 'above', 'below' and 'peak'",
    ):
        assert part in text
    with pytest.raises(ConfigError, match=r"in RunConfig: training\.steps = 0: input should be"):
        RunConfig(**SMALLEST | {"training": {"steps": 0}})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("training.steps=5", ("training.steps", 5)),
        ("training.learning_rate=3e-4", ("training.learning_rate", "3e-4")),
        ("training.learning_rate=0.01", ("training.learning_rate", 0.01)),
        ("adapter.target_modules=[fc1, fc2]", ("adapter.target_modules", ["fc1", "fc2"])),
        ("data.forget.where=label == 3", ("data.forget.where", "label == 3")),
        ("data.forget.where='a=b'", ("data.forget.where", "a=b")),
        ("retain_model=null", ("retain_model", None)),
        ("merge=true", ("merge", True)),
        (" name =x", ("name", "x")),
    ],
)
def test_changes_are_read_as_yaml(change, expected):
    assert parse_change(change) == expected


def test_a_key_that_is_given_twice_is_refused():
    with pytest.raises(ConfigError, match="the key 'rank' is given in line 1 and again in line 1"):
        parse_change("adapter={rank: 2, rank: 3}")
    merged = parse_change("adapter=[&one {rank: 2}, {<<: *one, rank: 3}]")
    assert merged == ("adapter", [{"rank": 2}, {"rank": 3}])


def test_a_number_that_yaml_takes_for_text_is_still_a_number():
    """YAML 1.1 has no `3e-4`; the config reads it all the same."""
    settings = json.loads(json.dumps(SMALLEST))
    apply_change(settings, *parse_change("training.learning_rate=3e-4"))
    assert parse_config(settings).training.learning_rate == pytest.approx(3e-4)


def test_epochs_may_be_left_out_with_null():
    assert TrainingConfig.model_validate({"epochs": None, "steps": 3}) == TrainingConfig(steps=3)
    with pytest.raises(ConfigError, match=r"epochs = 0: .* greater than 0"):
        TrainingConfig(epochs=0)


def test_a_change_of_an_alias_leaves_the_section_that_it_stands_for(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "task: language\nmodel: {name: x}\n"
        "data: {forget: {path: f.jsonl}, retain: &kept {path: r.jsonl}, retain_evaluation: *kept}\n"
    )
    config, _ = load_config(path, [("data.retain_evaluation.limit", 3)])
    assert (config.data.retain.limit, config.data.retain_evaluation.limit) == (None, 3)


def test_settings_that_hold_themselves_are_refused(tmp_path):
    (tmp_path / "c.yaml").write_text("task: &again [*again]\n")
    with pytest.raises(ConfigError, match="nested too deeply, or in itself"):
        load_config(tmp_path / "c.yaml")


def test_changes_replace_what_the_file_says(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(SMALLEST | {"training": {"steps": 3}}))
    config, given = load_config(path, [("training.steps", 7), ("adapter.rank", 2)])
    assert (config.training.steps, config.adapter.rank) == (7, 2)
    assert given["training"] == {"steps": 7}


@pytest.fixture(scope="module")
def problem(tmp_path_factory) -> TinyProblem:
    return make_language_problem(tmp_path_factory.mktemp("problem"))


CHANGES_TRAINING = {
    "adapter.bound": "tanh",
    "adapter.rank": 3,
    "adapter.omega": 10,
    "adapter.scale": 0.01,
    "adapter.target_modules": "attention",
    "adapter.blocks": [1],
    "adapter.seed": 1,
    "objective.name": "npo",
    "objective.retain": "kl",
    "objective.forget_weight": 0.5,
    "objective.retain_weight": 0.5,
    "training.epochs": 1,
    "training.learning_rate": 0.02,
    "training.forget_batch_size": 2,
    "training.retain_batch_size": 2,
    "training.gradient_accumulation": 2,
    "training.schedule": "linear",
    "training.warmup_share": 0.5,
    "training.max_grad_norm": 0.01,
    "training.weight_decay": 10.0,
    "training.max_weight": 0.01,
    "training.bf16": True,
    "training.seed": 1,
    "model.dtype": "bfloat16",
    "model.quantization": "4bit",
    "data.max_length": 10,
    "data.template": "{prompt} {answer}",
    "data.forget.limit": 3,
    "data.forget.where": "'ada' in prompt",
}
"""Options that decide about the trained adapter, each with a value that is not the default."""


@pytest.fixture(scope="module")
def trained_adapter(problem, tmp_path_factory):
    """Bytes of the adapter that a run with some changes gives."""
    import torch

    from stable_forgetting.runs import run

    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def train(changes: dict[str, Any]) -> bytes:
        settings = json.loads(json.dumps(problem.settings))
        del settings["training"]["steps"]
        settings["evaluation"] |= {"generate": False}
        for place, value in ({"training.epochs": 2} | changes).items():
            apply_change(settings, place, value)
        run_dir = tmp_path_factory.mktemp("run") / "run"
        run(parse_config(settings), run_dir)
        return (run_dir / "adapter" / "adapter_model.safetensors").read_bytes()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STABLE_FORGETTING_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield train
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def plain_adapter(trained_adapter) -> bytes:
    return trained_adapter({})


def test_the_same_settings_give_the_same_adapter(trained_adapter, plain_adapter):
    assert trained_adapter({}) == plain_adapter


@pytest.mark.parametrize("option", CHANGES_TRAINING)
def test_an_option_changes_the_adapter(trained_adapter, plain_adapter, option):
    assert trained_adapter({option: CHANGES_TRAINING[option]}) != plain_adapter


CHANGES_NOTHING_TRAINED = {
    "training.save_every": 1,
    "training.gradient_checkpointing": True,
    "training.evaluate_every": 1,
    "evaluation.batch_size": 2,
    "evaluation.num_resamples": 150,
    "evaluation.seed": 5,
    "evaluation.num_examples": 1,
    "objective.beta": 0.7,
    "objective.limit": 0.7,
    "training.max_weight": 100.0,
    "name": "other",
}
"""Options that must not decide about the adapter: how often is saved or looked, and what an ascent has no use for."""


def test_looking_and_saving_do_not_change_the_adapter(trained_adapter, plain_adapter):
    assert trained_adapter(CHANGES_NOTHING_TRAINED) == plain_adapter


def test_beta_limit_and_targets_change_what_uses_them(trained_adapter):
    bounded = {"objective.name": "bounded_ascent"}
    assert trained_adapter(bounded) != trained_adapter(bounded | {"objective.limit": 30})
    assert trained_adapter({"objective.name": "npo"}) != trained_adapter({"objective.name": "npo", "objective.beta": 1})
    adapters = {
        trained_adapter(
            {"objective.name": "calibrated", **{f"objective.target.{name}": value for name, value in target}}
        )
        for target in (
            [],
            [("matching", "mean")],
            [("source", "number"), ("nll", 9.0)],
            [("source", "number"), ("nll", 12.0)],
        )
    }
    assert len(adapters) == 4


def test_a_list_of_no_trainings_is_refused():
    with pytest.raises(ConfigError, match=r"model.finetune = \[\].*names no training.*or null"):
        parse_config(SMALLEST | {"model": {"name": "m", "finetune": []}})


def test_a_model_is_taught_with_plain_lora_also_where_a_part_of_the_adapter_is_given():
    given = {"trains": "adapter", "adapter": {"blocks": [1]}}
    (training,) = parse_config(SMALLEST | {"model": {"name": "m", "finetune": given}}).model.finetune
    assert training.adapter.blocks == [1]
    assert training.adapter.model_copy(update={"blocks": None}) == FinetuneConfig().adapter
    assert (training.adapter.bound, training.adapter.rank, training.adapter.omega, training.adapter.scale) == (
        "identity",
        16,
        1.0,
        1.0,
    )


def test_image_runs_have_no_retain_log():
    with pytest.raises(ConfigError, match="retain_log: there are logs of language models only; give retain_model"):
        parse_config(SMALLEST | {"task": "image", "retain_log": "x.json"})
