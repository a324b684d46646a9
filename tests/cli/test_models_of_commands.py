"""Which model a command measures or makes when the config says to finetune one."""

import json
import shutil

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import AutoTokenizer

from stable_forgetting.adapters import BoundedLoraConfig
from stable_forgetting.cli import commands
from stable_forgetting.records import read_record
from stable_forgetting.runs import models, pipeline
from tiny_problem import make_llama, make_tokenizer

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


def metrics_of(path):
    return {metric["name"]: metric["value"] for metric in json.loads(path.read_text())["metrics"]}


@pytest.mark.parametrize("option", ["--model", "--retain-model"])
def test_eval_refuses_a_model_with_other_tokens(forget, language, tmp_path, option):
    other = shutil.copytree(language.model, tmp_path / "other")
    make_tokenizer(["something else"]).save_pretrained(other)
    ended = forget("eval", language.write(tmp_path / "c.yaml"), option, other, "--out", tmp_path / "m.json")
    assert ended.code == 2
    assert "which has another tokenizer" in ended.err
    assert not (tmp_path / "m.json").exists()


@pytest.mark.parametrize("command", ["eval", "finetune"])
def test_a_text_that_is_too_long_is_refused_before_any_work(forget, language, tmp_path, command):
    rows = [{"prompt": "where is ada ?", "answer": "oslo " * 80}]
    (tmp_path / "long.jsonl").write_text(json.dumps(rows[0]) + "\n")
    data = {"data__forget": {"path": str(tmp_path / "long.jsonl")}, "model__finetune": FINETUNE}
    config = language.write(tmp_path / "c.yaml", **data)
    ended = forget(command, config, "--out", tmp_path / "out")
    assert ended.code == 2
    assert "positions" in ended.err
    assert not (tmp_path / "out").exists()


def test_eval_of_an_adapter_that_changes_other_blocks_than_the_config(forget, language, tmp_path):
    """Outputs of blocks that the config freezes are kept: those of the base model are not those with the adapter."""
    adapted = get_peft_model(make_llama(make_llama_vocabulary(language)), BoundedLoraConfig(r=2, task_type="CAUSAL_LM"))
    for name, weight in adapted.named_parameters():
        if "layers.0" in name and "bounded_lora" in name:
            weight.data.normal_()
    adapted.save_pretrained(tmp_path / "adapter")
    config, found = language.write(tmp_path / "c.yaml", adapter__blocks=[1]), {}
    assert forget("eval", config, "--out", tmp_path / "base.json").code == 0
    for name, options in {"kept": [], "whole": ["--set", "model.disk_cache_gib=0"]}.items():
        adapter = ["--adapter", tmp_path / "adapter"]
        ended = forget("eval", config, *adapter, *options, "--out", tmp_path / f"{name}.json")
        assert ended.code == 0, ended.err
        found[name] = metrics_of(tmp_path / f"{name}.json")
    assert found["kept"]["forget_nll"] == pytest.approx(found["whole"]["forget_nll"], rel=1e-5)
    assert found["kept"]["forget_nll"] != pytest.approx(metrics_of(tmp_path / "base.json")["forget_nll"], rel=1e-4)


def make_llama_vocabulary(language):
    return json.loads((language.model / "config.json").read_text())["vocab_size"]


def test_merge_refuses_a_base_model_that_has_changed_since_the_run(forget, language, tmp_path):
    own = shutil.copytree(language.model, tmp_path / "own")
    config = language.write(tmp_path / "c.yaml", model__name=str(own))
    assert forget("run", config, "--out", tmp_path / "run").code == 0
    assert forget("merge", tmp_path / "run", "--out", tmp_path / "merged").code == 0
    make_llama(make_llama_vocabulary(language), seed=1).save_pretrained(own)
    ended = forget("merge", tmp_path / "run", "--out", tmp_path / "again")
    assert ended.code == 2
    assert "has other weights now" in ended.err
    assert "--base" in ended.err
    assert not (tmp_path / "again").exists()
    given = forget("merge", tmp_path / "run", "--base", language.model, "--out", tmp_path / "again")
    assert given.code == 0
    assert "other weights" not in given.out
    assert same_weights(tmp_path / "merged", tmp_path / "again")
    another = forget("merge", tmp_path / "run", "--base", own, "--out", tmp_path / "another")
    assert another.code == 0
    assert "has other weights than the model that the run in" in " ".join(another.out.split())
    assert not same_weights(tmp_path / "merged", tmp_path / "another")


def test_a_model_without_embeddings_for_all_tokens_is_refused(forget, language, tmp_path):
    other = shutil.copytree(language.model, tmp_path / "other")
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_special_tokens({"pad_token": "[ANOTHER]"})
    tokenizer.save_pretrained(other)
    config = language.write(tmp_path / "c.yaml", model__name=str(other))
    for command in ("check", "run"):
        ended = forget(command, config)
        assert ended.code == 2
        assert f"the pad token {len(tokenizer) - 1}, but the model has {len(tokenizer) - 1} embeddings" in ended.err


@pytest.mark.parametrize("on", ["all", "retain"])
def test_finetune_makes_the_model_that_a_run_makes(forget, language, tmp_path, monkeypatch, on):
    """In half precision, too: both train in float32 and round at the end."""
    monkeypatch.setenv("STABLE_FORGETTING_CACHE", str(tmp_path / "cache"))
    taught, teach = [], models.teach

    def remembered(loaded, *others, **options):
        taught.append(loaded.model.dtype)
        return teach(loaded, *others, **options)

    monkeypatch.setattr(models, "teach", remembered)
    config = language.write(tmp_path / "c.yaml", model__finetune=FINETUNE, model__dtype="bfloat16")
    assert forget("finetune", config, "--out", tmp_path / "model", "--on", on).code == 0
    assert forget("run", config, "--out", tmp_path / "run").code == 0
    kept = list((tmp_path / "cache" / "models").iterdir())
    assert len(kept) == 2
    assert [same_weights(folder, tmp_path / "model") for folder in kept].count(True) == 1
    assert taught == [torch.float32] * 3
    assert load_file(tmp_path / "model" / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16


def test_every_way_of_merging_keeps_the_image_size(forget, images, tmp_path):
    config = images.write(tmp_path / "c.yaml", model__image_size=12)
    assert forget("run", config, "--out", tmp_path / "run").code == 0
    ways = {"run": [tmp_path / "run"], "adapter": [tmp_path / "run" / "adapter"]}
    ways |= {"base": [tmp_path / "run", "--base", images.model]}
    ways |= {"both": [tmp_path / "run" / "adapter", "--base", images.model]}
    for name, arguments in ways.items():
        assert forget("merge", *arguments, "--out", tmp_path / f"merged-{name}").code == 0
        size = json.loads((tmp_path / f"merged-{name}" / "preprocessor_config.json").read_text())["size"]
        assert size == {"height": 12, "width": 12}
        assert same_weights(tmp_path / f"merged-{name}", tmp_path / "merged-run")


def test_a_comparison_with_a_failed_method_ends_with_1_and_its_report(forget, language, tmp_path, monkeypatch):
    train = pipeline.train

    def without_memory(model, *others, **options):
        if model.peft_config["default"].bound == "tanh":
            raise RuntimeError("no memory left")
        return train(model, *others, **options)

    monkeypatch.setattr(pipeline, "train", without_memory)
    settings = language.write(tmp_path / "c.yaml").read_text()
    methods = "methods: {none: {adapter.bound: tanh}, fine: {adapter.bound: sine}}\n"
    (tmp_path / "compare.yaml").write_text(settings + methods)
    ended = forget("compare", tmp_path / "compare.yaml", "--out", tmp_path / "out")
    assert ended.code == 1
    assert "no memory left" in (tmp_path / "out" / "report.html").read_text()
    assert [read_record(tmp_path / "out" / name).status for name in ("none", "fine")] == ["failed", "finished"]


def test_a_method_that_cannot_begin_is_named_and_the_others_run(forget, language, tmp_path):
    settings = language.write(tmp_path / "c.yaml", training__steps=1).read_text()
    methods = (
        "methods: {fine: {adapter.bound: sine}, wrong: {retain_model: /no/such/model}, worse: {adapter.blocks: [99]},"
        " later: {adapter.bound: tanh}}\n"
    )
    (tmp_path / "compare.yaml").write_text(settings + methods)
    ended = forget("compare", tmp_path / "compare.yaml", "--out", tmp_path / "out")
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended
    assert ended.err.startswith("forget: The method 'wrong': No model folder at '/no/such/model'")
    assert "The method 'worse' is left out: There is no block 99" in " ".join(ended.out.split())
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(name in page for name in ("fine", "later"))
    (tmp_path / "compare.yaml").write_text(settings + "methods: {wrong: {adapter.blocks: [99]}, fine: {}}\n")
    ended = forget("compare", tmp_path / "compare.yaml", "--out", tmp_path / "other")
    assert ended.err.startswith("forget: The method 'wrong': There is no block 99")
    assert not (tmp_path / "other" / "fine").exists(), "what keeps the first one from beginning may be of all of them"
