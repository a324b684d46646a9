"""What identifies a run's inputs: changed data, templates and models are noticed, never mixed with the old ones."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, ViTImageProcessorPil

from stable_forgetting.config import parse_config
from stable_forgetting.errors import ConfigError, DataError, ModelError, RunDirectoryError
from stable_forgetting.models.load import load_model
from stable_forgetting.runs import prepare, run
from stable_forgetting.runs.check import check_config
from stable_forgetting.runs.environment import peak_memory_bytes, reset_peak_memory
from stable_forgetting.runs.models import configured_source
from tiny_models import tiny_image_model


def test_a_resume_with_other_data_is_refused(problem, tmp_path):
    config = problem.config()
    run(config, tmp_path / "run")
    (tmp_path / "run" / "record.json").unlink()
    changed = json.loads((tmp_path / "run" / "inputs.json").read_text())
    changed["forget"] = "0" * 64
    (tmp_path / "run" / "inputs.json").write_text(json.dumps(changed))
    with pytest.raises(RunDirectoryError, match="changed: forget"):
        run(config, tmp_path / "run", resume=True)


def test_a_finished_run_of_an_earlier_version_knows_its_retain_model_by_the_record(problem, tmp_path):
    """Earlier versions had neither the hash of a given retain model among the inputs nor times of files."""
    retain = shutil.copytree(problem.model, tmp_path / "retain")
    config, place = problem.config(retain_model=str(retain), training__steps=1), tmp_path / "run"
    record = run(config, place)
    inputs = json.loads((place / "inputs.json").read_text())
    assert inputs.pop("retain model") == record.models["retain"]
    (place / "inputs.json").write_text(json.dumps(inputs))
    (place / "files.json").unlink()
    assert run(config, place, resume=True) == record
    (place / "inputs.json").write_text(json.dumps(inputs))
    model = AutoModelForCausalLM.from_pretrained(retain)
    model.get_input_embeddings().weight.data.mul_(2)
    model.save_pretrained(retain)
    with pytest.raises(RunDirectoryError, match="changed: retain model"):
        run(config, place, resume=True)


def test_another_template_is_another_set(problem):
    from stable_forgetting.progress import SilentProgress

    plain, other = (
        prepare(problem.config(**changes), SilentProgress()).sets.forget
        for changes in ({}, {"data__template": "Q {prompt} A {answer}"})
    )
    assert [example.key for example in plain] == [example.key for example in other]
    assert plain.sha256 != other.sha256


@pytest.fixture
def image_problem(tmp_path):
    model = tiny_image_model(num_labels=4)
    model.save_pretrained(tmp_path / "model")
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "model")
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8), np.arange(12) % 3
    np.savez(tmp_path / "train.npz", image=images, label=labels)
    np.savez(tmp_path / "test.npz", image=255 - images, label=labels)

    def make(test="test.npz"):
        return parse_config(
            {
                "task": "image",
                "model": {"name": str(tmp_path / "model")},
                "data": {
                    "source": {"path": str(tmp_path / "train.npz")},
                    "forget": {"where": "label == 1"},
                    "test": {"path": str(tmp_path / test)},
                },
                "training": {"steps": 2},
            }
        )

    return make, model


def test_a_trained_head_is_kept_although_the_data_have_fewer_classes(image_problem):
    make, model = image_problem
    loaded = load_model(configured_source(make(), classes=3))
    assert torch.equal(loaded.model.classifier.weight, model.classifier.weight)


def test_where_the_data_have_no_class_names_those_of_the_base_model_count(image_problem, tmp_path):
    make, model = image_problem
    for folder, names in (("base", ("ant", "bee", "cat", "dog")), ("retain", ("bee", "ant", "cat", "dog"))):
        model.config.id2label, model.config.label2id = dict(enumerate(names)), {n: i for i, n in enumerate(names)}
        model.save_pretrained(tmp_path / folder)
        ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(tmp_path / folder)
    given = {f"{folder}_model": str(tmp_path / folder) for folder in ("base", "retain")}
    (problem,) = check_config(make().model_copy(update=given)).problems
    assert problem.startswith(f"The class 'ant' is number 0 in the model '{tmp_path / 'base'}' and 1 in the model")


def test_test_images_that_were_trained_on_are_refused(image_problem):
    from stable_forgetting.progress import SilentProgress

    make, _ = image_problem
    assert "retain_test" in prepare(make(), SilentProgress()).sets.by_name
    with pytest.raises(DataError, match="12 of 12 test images are in the forget, retain or targets set"):
        prepare(make(test="train.npz"), SilentProgress())


def test_peak_memory_begins_anew():
    held = bytearray(200_000_000)
    held[::4096] = b"x" * len(held[::4096])
    before = peak_memory_bytes()
    if before is None:
        pytest.skip("peak memory cannot be measured on this system")
    del held
    reset_peak_memory()
    assert peak_memory_bytes() < before - 100_000_000


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"bound": "sinee"}, "model.finetune.adapter: .*sinee"),
        ({"target_modules": "nonsense"}, "model.finetune.adapter: .*nonsense"),
        ({"blocks": [99]}, "model.finetune.adapter: .*99"),
    ],
)
def test_adapters_of_the_finetuning_are_checked_before_anything_is_trained(problem, tmp_path, adapter, message):
    trainings = [{"trains": "all", "epochs": 1}, {"trains": "adapter", "adapter": adapter}]
    config = problem.config(model__finetune=trainings)
    with pytest.raises((ConfigError, ModelError), match=message):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert any(re.search(message, found) for found in check_config(config).problems)
