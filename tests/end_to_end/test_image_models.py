"""Image runs: sizes, what is kept on disk, and one base model for every request."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from stable_forgetting.errors import ConfigError, ModelError, RunDirectoryError
from stable_forgetting.models.load import ModelSource, load_model, model_sha256
from stable_forgetting.models.tasks import ImageTask
from stable_forgetting.progress import SilentProgress
from stable_forgetting.records import finetuning_phase
from stable_forgetting.runs import run
from stable_forgetting.runs.preparation import prepare
from tiny_problem import TinyProblem, copy_of_model, make_image_problem

HEAD = {"trains": "head", "epochs": 2, "learning_rate": 0.02, "batch_size": 4}


@pytest.fixture(scope="module")
def problem(tmp_path_factory) -> TinyProblem:
    return make_image_problem(tmp_path_factory.mktemp("images"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STABLE_FORGETTING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_images_are_scaled_to_the_size_asked_for(problem):
    loaded = load_model(ModelSource(str(problem.model), "image", image_size=12))
    values = loaded.processor(images=[np.zeros((20, 30, 3), dtype=np.uint8)], return_tensors="pt")["pixel_values"]
    assert values.shape[-2:] == (12, 12)
    assert loaded.task.interpolate
    batch = {"pixel_values": torch.as_tensor(values), "labels": torch.tensor([0])}
    assert loaded.task.predict(loaded.model, batch).logits.shape == (1, 4)


def test_a_folder_without_an_image_processor_needs_a_size(problem, tmp_path):
    folder = copy_of_model(problem, tmp_path / "bare")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match=r"has no preprocessor_config\.json.*Give model\.image_size"):
        load_model(ModelSource(str(folder), "image"))
    loaded = load_model(ModelSource(str(folder), "image", image_size=8))
    white = loaded.processor(images=[np.full((8, 8, 3), 255, dtype=np.uint8)], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(torch.as_tensor(white)[0, 0, 0, 0].item(), (1 - 0.485) / 0.229, rtol=1e-4, atol=0)


def test_every_request_starts_from_the_same_base_model(problem, cache):
    bases = []
    for forgotten in ("label == 3", "label == 1"):
        models = prepare(
            problem.config(model__finetune=HEAD, data__forget={"where": forgotten}, data__num_classes=4),
            SilentProgress(),
        )
        bases.append(models.base().model.state_dict())
    assert all(torch.equal(bases[0][name], bases[1][name]) for name in bases[0])
    assert len(list((cache / "models").iterdir())) == 1


def test_a_model_from_the_cache_has_the_names_of_the_data_at_hand(problem, cache):
    """It is kept by its images and their numbers, which other data can have, too."""
    config = problem.config(model__finetune=HEAD, data__num_classes=4)
    names = {number: f"class{number}" for number in range(4)}
    assert prepare(config, SilentProgress()).base().model.config.id2label == names
    (kept,) = cache.glob("models/*/config.json")
    kept.write_text(kept.read_text().replace("class2", "cat"))
    assert prepare(config, SilentProgress()).base().model.config.id2label == names


def test_the_record_says_what_finetuning_took_also_from_the_cache(problem, tmp_path):
    config = problem.config(model__finetune=HEAD, data__num_classes=4)
    made, read = (run(config, tmp_path / name).timings for name in ("made", "read"))
    for role in ("base", "retain"):
        assert 0 < made[finetuning_phase(role)] == read[finetuning_phase(role)]
    retain = prepare(config, SilentProgress()).retain()
    given = run(problem.config(retain_model=retain.model.name_or_path), tmp_path / "given").timings
    assert finetuning_phase("base") not in given
    assert given[finetuning_phase("retain")] == made[finetuning_phase("retain")]


def test_a_given_base_model_is_unlearned_beside_a_retain_model_made_from_the_configured_one(problem, tmp_path):
    first = run(problem.config(model__finetune=HEAD, merge=True, data__num_classes=4), tmp_path / "first")
    merged = tmp_path / "first" / "merged"
    config = problem.config(model__finetune=HEAD, base_model=str(merged), data__num_classes=4)
    second = run(config, tmp_path / "second")
    assert second.models["base"] == model_sha256(load_model(ModelSource(str(merged), "image")).model)
    assert second.models["retain"] == first.models["retain"]
    (tmp_path / "second" / "record.json").unlink()
    shutil.copy(problem.model / "model.safetensors", merged)
    with pytest.raises(RunDirectoryError, match="changed: base model"):
        run(config, tmp_path / "second", resume=True)


def test_what_is_kept_changes_no_result(problem, tmp_path, cache):
    records = {}
    for gib in (1.0, 0.0):
        config = problem.config(
            model__finetune=HEAD, model__disk_cache_gib=gib, adapter__blocks=[1], data__num_classes=4
        )
        records[gib] = run(config, tmp_path / f"run{gib}")
        if gib:
            assert {"images", "activations"} <= {path.name for path in cache.iterdir()}
    values = [
        {metric.name: metric.value for found in records[gib].evaluations for metric in found.metrics if metric.value}
        for gib in records
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-3, abs=1e-5)


def test_kept_images_are_read_and_not_scaled_again(problem, monkeypatch):
    config = problem.config(data__num_classes=4)
    first = prepare(config, SilentProgress()).sets
    monkeypatch.setattr("stable_forgetting.runs.sets.process_with", lambda _: pytest.fail)
    second = prepare(config, SilentProgress()).sets
    assert [example.identity for example in first.retain] == [example.identity for example in second.retain]


def test_images_that_find_no_room_are_scaled_when_they_are_needed(problem, monkeypatch):
    """Neither pixels of files nor pixel values stay in memory; what they are is the same."""
    kept = prepare(problem.config(data__num_classes=4), SilentProgress()).sets.retain
    scaled = prepare(problem.config(data__num_classes=4, model__disk_cache_gib=0.0), SilentProgress()).sets.retain
    assert [example.identity for example in kept] == [example.identity for example in scaled]
    for example in [*kept, *scaled]:
        assert not [value for value in example.__dict__.values() if isinstance(value, np.ndarray | torch.Tensor)]
    assert torch.equal(scaled[0].pixel_values, kept[0].pixel_values)
    assert np.array_equal(scaled[0].pixels, kept[0].pixels)


def test_test_images_that_were_trained_on_are_left_out(problem, tmp_path, caplog):
    images, labels = [], []
    values = np.random.default_rng(1)
    for number in range(40):
        images.append(values.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        labels.append(number % 4)
    test_images, test_labels = [*images[:1], *[image[::-1] for image in images]], [labels[0], *labels]
    np.savez(
        tmp_path / "all.npz",
        x_train=np.stack(images),
        y_train=np.array(labels),
        x_test=np.stack(test_images),
        y_test=np.array(test_labels),
    )
    data = {
        "source": {"path": str(tmp_path / "all.npz")},
        "forget": {"split": "train", "where": "label == 0"},
        "retain": {"split": "train", "where": "label > 0"},
        "test": {"split": "test", "where": "label >= 0"},
    }
    sets = prepare(problem.config(data=data), SilentProgress()).sets.by_name
    assert len(sets["forget_test"]) == len(sets["holdout"]) == 10
    assert len(sets["retain_test"]) == 30
    assert "1 of 41 test images are also training images and are left out" in caplog.text


def test_test_images_that_targets_are_made_of_are_left_out(problem, tmp_path, caplog):
    images = np.random.default_rng(1).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(40) % 4
    test = {"x_test": np.concatenate([images[:, ::-1], images[36:37]]), "y_test": np.append(labels, 0)}
    np.savez(tmp_path / "all.npz", x_train=images, y_train=labels, **test)
    data = {
        "source": {"path": str(tmp_path / "all.npz")},
        "forget": {"split": "train", "where": "label == 0 and row < 20"},
        "retain": {"split": "train", "where": "label > 0"},
        "targets": {"split": "train", "where": "label == 0 and row >= 20"},
        "test": {"split": "test"},
    }
    sets = prepare(problem.config(data=data), SilentProgress()).sets.by_name
    assert len(sets["forget_test"]) == 10
    assert "1 of 41 test images are also training images and are left out" in caplog.text


def test_few_test_images_that_were_trained_on_are_left_out_by_name(problem, tmp_path, caplog):
    folder = tmp_path / "images"
    for name in ("train", "test"):
        shutil.copytree(problem.folder / "images", folder / name)
    for number, path in enumerate(sorted((folder / "test").glob("*/*.png"))[1:]):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    data = {
        "source": {"path": str(folder)},
        "forget": {"split": "train", "where": "label == 0"},
        "retain": {"split": "train", "where": "label > 0"},
        "test": {"split": "test"},
    }
    sets = prepare(problem.config(data=data), SilentProgress()).sets.by_name
    assert (len(sets["forget_test"]), len(sets["retain_test"])) == (3, 12)
    assert f"1 of 16 test images are also training images and are left out: {folder}/test/class0/0.png" in caplog.text


def test_no_room_means_nothing_kept(problem, cache):
    prepare(problem.config(model__disk_cache_gib=1e-9), SilentProgress())
    assert not (cache / "images").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model__image_size": 8}, r"model\.image_size is 8: only image models have it"),
        ({"model__finetune": [HEAD]}, r"'head': only image classifiers"),
        ({"model__finetune": [{"epochs": -1}]}, r"model\.finetune\.0\.epochs = -1"),
        ({"model__finetune": {"epoch": 1}}, r"Did you mean 'epochs'"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, change, message):
    from tiny_problem import make_language_problem

    language = make_language_problem(tmp_path)
    with pytest.raises(ConfigError, match=message):
        language.config(**change)


def test_the_trunk_is_used_only_below_the_adapter(problem):
    def trunk_of(**changes):
        task = prepare(problem.config(data__num_classes=4, **changes), SilentProgress()).base().task
        assert isinstance(task, ImageTask)
        return task.trunk

    assert trunk_of() is None
    trunk = trunk_of(adapter__blocks=[1])
    assert trunk is not None
    assert len(trunk.blocks) == 1


def test_a_training_under_autocast_is_the_same_with_and_without_a_kept_trunk(problem, cache, tmp_path):
    """What is measured reads the kept outputs; the training passes through the blocks below in its own precision."""
    losses = {}
    for room in (0, 1):
        config = problem.config(
            data__num_classes=4, adapter__blocks=[1], training__bf16=True, model__disk_cache_gib=room
        )
        losses[room] = [step.loss for step in run(config, tmp_path / str(room)).history]
        assert (cache / "activations").exists() == bool(room)
    assert losses[0] == losses[1]
