"""Which model a command measures or makes when the config says to finetune one."""

import json

import pytest
from safetensors.torch import load_file

from stable_forgetting.cli import commands
from stable_forgetting.records import read_record

FINETUNE = {"epochs": 6, "learning_rate": 0.01, "batch_size": 4}


def same_weights(first, second) -> bool:
    one, two = (load_file(folder / "model.safetensors") for folder in (first, second))
    return one.keys() == two.keys() and all(one[name].equal(two[name]) for name in one)


def test_eval_measures_the_finetuned_base_with_the_adapter(forget, language, tmp_path):
    config, run_dir, found = language.write(tmp_path / "ft.yaml", model__finetune=FINETUNE), tmp_path / "run", {}
    ran = forget("run", config, "--out", run_dir)
    assert ran.code == 0, ran.err
    recorded = {evaluation.role: evaluation for evaluation in read_record(run_dir).evaluations}
    for role, options in (("base", []), ("unlearned", ["--adapter", run_dir / "adapter"])):
        shown = forget("eval", config, *options, "--out", tmp_path / f"{role}.json")
        assert shown.code == 0, shown.err
        metrics = json.loads((tmp_path / f"{role}.json").read_text())["metrics"]
        found[role] = {metric["name"]: metric["value"] for metric in metrics}
        expected = {metric.name: metric.value for metric in recorded[role].metrics if metric.value is not None}
        assert "retain_probability" in expected
        assert {name: found[role][name] for name in expected} == pytest.approx(expected, rel=1e-6)
    assert found["base"]["retain_probability"] != found["unlearned"]["retain_probability"]


def test_finetune_resumes_only_what_teaches_the_same(forget, language, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    config = language.write(tmp_path / "ft.yaml", model__finetune=FINETUNE)
    with monkeypatch.context() as patch:
        patch.setattr(commands, "save_model", interrupt)
        assert forget("finetune", config, "--out", tmp_path / "model", "--on", "all").code == 130
    assert len(list(tmp_path.glob(".model.*.training"))) == 1
    assert forget("finetune", config, "--out", tmp_path / "model", "--on", "retain").code == 0
    assert forget("finetune", config, "--out", tmp_path / "fresh", "--on", "retain").code == 0
    assert forget("finetune", config, "--out", tmp_path / "all", "--on", "all").code == 0
    assert same_weights(tmp_path / "model", tmp_path / "fresh")
    assert not same_weights(tmp_path / "model", tmp_path / "all")


@pytest.mark.parametrize(("command", "how"), [("run", "--resume"), ("check", "the same command")])
def test_an_interrupt_is_one_sentence(forget, language, tmp_path, monkeypatch, command, how):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "_read", interrupt)
    ended = forget(command, language.write(tmp_path / "c.yaml"))
    assert ended.code == 130
    assert ended.err.startswith("forget: Interrupted. Continue")
    assert how in ended.err
    assert ended.err.count("\n") == 1
