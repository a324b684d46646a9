"""Models by name: where they are found, what is refused, and that they are the same after a round trip."""

import json
import re
import sys

import pytest
import torch
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from stable_forgetting.errors import ConfigError, ModelError
from stable_forgetting.models import refusals
from stable_forgetting.models.folders import resolve_folder
from stable_forgetting.models.load import (
    LoadedModel,
    ModelSource,
    cache_dir,
    load_model,
    load_without_weights,
    save_model,
    weights_sha256,
)
from tiny_models import tiny_image_model, tiny_language_model
from tiny_problem import (
    TinyProblem,
    copy_of_model,
    file_tree,
    make_image_problem,
    make_language_problem,
    make_tokenizer,
)


@pytest.fixture(scope="module")
def language(tmp_path_factory) -> TinyProblem:
    return make_language_problem(tmp_path_factory.mktemp("language"))


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> TinyProblem:
    return make_image_problem(tmp_path_factory.mktemp("images"))


def source(problem: TinyProblem, **changes) -> ModelSource:
    return ModelSource(str(problem.model), problem.settings["task"], **changes)


def test_every_weight_counts_for_the_hash():
    model = tiny_language_model()
    seen = {weights_sha256(model)}
    for name, parameter in model.named_parameters():
        before = parameter.data.flatten()[-1].item()
        parameter.data.view(-1)[-1] += 1e-3
        changed = weights_sha256(model)
        assert changed not in seen, name
        seen.add(changed)
        parameter.data.view(-1)[-1] = before
    assert weights_sha256(model) in seen


def test_the_hash_sees_names_types_and_shapes():
    weight = torch.arange(4.0)

    def hash_of(name: str, value: torch.Tensor) -> str:
        module = torch.nn.Module()
        module.register_buffer(name, value)
        return weights_sha256(module)

    same = hash_of("a", weight)
    assert hash_of("a", weight.clone()) == same
    others = [
        hash_of("b", weight),
        hash_of("a", weight.reshape(2, 2)),
        hash_of("a", weight.to(torch.float64)),
        hash_of("a", weight.view(torch.int32)),
        hash_of("a", -weight),
    ]
    assert len({same, *others}) == 6


def test_the_hash_takes_any_type_and_layout():
    for dtype in (torch.bfloat16, torch.float16, torch.int8, torch.bool):
        module = torch.nn.Module()
        module.register_buffer("x", torch.ones(3, 2).to(dtype).T)
        assert len(weights_sha256(module)) == 64
    module.register_buffer("scalar", torch.tensor(1.0))
    assert len(weights_sha256(module)) == 64


@pytest.mark.parametrize("task", ["language", "images"])
def test_a_saved_model_is_the_same_again(task, request, tmp_path):
    problem = request.getfixturevalue(task)
    loaded = load_model(source(problem))
    assert not loaded.model.training
    save_model(loaded, tmp_path / "again")
    again = load_model(ModelSource(str(tmp_path / "again"), problem.settings["task"]))
    assert weights_sha256(again.model) == weights_sha256(loaded.model)
    assert again.source == str(tmp_path / "again")
    assert type(again.processor) is type(loaded.processor)
    assert [path.name for path in (tmp_path / "again").glob("*.safetensors")] == ["model.safetensors"]


def test_loading_leaves_the_random_state_alone(images):
    state = torch.get_rng_state()
    load_model(source(images, num_classes=7))
    assert torch.equal(torch.get_rng_state(), state)


def test_precision_is_as_asked(language):
    assert load_model(source(language, dtype="bfloat16")).model.dtype == torch.bfloat16
    assert load_model(source(language)).model.dtype == torch.float32


def test_a_head_of_another_size_is_the_same_every_time(images):
    torch.manual_seed(1)
    first = load_model(source(images, num_classes=7)).model
    torch.manual_seed(2)
    second = load_model(source(images, num_classes=7)).model
    assert first.classifier.weight.shape[0] == 7
    assert weights_sha256(first) == weights_sha256(second)
    fitting = load_model(source(images, num_classes=4)).model
    kept = load_model(source(images)).model
    assert weights_sha256(fitting) == weights_sha256(kept)
    assert torch.equal(first.vit.embeddings.cls_token, kept.vit.embeddings.cls_token)


@pytest.mark.parametrize("task", ["language", "images"])
def test_a_model_without_weights_has_the_same_layers(task, request):
    problem = request.getfixturevalue(task)
    empty, full = load_without_weights(source(problem)), load_model(source(problem))
    assert {tensor.device.type for tensor in empty.model.parameters()} == {"meta"}
    shapes = {name: tensor.shape for name, tensor in empty.model.named_parameters()}
    assert shapes == {name: tensor.shape for name, tensor in full.model.named_parameters()}
    assert type(empty.processor) is type(full.processor)


def test_a_model_without_weights_has_the_head_that_was_asked_for(images):
    assert load_without_weights(source(images, num_classes=7)).model.classifier.weight.shape[0] == 7


def test_weights_inside_a_package(language, tmp_path, monkeypatch):
    package = copy_of_model(language, tmp_path / "package_with_weights")
    (package / "__init__.py").write_text("raise RuntimeError('the package must not be run')")
    monkeypatch.syspath_prepend(tmp_path)
    loaded = load_model(ModelSource("package:package_with_weights", "language"))
    assert weights_sha256(loaded.model) == weights_sha256(load_model(source(language)).model)
    assert loaded.source == "package:package_with_weights"
    assert "package_with_weights" not in sys.modules


@pytest.mark.parametrize("name", ["package:no_such_package", "package:json.decoder", "package:os"])
def test_a_package_that_is_none_is_refused(name):
    with pytest.raises(ModelError, match="is not installed"):
        resolve_folder(name)


def test_names_of_the_hub_pass_and_paths_do_not(tmp_path):
    assert resolve_folder("org/model") == "org/model"
    assert resolve_folder("gpt2") == "gpt2"
    for name in ("./nothing", "/nothing", "~/nothing", "a/b/c"):
        with pytest.raises(ModelError, match="No model folder"):
            resolve_folder(name)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="is a file"):
        resolve_folder(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (GatedRepoError, "The hub model 'org/model' is gated. Ask for access"),
        (RepositoryNotFoundError, "no local folder, and the hub has no public model of that name. Check the spelling"),
        (RevisionNotFoundError, "has no such revision. Check model.revision"),
        (LocalEntryNotFoundError, "and the hub cannot be reached (offline mode is on). Check the name, give a local"),
        (EntryNotFoundError, "lacks a file: What a library says. Give a model that transformers can load."),
    ],
)
def test_what_the_hub_does_not_give_is_one_sentence_of_ours(kind, sentence, monkeypatch):
    monkeypatch.setattr(refusals, "is_offline_mode", lambda: True)
    error = OSError("What a library says")
    error.__cause__ = kind.__new__(kind)  # the hub's errors are made of answers of its server
    with pytest.raises(ModelError, match=re.escape(sentence)), refusals.readable("org/model"):
        raise error


def test_a_name_that_the_hub_cannot_have():
    with pytest.raises(ModelError, match=r"such a name cannot be on the hub\. Give a folder made by save_pretrained"):
        load_without_weights(ModelSource("bad name!!", "language"))


def test_a_long_reason_ends_with_a_sentence():
    with (
        pytest.raises(ModelError, match=r"cannot be loaded: First\. Second\. Check its name"),
        refusals.readable("a:b"),
    ):
        raise OSError(f"First.\n Second. {'Third ' * 60}.")


def test_only_safetensors_are_read(language, tmp_path):
    folder = copy_of_model(language, tmp_path / "model")
    weights = folder / "model.safetensors"
    torch.save(load_model(source(language)).model.state_dict(), folder / "pytorch_model.bin")
    assert load_model(ModelSource(str(folder), "language")).source == str(folder)
    weights.unlink()
    with pytest.raises(ModelError, match=r"pickled weights \(pytorch_model.bin\)"):
        load_model(ModelSource(str(folder), "language"))
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"no \*.safetensors"):
        load_model(ModelSource(str(folder), "language"))


def without_weights(folder, part):
    """The folder with all weights removed whose name has this part."""
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if part not in name}
    assert 0 < len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(("task", "part"), [("language", "lm_head"), ("language", "1.mlp"), ("images", "classifier")])
def test_files_that_lack_weights_are_refused(task, part, request, tmp_path):
    folder = copy_of_model(problem := request.getfixturevalue(task), tmp_path / "model")
    without_weights(folder, part)
    kind = source(problem).kind
    with pytest.raises(ModelError, match=rf"lacks \d weights of a .*, which would be random: .*{part}"):
        load_model(ModelSource(str(folder), kind))


def test_a_new_head_may_be_missing_and_other_weights_are_warned_of(images, tmp_path, caplog):
    folder = copy_of_model(images, tmp_path / "model")
    without_weights(folder, "classifier")
    load_model(ModelSource(str(folder), "image", num_classes=4))
    assert "lacks" not in caplog.text
    without_weights(folder, "layer.0.")
    load_model(ModelSource(str(folder), "image", num_classes=4))
    assert "weights beside the head, now random" in caplog.text


def test_weights_of_another_shape_are_refused_where_a_head_may_be_new(images, tmp_path):
    folder = copy_of_model(images, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": config["intermediate_size"] + 8}))
    with pytest.raises(ModelError, match=r"holds \d+ weights of another shape than its config says, such as '.*"):
        load_model(ModelSource(str(folder), "image", num_classes=4))
    (folder / "config.json").write_text(json.dumps(config))
    assert load_model(ModelSource(str(folder), "image", num_classes=7)).model.config.num_labels == 7


def test_a_tokenizer_without_pad_and_end_token_is_refused(language, tmp_path):
    folder = copy_of_model(language, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(ConfigError, match=r"The tokenizer of '.*model' has neither a pad token nor an end token"):
        load_model(ModelSource(str(folder), "language"))


def test_tied_weights_that_are_saved_once_are_not_missing(tmp_path):
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    make_tokenizer(["a b"]).save_pretrained(tmp_path / "model")
    assert "lm_head.weight" not in load_file(tmp_path / "model" / "model.safetensors")
    model = load_model(ModelSource(str(tmp_path / "model"), "language")).model
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_code_that_comes_with_a_model_does_not_run(language, tmp_path):
    import json

    folder = copy_of_model(language, tmp_path / "model")
    (folder / "modeling_theirs.py").write_text("raise SystemExit('this code must not run')")
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "theirs"}
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_theirs.Model", "AutoConfig": "modeling_theirs.Config"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(ModelSource(str(folder), "language"))


def test_builtin_models_are_checked_against_the_task():
    assert load_model(ModelSource("builtin:digits", "image")).source == "builtin:digits"
    with pytest.raises(ConfigError, match="for the task 'image'"):
        load_model(ModelSource("builtin:digits", "language"))
    with pytest.raises(ConfigError, match="Did you mean 'builtin:people'"):
        load_without_weights(ModelSource("builtin:poeple", "language"))


def test_a_failed_save_leaves_the_old_model(language, tmp_path, monkeypatch):
    old = copy_of_model(language, tmp_path / "model")
    before = file_tree(old)
    loaded = load_model(source(language))

    def stop_half_way(folder, **_):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(loaded.model, "save_pretrained", stop_half_way)
    with pytest.raises(OSError, match="disk full"):
        save_model(loaded, old)
    assert file_tree(old) == before
    monkeypatch.undo()
    save_model(loaded, old)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert weights_sha256(load_model(ModelSource(str(old), "language")).model) == weights_sha256(loaded.model)


def test_the_processor_is_the_tasks(language, images):
    for problem in (language, images):
        loaded = load_model(source(problem))
        assert isinstance(loaded, LoadedModel)
        assert loaded.task.name == problem.settings["task"]
    assert load_model(source(language)).processor.pad_token == "<pad>"


def test_a_tokenizer_without_pad_token_gets_the_end_token(language, tmp_path):
    loaded = load_model(source(language))
    loaded.processor.pad_token = None
    save_model(loaded, tmp_path / "model")
    assert load_model(ModelSource(str(tmp_path / "model"), "language")).processor.pad_token == "</s>"


def test_the_cache_is_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("STABLE_FORGETTING_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("STABLE_FORGETTING_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "stable-forgetting"


def test_tiny_models_differ_by_seed():
    assert weights_sha256(tiny_image_model(seed=0)) != weights_sha256(tiny_image_model(seed=1))
