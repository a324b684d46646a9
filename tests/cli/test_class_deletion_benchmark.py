"""`forget bench class-deletion` and `forget bench run` on images of plain colours: from the model to the report."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from stable_forgetting.models.load import ModelSource, cache_dir, load_model, model_sha256
from stable_forgetting.records import finetuning_phase, read_record
from stable_forgetting.report import summarize
from tiny_pictures import make_archive, make_folder, make_model

SMALL = {
    "model.finetune": "{trains: head, epochs: 2, learning_rate: 0.05}",
    "training.steps": 2,
    "evaluation.num_resamples": 100,
    "adapter.rank": 2,
}


@pytest.fixture
def bench(forget, tmp_path):
    model = make_model(tmp_path / "model")

    def call(data, *more):
        changes = [part for place, value in SMALL.items() for part in ("--set", f"{place}={value}")]
        given = ("--model", model, "--data", data, "--bounds", "sine", "--out", "runs")
        return forget("bench", "class-deletion", *given, *changes, *more)

    return call


def records():
    found = [read_record(path) for path in sorted(Path("runs").iterdir()) if path.is_dir()]
    return {record.name: record for record in found}


def sizes(record):
    return {entry.name: entry.count for entry in record.sets}


def test_two_requests_share_one_base_model(bench, tmp_path):
    ended = bench(make_archive(tmp_path / "pictures.npz"), "--forget", "crab,eel")
    assert ended.code == 0, ended.err
    crab, eel = records().values()
    assert crab.name == "crab-gradient_difference-sine-seed0"
    assert {crab.status, eel.status} == {"finished"}
    assert crab.models["base"] == eel.models["base"]
    assert crab.models["retain"] != eel.models["retain"]
    assert len([path for path in (cache_dir() / "models").iterdir() if path.is_dir()]) == 3
    assert sizes(crab) == {
        "forget": 10, "retain": 50, "forget_test": 3, "retain_test": 15, "holdout": 3
    }  # fmt: skip
    assert Path("runs/report.html").is_file()


def test_random_images_of_a_folder(bench, tmp_path):
    ended = bench(make_folder(tmp_path / "pictures"), "--random", "5")
    assert ended.code == 0, ended.err
    assert "no test images" in ended.out
    (record,) = records().values()
    assert sizes(record) == {"forget": 5, "retain": 6 * 7 - 5, "holdout": 6, "retain_test": 12}
    assert "no test images" in record.notes[0]
    assert "no test images" in Path("runs/report.html").read_text()


def test_listed_images_are_forgotten_to_the_last_one(bench, tmp_path):
    (tmp_path / "asked.txt").write_text("\n".join(str(row) for row in range(54, 60)))
    ended = bench(make_archive(tmp_path / "pictures.npz"), "--images", tmp_path / "asked.txt")
    assert ended.code == 0, ended.err
    (record,) = records().values()
    found = sizes(record)
    assert (found["forget"], found["forget"] + found["retain"] + found["holdout"]) == (6, 60)


def test_a_change_that_the_methods_would_replace_is_one_sentence(bench, tmp_path):
    ended = bench(make_archive(tmp_path / "pictures.npz"), "--forget", "crab", "--set", "adapter.bound=tanh")
    assert ended.code == 2
    assert "'adapter.bound' cannot be changed for all runs" in ended.err
    assert not Path("runs").exists()


def test_a_sequence_goes_on_from_the_merged_model(bench, tmp_path):
    ended = bench(make_archive(tmp_path / "pictures.npz"), "--forget", "crab,eel", "--sequence")
    assert ended.code == 0, ended.err
    first, second = records().values()
    merged = load_model(ModelSource(f"runs/{first.name}/merged", "image"))
    assert second.models["base"] == model_sha256(merged.model) != first.models["base"]
    assert (sizes(first)["retain"], sizes(second)["retain"]) == (50, 40)
    assert (sizes(first)["retain_test"], sizes(second)["retain_test"]) == (15, 12)
    assert second.models["retain"] not in (None, first.models["retain"])
    assert second.timings[finetuning_phase("retain")] > 0


def test_a_model_that_was_taught_the_data_has_the_data_s_names(bench, tmp_path):
    """Its head has the right size already, with other names: one of them is that of a class, at another number."""
    config_file = make_model(tmp_path / "named", num_labels=6) / "config.json"
    names = dict(enumerate(["crab", *"vwxyz"]))
    config = json.loads(config_file.read_text()) | {"id2label": names, "label2id": {n: i for i, n in names.items()}}
    config_file.write_text(json.dumps(config))
    ended = bench(
        make_archive(tmp_path / "pictures.npz"), "--forget", "crab,eel", "--sequence", "--model", tmp_path / "named"
    )
    assert ended.code == 0, ended.err
    for name in ("1-crab", "2-eel"):
        merged = Path(f"runs/{name}-gradient_difference-sine-seed0/merged/config.json")
        assert json.loads(merged.read_text())["id2label"]["0"] == "apple"


def test_a_finished_sequence_is_finished_wherever_the_cache_is(bench, tmp_path, monkeypatch):
    given = (make_archive(tmp_path / "pictures.npz"), "--forget", "crab,eel", "--sequence", "--seeds", "0,1")
    first = bench(*given)
    assert first.code == 0
    assert "then eel" in first.out
    before = records()
    steps = [[len(method.records) for method in group.methods] for group in summarize([*before.values()]).groups]
    assert steps == [[2], [2]], "each step is one problem, and the seeds of a method are one row"
    monkeypatch.setenv("STABLE_FORGETTING_CACHE", str(tmp_path / "another_cache"))
    Path("runs/report.html").unlink()
    ended = bench(*given)
    assert ended.code == 0, ended.err
    assert records() == before
    assert "Nothing was run: all of it (4) was finished before" in ended.out
    assert Path("runs/report.html").is_file()
    refused = bench(*given, "--set", "training.steps=3")
    assert refused.code == 2
    assert "other settings" in refused.err
    assert not (cache_dir() / "models").exists(), "nothing is taught for runs that are finished or refused"


def test_a_declared_experiment_on_a_superclass_with_a_calibrated_target(forget, tmp_path):
    declared = {
        "benchmark": "class-deletion",
        "model": "nobody/nothing",
        "data": str(make_archive(tmp_path / "pictures.npz")),
        "superclass": ["animals"],
        "objectives": ["calibrated"],
        "bounds": ["sine"],
        "learning_rates": [1e-3],
        "set": {place: yaml.safe_load(str(value)) for place, value in SMALL.items()},
    }
    path = tmp_path / "colours.yaml"
    path.write_text(yaml.safe_dump(declared))
    ended = forget("bench", "run", path, "--model", make_model(tmp_path / "model"), "--set", "training.steps=1")
    assert ended.code == 0, ended.err
    assert "calibrated targets" in ended.out
    record = read_record(Path("runs/class-deletion-colours/animals-calibrated-sine-seed0"))
    assert (record.config["training"]["steps"], record.config["adapter"]["rank"]) == (1, 2)
    assert sizes(record) == {
        "forget": 27, "retain": 27, "targets": 3, "forget_test": 9, "holdout": 9, "retain_test": 9
    }  # fmt: skip


@pytest.mark.skipif(find_spec("timm") is not None, reason="timm is installed")
def test_without_timm_its_models_say_what_is_missing(forget, tmp_path):
    folder = tmp_path / "timm"
    folder.mkdir()
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 10, "pretrained_cfg": {"input_size": [3, 8, 8]}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text("{}")
    save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
    archive = make_archive(tmp_path / "pictures.npz")
    ended = forget("bench", "class-deletion", "--model", folder, "--data", archive, "--forget", "crab")
    assert ended.code == 2
    assert "requires the timm library" in ended.err
    assert "pip install" in ended.err


def test_a_misspelled_class_is_one_sentence(bench, tmp_path):
    ended = bench(make_archive(tmp_path / "pictures.npz"), "--forget", "crap")
    assert ended.code == 2
    assert "Did you mean 'crab'?" in ended.err
    assert not Path("runs").exists()
