"""The call from Python: what it refuses before it trains, a second request, and a resume of the same training only."""

import copy
import itertools
import json
import random
import warnings
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, ResNetConfig, ResNetForImageClassification
from transformers.utils import logging

from stable_forgetting.adapters import BoundedLoraConfig, BoundedLoraLinear
from stable_forgetting.config import StopRule, TargetConfig, TrainingConfig
from stable_forgetting.data.examples import ExampleSet
from stable_forgetting.errors import ConfigError, DataError, ModelError, RunDirectoryError
from stable_forgetting.models.tasks import ImageTask, LanguageTask
from stable_forgetting.objectives import build_objective
from stable_forgetting.runs import likelihoods, load_adapter, training_directory, unlearn, unlearning
from stable_forgetting.runs.cache import alone_in
from stable_forgetting.runs.constants import forget_constants
from stable_forgetting.training import Sets as TrainingSets
from stable_forgetting.training import surroundings, train
from tiny_models import FakeTokenizer, image_set, language_set, tiny_image_model, tiny_language_model
from tiny_problem import make_language_problem

SETTINGS = TrainingConfig(steps=1, learning_rate=1e-2, warmup_share=0, save_every=1)
FORGET, RETAIN, HOLDOUT = language_set("forget", 4, 1), language_set("retain", 4, 2), language_set("holdout", 4, 3)


def call(model=None, forget=FORGET, retain=RETAIN, **changes):
    given = {"tokenizer": FakeTokenizer(), "training": SETTINGS} | changes
    return unlearn(tiny_language_model() if model is None else model, forget, retain, **given)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items() if "bounded_lora" in name}


def same(one, other) -> bool:
    return all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())


def logits_of(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(1, 9)[None]).logits


def is_plain(model) -> bool:
    return not any(isinstance(module, BoundedLoraLinear) for module in model.modules())


def test_nothing_is_warned_of(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call().model.save_pretrained(tmp_path)
        load_adapter(tiny_language_model(), tmp_path)


@pytest.fixture
def constants(monkeypatch):
    """What the forget terms of each call are given."""
    noted = []

    def note(*arguments, **given):
        noted.append(forget_constants(*arguments, **given))
        return noted[-1]

    monkeypatch.setattr(unlearning, "forget_constants", note)
    return noted


def test_a_second_request_goes_on_from_what_was_forgotten(constants):
    model = tiny_language_model()
    first = call(model, objective="npo")
    for given in (model, first.model):
        with pytest.raises(ModelError, match=r"has an adapter already.*merge_and_unload\(\)` for a further request"):
            call(given, language_set("forget", 3, 4))
    merged = first.model.merge_and_unload()
    forgetful = logits_of(merged)
    second = call(merged, FORGET, objective="npo")
    assert (constants[1]["reference_nll_sum"] - constants[0]["reference_nll_sum"]).abs().max() > 1e-3
    assert torch.equal(logits_of(second.model.unload()), forgetful)


def test_an_adapter_of_another_method_is_refused():
    other = get_peft_model(tiny_language_model(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ModelError, match="has an adapter already"):
        call(other)


class Killed(BaseException):
    """In place of an interruption by the user."""


def test_after_an_error_in_training_the_model_can_be_given_again(monkeypatch):
    def interrupted(*_, **__):
        raise Killed

    model = tiny_language_model()
    model.lm_head.requires_grad_(False)
    trainable = [weight.requires_grad for weight in model.parameters()]
    assert len(set(trainable)) == 2
    expected = logits_of(model)
    with monkeypatch.context() as patch:
        patch.setattr(unlearning, "train", interrupted)
        with pytest.raises(Killed):
            call(model)
    assert is_plain(model)
    assert [weight.requires_grad for weight in model.parameters()] == trainable
    assert torch.equal(logits_of(model), expected)
    assert same(call(model).model, call().model)


def test_an_error_while_adapters_are_merged_leaves_the_models_weights(monkeypatch):
    """Merging makes new weights, layer after layer, for which memory can be too small."""
    merge, merged = BoundedLoraLinear.merge, []

    def without_memory(layer, *given, **options):
        if len(merged) == 2:
            raise torch.OutOfMemoryError("out of memory")
        merge(layer, *given, **options)
        merged.append(not torch.equal(layer.base_layer.weight, layer.kept_base_weight))

    model = tiny_language_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    monkeypatch.setattr(BoundedLoraLinear, "merge", without_memory)
    training = TrainingConfig(steps=2, learning_rate=0.1, evaluate_every=1, warmup_share=0)
    with pytest.raises(torch.OutOfMemoryError):
        call(model, training=training)
    assert merged == [True, True]
    assert is_plain(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_config_of_a_saved_adapter_can_be_used_again(tmp_path):
    first = call()
    first.model.save_pretrained(tmp_path)
    config = BoundedLoraConfig.from_pretrained(tmp_path)
    assert config.inference_mode
    assert same(call(adapter=config).model, first.model)


@pytest.mark.parametrize("ends_in_step", [None, 2])
def test_the_model_is_used_on_as_before(monkeypatch, ends_in_step):
    """Random states, modes, the use of the cache and activation checkpointing are the caller's."""
    model = tiny_language_model().train()
    model.model.layers[0].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    original, steps = LanguageTask.predict, itertools.count(1)

    def predict(self, given, batch):
        assert given.config.use_cache is False, "transformers no longer changes it: drop _own_use_of_cache"
        assert given.is_activation_checkpointing
        if next(steps) == ends_in_step:
            raise Killed
        return original(self, given, batch)

    monkeypatch.setattr(LanguageTask, "predict", predict)
    training = TrainingConfig(steps=3, gradient_checkpointing=True)
    with nullcontext() if ends_in_step is None else pytest.raises(Killed):
        call(model, training=training)
    assert model.config.use_cache is True
    assert not model.is_activation_checkpointing
    assert not getattr(model, "_require_grads_hooks", None)
    after = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    if ends_in_step is not None:
        assert {name: module.training for name, module in model.named_modules()} == modes


def test_the_same_model_goes_on_after_an_interruption(tmp_path, monkeypatch):
    model, original, steps = tiny_language_model(), LanguageTask.predict, itertools.count(1)

    def predict(self, given, batch):
        if next(steps) == 3:
            raise Killed
        return original(self, given, batch)

    how = {"output_dir": tmp_path / "kept", "training": TrainingConfig(steps=4, save_every=1)}
    with monkeypatch.context() as patch:
        patch.setattr(LanguageTask, "predict", predict)
        with pytest.raises(Killed):
            call(model, **how)
    assert same(call(model, **how, resume=True).model, call(training=how["training"]).model)


def test_batch_normalisation_of_the_base_model_keeps_its_statistics(tmp_path):
    """They are part of no adapter: a saved one would go with another model than the one that was measured."""

    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=4)
    model = ResNetForImageClassification(config)
    before = {name: value.clone() for name, value in model.named_buffers()}
    assert before
    sets = TrainingSets(image_set("forget", 6), image_set("retain", 6, seed=1))
    adapted = get_peft_model(model, BoundedLoraConfig(target_modules=["classifier.1"]))
    settings = TrainingConfig(steps=2, forget_batch_size=3, retain_batch_size=3)
    objective = build_objective("gradient_difference")
    train(adapted, ImageTask(None), objective, sets, settings=settings, output_dir=tmp_path)
    for name, value in before.items():
        assert torch.equal(dict(model.named_buffers())[name], value), name


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # in torch itself
def test_a_compiled_model_is_refused():
    with pytest.raises(ModelError, match=r"is compiled .* compile the result"):
        call(torch.compile(tiny_language_model()))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"progress": True}, ConfigError, r"progress is True\. Give RichProgress"),
        ({"training": {"steps": 2}}, ConfigError, r"training is \{'steps': 2\}\. Give TrainingConfig"),
        ({"target": {"nll": 2}}, ConfigError, r"target is \{'nll': 2\}\. Give TargetConfig"),
        ({"objective": 3}, ConfigError, "objective is 3. Give the name"),
        ({"model": "gpt2"}, ModelError, "The model is 'gpt2', a str, but a loaded one is needed"),
        ({"model": nn.Linear(2, 2)}, ModelError, "a Linear without a config"),
        ({"model": tiny_language_model().model}, ModelError, "LlamaModel has no output head"),
        ({"tokenizer": "gpt2"}, ConfigError, "tokenizer is 'gpt2', but a loaded one is needed"),
        ({"tokenizer": 5}, ConfigError, "tokenizer is 5, but a loaded one is needed"),
        ({"tokenizer": None, "image_processor": {}}, ConfigError, r"image_processor is \{\}, but a loaded one"),
        ({"template": 5}, ConfigError, "template is 5. Give text with {prompt}"),
        ({"max_length": "512"}, ConfigError, "max_length is '512'. Give a whole number"),
        ({"max_length": None}, ConfigError, "max_length is None. Give a whole number"),
        ({"max_length": 1}, ConfigError, "max_length is 1. Give a whole number of tokens of at least 2"),
        ({"output_dir": 5}, ConfigError, "output_dir is 5. Give a path"),
        ({"tokenizer": None}, ConfigError, "not neither"),
        ({"adapter": LoraConfig()}, ConfigError, "adapter is a LoraConfig. Give BoundedLoraConfig"),
        ({"adapter": BoundedLoraConfig(modules_to_save=["lm_head"])}, ConfigError, r"modules_to_save is \['lm_head'\]"),
        ({"retain": None}, ConfigError, "has a retain term, but retain is None"),
        ({"forget": None}, DataError, "The forget set is a NoneType. Give a list of rows"),
        ({"forget": "rows.jsonl"}, DataError, "The forget set is a str"),
        ({"forget": ["a", "b"]}, DataError, "The forget set is a list of str"),
        ({"forget": []}, DataError, "The forget set is empty"),
        ({"retain": FORGET}, DataError, "share 4 examples"),
        ({"holdout": FORGET}, DataError, "share 4 examples"),
        ({"holdout": RETAIN}, DataError, "share 4 examples"),
        ({"resume": True}, ConfigError, "resume is True, but output_dir is not given"),
        (
            {"retain": None, "objective": "ascent", "training": TrainingConfig(steps=1, evaluate_every=1)},
            ConfigError,
            "evaluate_every is 1, but retain is None",
        ),
    ],
)
def test_mistakes_are_one_sentence_and_leave_the_model_alone(changes, error, message):
    model = tiny_language_model()
    with pytest.raises(error, match=message):
        call(**{"model": model} | changes)
    assert is_plain(model)


def test_examples_that_do_not_fit_the_model_are_refused():
    model = tiny_language_model()
    model.config.max_position_embeddings = 8
    with pytest.raises(ConfigError, match=r"tokens, but the model has 8 positions\. Set max_length to at most 8"):
        call(model)
    model = tiny_language_model()
    model.resize_token_embeddings(20)
    with pytest.raises(ConfigError, match=r"gives the token 3\d, but the model has 20 embeddings"):
        call(model)
    tokenizer = FakeTokenizer()
    tokenizer.pad_token_id = 40
    with pytest.raises(ConfigError, match="gives the pad token 40, but the model has 40 embeddings"):
        call(tokenizer=tokenizer)
    sets = (image_set("forget", 4, 1, num_labels=4), image_set("retain", 3, 2))

    def processor(**_):
        return {"pixel_values": torch.zeros(1, 3, 8, 8)}

    with pytest.raises(DataError, match="label of row 2 of the forget set is 2, but the model has 2 classes"):
        unlearn(tiny_image_model(num_labels=2), *sets, image_processor=processor)


def test_without_a_retain_term_no_retain_set_is_needed():
    alone = call(retain=None, objective="ascent")
    assert same(alone.model, call(objective="ascent").model)
    assert alone.outcome.num_steps == 1
    none = build_objective("gradient_difference", retain_weight=0)
    assert same(call(retain=None, objective=none).model, alone.model)


def test_an_unseen_term_needs_a_holdout_set():
    objective = build_objective("gradient_difference", unseen_weight=0.5)
    with pytest.raises(ConfigError, match=r"unseen_weight is 0\.5, but holdout is None\. Give a holdout set"):
        call(objective=objective)


def test_what_is_said_of_unseen_images_is_not_kept():
    """They are of the classes that are to be forgotten."""
    forget, retain, holdout = (image_set(name, 4, seed) for name, seed in (("f", 1), ("r", 2), ("h", 3)))
    objective = build_objective("gradient_difference", unseen_weight=0.5)

    def processor(**_):
        return {"pixel_values": torch.zeros(1, 3, 8, 8)}

    with pytest.raises(ConfigError, match=r"unseen_weight is 0\.5: only language models have it"):
        unlearn(tiny_image_model(), forget, retain, holdout=holdout, image_processor=processor, objective=objective)


def test_the_adapter_starts_by_the_seed_of_the_training_unless_it_has_its_own():
    own = BoundedLoraConfig(target_modules=["up_proj"])

    def start(seed, adapter):
        torch.manual_seed(seed + 10)
        model = call(training=SETTINGS.model_copy(update={"seed": seed}), adapter=adapter).model
        return model.peft_config["default"].init_seed, model

    (seed, one), (_, again), (other, _) = start(1, own), start(1, own), start(2, own)
    assert (seed, other) == (1, 2)
    assert same(one, again)
    assert own.init_seed is None
    assert start(1, BoundedLoraConfig(init_seed=5))[0] == 5


def test_stop_rules_decide_in_python_too():
    rule = StopRule(metric="forget_nll", above=0.0)
    stopped = call(training=TrainingConfig(steps=4, evaluate_every=1, stop=[rule])).outcome
    assert (stopped.num_steps, stopped.stopped[:29]) == (1, "stop rule: forget_nll above 0")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"objective": "ascent"}, "objective"),
        ({"objective": build_objective("gradient_difference", retain_weight=0.5)}, "objective"),
        ({"training": SETTINGS.model_copy(update={"learning_rate": 1e-3})}, "training"),
        ({"adapter": BoundedLoraConfig(bound="tanh")}, "adapter"),
        ({"forget": language_set("forget", 4, 7)}, "forget set"),
        ({"retain": language_set("retain", 4, 7)}, "retain set"),
        ({"holdout": HOLDOUT}, "holdout set"),
        ({"model": tiny_language_model(seed=1)}, "model"),
    ],
)
def test_only_the_same_training_is_resumed(tmp_path_factory, first_call, changes, named):
    folder, outcome = first_call
    with pytest.raises(RunDirectoryError, match=rf"holds another training \(changed: {named}\), so it cannot"):
        call(**{"output_dir": folder, "resume": True} | changes)
    assert call(output_dir=folder, resume=True).outcome == outcome


def test_a_training_with_distributions_of_another_version_is_not_gone_on_with(tmp_path, monkeypatch):
    given = {"objective": "calibrated_distribution", "holdout": HOLDOUT, "output_dir": tmp_path}
    outcome = call(**given).outcome
    assert call(**given, resume=True).outcome == outcome
    monkeypatch.setattr(training_directory, "DISTRIBUTIONS_VERSION", "another")
    with pytest.raises(RunDirectoryError, match=r"changed: target distributions\)"):
        call(**given, resume=True)


@pytest.fixture(scope="module")
def first_call(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    return folder, call(output_dir=folder).outcome


@pytest.mark.parametrize("evaluate_every", [None, 1])
def test_wrong_answers_belong_to_a_training_that_is_measured(tmp_path, evaluate_every):
    """The best checkpoint may be chosen by them."""
    plain = language_set("forget", 4, 0)
    other = ExampleSet("forget", [replace(example, perturbed=(plain[0],)) for example in plain], "rows")
    given = {"training": SETTINGS.model_copy(update={"evaluate_every": evaluate_every}), "output_dir": tmp_path}
    outcome = call(forget=plain, **given).outcome
    if evaluate_every is None:
        assert call(forget=other, **given, resume=True).outcome == outcome
    else:
        with pytest.raises(RunDirectoryError, match=r"changed: forget set\)"):
            call(forget=other, **given, resume=True)


def test_a_folder_that_another_training_writes_to_is_refused(tmp_path):
    with alone_in(tmp_path / "checkpoints"), pytest.raises(RunDirectoryError, match="Another process is at work in"):
        call(output_dir=tmp_path / "checkpoints")
    assert call(output_dir=tmp_path / "checkpoints").outcome.num_steps == 1


def test_the_target_belongs_to_the_training(tmp_path):
    given = {"objective": "calibrated", "output_dir": tmp_path}
    call(target=TargetConfig(source="number", nll=2.0), **given)
    with pytest.raises(RunDirectoryError, match=r"changed: target\)"):
        call(target=TargetConfig(source="number", nll=3.0), **given, resume=True)


def test_checkpoints_of_an_unknown_training_are_not_resumed(tmp_path):
    call(output_dir=tmp_path)
    assert set(json.loads((tmp_path / "training.json").read_text())) > {"objective", "model", "forget set"}
    (tmp_path / "training.json").unlink()
    with pytest.raises(RunDirectoryError, match=r"no training\.json that says of which training"):
        call(output_dir=tmp_path, resume=True)
    with pytest.raises(RunDirectoryError, match="already holds checkpoints"):
        call(output_dir=tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(RunDirectoryError, match="is a file"):
        call(output_dir=tmp_path / "file")
    assert call(output_dir=tmp_path / "new", resume=True).outcome.num_steps == 1


def test_transformers_logs_afterwards_as_before():
    level = logging.get_verbosity()
    logging.set_verbosity_info()
    try:
        call()
        assert logging.get_verbosity() == logging.INFO
    finally:
        logging.set_verbosity(level)


class Placed:
    """A model that notes where it is moved to."""

    def __init__(self, **attributes):
        self.places = []
        self.__dict__.update(attributes)

    def parameters(self):
        return iter(())

    def to(self, place):
        self.places.append(place)


@pytest.mark.parametrize("attributes", [{}, {"hf_device_map": {"": 0}}, {"is_quantized": True}])
def test_a_model_goes_to_the_gpu_unless_it_is_divided_or_quantised(monkeypatch, attributes):
    model = Placed(**attributes)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    surroundings.move_to_training_device(model)
    assert model.places == ([] if attributes else ["cuda"])


@pytest.mark.parametrize("attributes", [{}, {"hf_device_map": {"": 0}}, {"is_quantized": True}])
def test_a_model_is_set_aside_and_put_back_unless_it_is_divided_or_quantised(attributes):
    model = Placed(**attributes)
    model.parameters = lambda: iter([SimpleNamespace(device="cuda:0", data=torch.zeros(1))])
    with surroundings.set_aside(model):
        assert model.places == ([] if attributes else ["cpu"])
    assert model.places == ([] if attributes else ["cpu", "cuda:0"])


def test_references_are_scored_where_the_training_is(monkeypatch):
    order = []
    score = likelihoods.score_examples
    monkeypatch.setattr(unlearning, "move_to_training_device", lambda _: order.append("moved"))
    monkeypatch.setattr(likelihoods, "score_examples", lambda *a, **k: order.append("scored") or score(*a, **k))
    call(objective="npo")
    assert order == ["moved", "scored"]


def test_templates_and_lengths_of_rows_can_be_chosen(tmp_path, monkeypatch):
    problem = make_language_problem(tmp_path)
    rows = {
        name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("forget", "retain")
    }
    model, tokenizer = AutoModelForCausalLM.from_pretrained(problem.model), AutoTokenizer.from_pretrained(problem.model)
    seen = []
    make = unlearning.make_sets
    monkeypatch.setattr(unlearning, "make_sets", lambda *a: seen.append(make(*a)) or seen[-1])
    given = {"tokenizer": tokenizer, "training": SETTINGS}
    unlearn(copy.deepcopy(model), rows["forget"], rows["retain"], **given)
    unlearn(model, rows["forget"], rows["retain"], **given, template="{prompt} {answer}", max_length=9)
    lengths = [max(len(example.input_ids) for example in sets["forget"]) for sets in seen]
    assert lengths[0] > 9 == lengths[1]
    with pytest.raises(DataError, match="has no chat template"):
        unlearn(AutoModelForCausalLM.from_pretrained(problem.model), **rows, **given, chat_template=True)


def test_an_adapter_that_does_not_fit_leaves_the_model_as_it_was(tmp_path):
    call(adapter=BoundedLoraConfig(r=2)).model.save_pretrained(tmp_path / "fits")
    wide = tiny_language_model()
    for layer in range(2):
        wide.set_submodule(f"model.layers.{layer}.mlp.up_proj", nn.Linear(16, 48, bias=False))
    with pytest.raises(ModelError, match="cannot be put on"):
        load_adapter(wide, tmp_path / "fits")
    assert not [module for module in wide.modules() if isinstance(module, BoundedLoraLinear)]
    with pytest.raises(ModelError, match="cannot be put on"):
        load_adapter(wide, tmp_path / "fits")


def without_one(weights):
    return dict(sorted(weights.items())[1:])


def renamed(weights):
    return {name.replace("layers.1", "layers.7"): value for name, value in weights.items()}


def with_one_more(weights):
    first = min(weights)
    return {**weights, first.replace("layers.0", "layers.7"): weights[first].clone()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_one, "it lacks weights of the adapted layers"),
        (renamed, "it lacks weights of the adapted layers"),
        (with_one_more, "it has weights for other layers"),
    ],
)
def test_an_adapter_is_put_on_whole_or_not_at_all(tmp_path, change, message):
    """PEFT would leave the layers without weights as they were: the model that is said to have forgotten knows all."""
    call(adapter=BoundedLoraConfig(r=2)).model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})
    model = tiny_language_model()
    with pytest.raises(ModelError, match=f"cannot be put on .*{message}"):
        load_adapter(model, tmp_path)
    assert not [module for module in model.modules() if isinstance(module, BoundedLoraLinear)]
    assert all(weight.requires_grad for weight in model.parameters())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_an_adapter_of_a_plain_model_is_not_put_on_a_compiled_one(tmp_path):
    call(adapter=BoundedLoraConfig(r=2)).model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"is compiled .* Give the model that was compiled"):
        load_adapter(torch.compile(tiny_language_model()), tmp_path)
