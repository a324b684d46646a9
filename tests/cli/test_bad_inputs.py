"""A user's mistakes: one sentence that names the value and what to do, exit code 2, and nothing written."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import get_peft_model
from transformers import GPTJConfig, GPTJForCausalLM

from stable_forgetting.adapters import BoundedLoraConfig
from stable_forgetting.runs import RunDirectory
from stable_forgetting.runs.cache import alone_in
from tiny_problem import TinyProblem, copy_of_model, file_tree, make_llama

LONGEST = 600

SETTINGS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown setting": ({"training__learning_rte": 1}, ["learning_rte", "Did you mean 'learning_rate'"]),
    "unknown section": ({"trainings__steps": 1}, ["trainings", "Did you mean 'training'"]),
    "wrong type": ({"training__steps": "many"}, ["training.steps", "'many'", "integer"]),
    "a list as a number": ({"adapter__omega": [1]}, ["adapter.omega", "[1]"]),
    "a truth value as a number": ({"training__steps": True}, ["training.steps = True", "give a number"]),
    "a seed below 0": ({"evaluation__seed": -1}, ["evaluation.seed = -1", "greater than or equal to 0"]),
    "a stop rule without a number": (
        {"training__stop": [{"metric": "forget_nll", "above": float("nan")}], "training__evaluate_every": 2},
        ["training.stop.0.above = nan", "finite"],
    ),
    "omega 0": ({"adapter__omega": 0}, ["adapter.omega = 0", "greater than 0"]),
    "scale -1": ({"adapter__scale": -1}, ["adapter.scale = -1", "greater than 0"]),
    "rank 0": ({"adapter__rank": 0}, ["adapter.rank = 0", "greater than or equal to 1"]),
    "learning rate 0": ({"training__learning_rate": 0}, ["training.learning_rate = 0", "greater than 0"]),
    "infinite rate": ({"training__learning_rate": float("inf")}, ["training.learning_rate = inf", "finite"]),
    "unknown task": ({"task": "lanuage"}, ["task", "'lanuage'", "'language'"]),
    "all weights 0": (
        {"objective__forget_weight": 0, "objective__retain_weight": 0},
        ["forget_weight", "retain_weight", "both 0"],
    ),
    "unknown bound": ({"adapter__bound": "sinus"}, ["'sinus'", "Did you mean 'sine'", "tanh"]),
    "unknown objective": ({"objective__name": "npoo"}, ["'npoo'", "Did you mean 'npo'", "calibrated"]),
    "unknown retain term": ({"objective__retain": "nl"}, ["'nl'", "nll"]),
    "several names": ({"adapter__bound": "sinus", "objective__name": "npoo"}, ["'sinus'", "'npoo'"]),
    "calibrated without holdout": (
        {"objective__name": "calibrated", "data__holdout": None},
        ["holdout", "data.holdout", "unseen examples"],
    ),
    "calibrated without number": (
        {"objective__name": "calibrated", "objective__target__source": "number"},
        ["'number'", "nll"],
    ),
    "stop rule without validation": (
        {"training__stop": [{"metric": "forget_nll", "above": 3}]},
        ["training: stop needs evaluate_every"],
    ),
    "stop rule with two sides": (
        {"training__stop": [{"metric": "forget_nll", "above": 3, "below": 1}], "training__evaluate_every": 2},
        ["training.stop.0", "one of 'above', 'below' and 'peak'"],
    ),
    "unknown stop metric": (
        {"training__stop": [{"metric": "forget_nul", "above": 3}], "training__evaluate_every": 2},
        ["'forget_nul'", "Did you mean 'forget_nll'"],
    ),
    "unknown best metric": (
        {"training__best_metric": "retain_nul", "training__evaluate_every": 2},
        ["'retain_nul'", "Did you mean 'retain_nll'"],
    ),
    "best metric of the other task": (
        {"training__best_metric": "retain_accuracy", "training__evaluate_every": 2},
        ["'retain_accuracy'", "retain_nll"],
    ),
    "targets that match nothing": ({"adapter__target_modules": ["mlp.up_prj"]}, ["mlp.up_prj", "'mlp.up_proj'"]),
    "target pattern that is none": ({"adapter__target_modules": "("}, ["target_modules is '('", "regular expression"]),
    "target pattern that matches nothing": ({"adapter__target_modules": "zzz.*"}, ["zzz", "Linear layers"]),
    "model of the other task": ({"model__name": "builtin:digits"}, ["builtin:digits", "'image'", "'language'"]),
    "unknown built-in model": ({"model__name": "builtin:peple"}, ["builtin:peple", "Did you mean 'builtin:people'"]),
    "missing package": ({"model__name": "package:no_such_package"}, ["no_such_package", "pip"]),
    "missing model folder": ({"model__name": "/no/such/model"}, ["/no/such/model", "existing folder"]),
    "missing base model": ({"base_model": "/no/such/model"}, ["/no/such/model", "existing folder"]),
    "missing retain model": ({"retain_model": "/no/such/model"}, ["/no/such/model", "existing folder"]),
    "missing pretrained model": ({"pretrained_model": "/no/such/model"}, ["/no/such/model", "existing folder"]),
}

DATA_FILES: dict[str, tuple[str, str, list[str]]] = {
    "truncated line": ("f.jsonl", '{"prompt": "a ?", "answer": "b"}\n{"prompt": "c', ["Line 2", "f.jsonl", "cut off"]),
    "a list of texts": ("f.json", '["a", "b"]', ["f.json", "a text", "object"]),
    "wrong columns": ("f.jsonl", '{"question": "a ?", "reply": "b"}\n', ["question", "reply", "prompt"]),
    "empty answer": ("f.jsonl", '{"prompt": "a ?", "answer": ""}\n', ["row 0 of the forget set", "answer"]),
    "half a character": (
        "f.jsonl",
        '{"prompt": "a ?", "answer": "b \\ud83d"}\n',
        ["row 0 of the forget set", "'\\ud83d'", "half of a character"],
    ),
    "empty file": ("f.jsonl", "", ["f.jsonl", "no rows"]),
    "unsupported ending": ("f.xlsx", "x", ["'.xlsx'", ".jsonl"]),
    "uneven CSV": ("f.csv", "prompt,answer\na,b,c\n", ["f.csv", "3 cells", "2 columns"]),
    "no Parquet": ("f.parquet", "x", ["f.parquet", "Parquet"]),
    "no UTF-8": ("f.txt", "\udcff", ["f.txt", "UTF-8"]),
}

RULES: dict[str, tuple[str, list[str]]] = {
    "unknown column": ("promt == 'a'", ["promt", "Did you mean 'prompt'"]),
    "syntax": ("prompt == ", ["prompt ==", "cannot be read"]),
    "call": ("open('x')", ["open('x')", "not allowed"]),
    "selects nothing": ("prompt == 'nobody'", ["forget set is empty", "nobody", "data.forget.where"]),
    "no order": ("prompt < 3", ["prompt < 3", "row 0"]),
}


@pytest.fixture
def refused(forget, tmp_path, language) -> Callable[..., str]:
    """Run a command that has to be refused; gives back its sentence."""

    def call(*arguments: object, naming: list[str]) -> str:
        watched = (tmp_path, Path.cwd(), language.folder)
        before = [file_tree(folder) for folder in watched]
        ended = forget(*arguments)
        assert ended.code == 2, ended
        assert ended.err.startswith("forget: ")
        assert ended.err.count("\n") == 1, f"more than one line: {ended.err}"
        assert len(ended.err) <= LONGEST, f"{len(ended.err)} characters: {ended.err}"
        assert re.search(r"[.!?)]$", ended.err.strip()), ended.err
        for text in naming:
            assert text in ended.err, f"{text!r} is not in: {ended.err}"
        for folder, tree in zip(watched, before, strict=True):
            assert file_tree(folder) == tree, f"something was written to {folder}"
        return ended.err

    return call


@pytest.mark.parametrize("case", SETTINGS)
def test_settings(refused, language, tmp_path, case):
    changes, naming = SETTINGS[case]
    refused("run", language.write(tmp_path / "c.yaml", **changes), "--out", tmp_path / "out", naming=naming)


def test_all_problems_of_a_config_are_named_together(refused, language, tmp_path):
    config = language.write(tmp_path / "c.yaml", adapter__rank=0, training__steps=-2, evaluation__batch="x")
    naming = ["3 problems", "adapter.rank = 0", "training.steps = -2", "Did you mean 'batch_size'"]
    refused("run", config, naming=naming)


@pytest.mark.parametrize(
    ("text", "naming"),
    [
        ("a: [", ["c.yaml", "not valid YAML"]),
        ("- a\n- b\n", ["c.yaml", "list", "settings"]),
        ("training:\n  steps: 3\n  seed: 1\n  'steps': 4\n", ["c.yaml", "the key 'steps'", "line 2", "line 4"]),
        ("", ["c.yaml", "settings"]),
        ("name: x\n", ["task: this setting is required", "model: this setting is required"]),
        ("methods: {}\n", ["forget compare"]),
    ],
)
def test_config_files(refused, tmp_path, text, naming):
    (tmp_path / "c.yaml").write_text(text)
    refused("run", tmp_path / "c.yaml", naming=naming)


def test_a_missing_config(refused, tmp_path):
    refused("run", tmp_path / "nothing.yaml", naming=["nothing.yaml", "YAML file"])


@pytest.mark.parametrize(
    ("change", "naming"),
    [
        ("training.steps", ["'training.steps'", "section.setting=value"]),
        ("training.steps=[", ["training.steps=[", "YAML"]),
        ("name.part=3", ["name.part", "'tiny'", "not a section"]),
        ("training.stepps=3", ["stepps", "Did you mean 'steps'"]),
    ],
)
def test_changes_on_the_command_line(refused, language, tmp_path, change, naming):
    refused("run", language.write(tmp_path / "c.yaml"), "--set", change, naming=naming)


def test_compare_needs_methods(refused, language, tmp_path):
    refused("compare", language.write(tmp_path / "c.yaml"), naming=["methods", "forget run"])
    config = language.write(tmp_path / "c.yaml", methods={"one": {"adapter.bound": "sine"}, "two": {"adapter.rank": 0}})
    refused("compare", config, naming=["method 'two'", "adapter.rank = 0"])


@pytest.mark.parametrize("case", DATA_FILES)
def test_data_files(refused, language, tmp_path, case):
    name, content, naming = DATA_FILES[case]
    (tmp_path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    config = language.write(tmp_path / "c.yaml", data__forget__path=str(tmp_path / name))
    refused("run", config, "--out", tmp_path / "out", naming=naming)


@pytest.mark.parametrize("case", RULES)
def test_rules(refused, language, tmp_path, case):
    where, naming = RULES[case]
    config = language.write(tmp_path / "c.yaml", data__forget__where=where)
    refused("run", config, "--out", tmp_path / "out", naming=naming)


def test_missing_data(refused, language, tmp_path):
    path = str(language.folder / "forgt.jsonl")
    refused("run", language.write(tmp_path / "c.yaml", data__forget__path=path), naming=["forgt.jsonl", "forget.jsonl"])
    config = language.write(tmp_path / "c.yaml", data__forget__path="nobody/nothing")
    refused("run", config, naming=["nobody/nothing", "local path"])


@pytest.mark.parametrize("other", ["retain", "holdout"])
def test_sets_that_overlap(refused, language, tmp_path, other):
    own, shared = ((language.folder / f"{name}.jsonl").read_text().split("\n")[0] for name in ("forget", other))
    (tmp_path / "f.jsonl").write_text(f"{own}\n{shared}\n")
    config = language.write(tmp_path / "c.yaml", data__forget__path=str(tmp_path / "f.jsonl"))
    naming = [f"forget and {other} share 1 example", "in forget: 1", f"in {other}: 0", "Remove"]
    refused("run", config, "--out", tmp_path / "out", naming=naming)


def refused_images(refused, images: TinyProblem, tmp_path: Path, naming: list[str], **changes: Any) -> None:
    refused("run", images.write(tmp_path / "c.yaml", **changes), "--out", tmp_path / "out", naming=naming)


def test_pickled_objects(refused, images, tmp_path):
    np.savez(tmp_path / "a.npz", image=np.array([{"run": "code"}], dtype=object), label=np.array([0]))
    refused_images(refused, images, tmp_path, ["a.npz", "pickled"], data__source__path=str(tmp_path / "a.npz"))


def test_labels_out_of_range(refused, images, tmp_path):
    refused_images(refused, images, tmp_path, ["is 3", "2 classes", "0 to 1"], data__num_classes=2)


def test_unreadable_images(refused, images, tmp_path):
    for place in range(2):
        (tmp_path / f"class{place}").mkdir()
        (tmp_path / f"class{place}" / "x.png").write_bytes(b"no image")
    changes = {"data__source__path": str(tmp_path), "data__forget__where": "label == 1"}
    refused_images(refused, images, tmp_path, ["x.png", "damaged"], **changes)


def test_a_folder_without_images(refused, images, tmp_path):
    (tmp_path / "empty").mkdir()
    changes = {"data__source__path": str(tmp_path / "empty")}
    refused_images(refused, images, tmp_path, ["empty", "CLASS/IMAGE"], **changes)


def test_pickled_weights(refused, language, tmp_path):
    model = copy_of_model(language, tmp_path / "model")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    config = language.write(tmp_path / "c.yaml", model__name=str(model))
    refused("run", config, "--out", tmp_path / "out", naming=[str(model), "pytorch_model.bin", "safetensors"])


def test_truncated_weights(refused, language, tmp_path):
    model = copy_of_model(language, tmp_path / "model")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    refused("run", language.write(tmp_path / "c.yaml", model__name=str(model)), naming=[str(model), "cannot be loaded"])


def test_a_damaged_model_config(refused, language, tmp_path):
    model = copy_of_model(language, tmp_path / "model")
    (model / "config.json").write_text("{")
    refused("run", language.write(tmp_path / "c.yaml", model__name=str(model)), naming=[str(model)])


def test_a_model_without_tokenizer(refused, language, tmp_path):
    make_llama(20).save_pretrained(tmp_path / "model")
    config = language.write(tmp_path / "c.yaml", model__name=str(tmp_path / "model"))
    refused("run", config, naming=[str(tmp_path / "model"), "tokenizer"])


def test_an_unknown_family_lists_its_layers(refused, language, tmp_path):
    model = copy_of_model(language, tmp_path / "model")
    config = GPTJConfig(
        vocab_size=80, n_positions=64, n_embd=16, n_layer=1, n_head=2, rotary_dim=4, bos_token_id=1, eos_token_id=2
    )
    GPTJForCausalLM(config).save_pretrained(model)
    config = language.write(tmp_path / "c.yaml", model__name=str(model))
    refused("run", config, "--out", tmp_path / "out", naming=["'gptj'", "target_modules", "mlp.fc_in"])


@pytest.fixture
def adapter(language, tmp_path) -> Path:
    """A sound adapter for the model of the language problem."""
    model = get_peft_model(make_llama(len(_vocabulary(language))), BoundedLoraConfig(r=2, init_seed=0))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def _vocabulary(language: TinyProblem) -> dict[str, int]:
    return json.loads((language.model / "tokenizer.json").read_text())["model"]["vocab"]


def _pickle_it(adapter: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    weights.unlink()
    torch.save({}, adapter / "adapter_model.bin")


def _truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DAMAGES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "no weights": (lambda a: (a / "adapter_model.safetensors").unlink(), ["adapter_model.safetensors", "adapter"]),
    "pickled weights": (_pickle_it, ["pickled", "safetensors"]),
    "truncated weights": (lambda a: _truncate(a / "adapter_model.safetensors", 700), ["cannot be put on"]),
    "damaged config": (lambda a: _truncate(a / "adapter_config.json", 40), ["adapter_config.json", "damaged"]),
    "config of another kind": (lambda a: (a / "adapter_config.json").write_text("[]"), ["peft_type"]),
    "no config": (lambda a: (a / "adapter_config.json").unlink(), ["adapter_config.json is missing"]),
    "unknown bound": (lambda a: _edit(a / "adapter_config.json", bound="sinus"), ["'sinus'"]),
    "unknown method": (lambda a: _edit(a / "adapter_config.json", peft_type="NOTHING"), ["NOTHING"]),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_adapters(refused, language, tmp_path, adapter, case):
    damage, naming = DAMAGES[case]
    damage(adapter)
    config = language.write(tmp_path / "c.yaml")
    refused("eval", config, "--adapter", adapter, "--out", tmp_path / "m.json", naming=[str(adapter), *naming])
    refused("merge", adapter, "--base", language.model, "--out", tmp_path / "out", naming=[str(adapter), *naming])


def test_an_adapter_of_another_model(refused, language, tmp_path):
    wide = get_peft_model(make_llama(20, hidden_size=32), BoundedLoraConfig(r=2))
    wide.save_pretrained(tmp_path / "wide")
    config = language.write(tmp_path / "c.yaml")
    refused("eval", config, "--adapter", tmp_path / "wide", naming=[str(tmp_path / "wide"), "base model"])


def test_an_adapter_given_as_a_model(refused, language, tmp_path, adapter):
    config = language.write(tmp_path / "c.yaml", model__name=str(adapter))
    refused("run", config, "--out", tmp_path / "out", naming=[str(adapter), "an adapter", "base model"])


def test_merge_needs_a_base_a_new_folder_and_an_adapter(refused, language, tmp_path, adapter):
    refused("merge", adapter, "--out", tmp_path / "out", naming=[str(adapter), "--base"])
    refused("merge", adapter, "--base", language.model, "--out", language.model, naming=[str(language.model), "exists"])
    refused("merge", tmp_path / "nothing", "--out", tmp_path / "out", naming=["nothing", "run directory"])
    refused("merge", language.model, "--out", tmp_path / "out", naming=[str(language.model), "adapter_config.json"])


def test_run_directories(refused, language, tmp_path):
    config, out = language.write(tmp_path / "c.yaml"), tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    refused("run", config, "--out", out, naming=[str(out), "not empty", "--out"])
    refused("run", config, "--out", out, "--resume", naming=[str(out), "not empty"])
    refused("run", config, "--out", config, naming=[str(config), "is a file", "--out"])


@pytest.mark.parametrize("record", [False, True])
def test_a_directory_that_holds_a_run(refused, language, tmp_path, record):
    out = tmp_path / "out"
    RunDirectory(out).claim(language.config(), {})
    if record:
        (out / "record.json").write_text('{"format": 1, ')
    config = language.write(tmp_path / "c.yaml")
    refused("run", config, "--out", out, naming=[str(out), "--resume", "--out"])
    other = language.write(tmp_path / "other.yaml", training__steps=9)
    naming = [str(out), "other settings (training.steps: 8 there, 9 now)", "--out"]
    refused("run", other, "--out", out, "--resume", naming=naming)


def test_a_run_with_many_other_settings(refused, language, tmp_path):
    """The first three are named, in the order of the options, also where those of the run are not allowed any more."""
    out = tmp_path / "out"
    RunDirectory(out).claim(language.config(), {})
    changes = {"retain_model": "other", "adapter__bound": "tanh", "training__steps": 9, "evaluation__seed": 3}
    changes |= {"merge": True, "evaluation__num_examples": 3}  # the last one is allowed
    naming = [
        "(retain_model: null there, other now; adapter.bound: sine there, tanh now; training.steps: ",
        "and 2 more",
    ]
    given = language.write(tmp_path / "c.yaml", **changes)
    refused("run", given, "--out", out, "--resume", naming=naming)
    (out / "config.yaml").write_text((out / "config.yaml").read_text() + "no_such_option: 3\n")
    refused("run", given, "--out", out, "--resume", naming=[*naming[:1], "and 3 more"])
    (out / "config.yaml").write_text("just words")
    refused("run", given, "--out", out, "--resume", naming=["is damaged"])


def test_a_run_with_another_setting_in_a_list(refused, language, tmp_path):
    """Long sections look alike where they begin."""
    trainings = [{"trains": "adapter", "epochs": epochs} for epochs in (1, 2)]
    RunDirectory(tmp_path / "out").claim(language.config(model__finetune=trainings), {})
    trainings[1]["epochs"] = 3
    given = language.write(tmp_path / "c.yaml", model__finetune=trainings)
    naming = ["other settings (model.finetune.1.epochs: 2.0 there, 3.0 now)"]
    refused("run", given, "--out", tmp_path / "out", "--resume", naming=naming)


def test_records(refused, tmp_path):
    run_dir = tmp_path / "run"
    refused("report", run_dir, naming=[str(run_dir), "forget run"])
    run_dir.mkdir()
    refused("report", run_dir, naming=[str(run_dir / "record.json"), "forget run"])
    for text, naming in (
        ('{"format": 1, "na', ["damaged", "--resume"]),
        ('{"format": 2}', ["format 2", "version"]),
        ("[]", ["format None", "version"]),
        ('{"format": 1, "name": "x"}', ["damaged at 'task'"]),
    ):
        (run_dir / "record.json").write_text(text)
        refused("report", run_dir, "--out", tmp_path / "page.html", naming=[str(run_dir / "record.json"), *naming])


def test_finetune_needs_its_section_and_a_new_folder(refused, language, tmp_path):
    config = language.write(tmp_path / "c.yaml")
    refused("finetune", config, "--out", tmp_path / "model", naming=["model.finetune", "c.yaml"])
    config = language.write(tmp_path / "c.yaml", model__finetune={"epochs": 1})
    refused("finetune", config, "--out", language.model, naming=[str(language.model), "exists"])
    with alone_in(tmp_path / "model"):
        refused("finetune", config, "--out", tmp_path / "model", naming=["Another process is at work in", "model"])
