"""Targets of calibrated forgetting in runs: where they come from, and what is refused before anything is trained."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from reference import objective_twins as twins
from stable_forgetting.config import TargetConfig, TrainingConfig
from stable_forgetting.data.language import LanguageColumns, language_examples
from stable_forgetting.data.sources import load_rows
from stable_forgetting.errors import ConfigError, RunDirectoryError
from stable_forgetting.runs import constants, pipeline, run, target_distributions, target_values, unlearning
from stable_forgetting.runs.check import check_config
from stable_forgetting.runs.constants import forget_constants
from stable_forgetting.runs.unlearning import unlearn
from stable_forgetting.training import train
from tiny_problem import make_image_problem, make_llama, make_tokenizer

LABELS = {"objective__name": "calibrated_labels", "training__steps": 1}
PLACED = LABELS | {"objective__target__places": "pretrained"}


@pytest.fixture
def pretrained(problem, tmp_path):
    """Another model with the problem's tokenizer."""
    folder = shutil.copytree(problem.model, tmp_path / "pretrained")
    vocabulary = json.loads((problem.model / "config.json").read_text())["vocab_size"]
    make_llama(vocabulary, seed=1).save_pretrained(folder)
    return folder


@pytest.fixture
def seen(monkeypatch):
    """What `forget_constants` is given and gives back, in runs and in `unlearn`."""
    noted = {}

    def note(*arguments, **given):
        noted.update(given)
        noted["constants"] = forget_constants(*arguments, **given)
        return noted["constants"]

    monkeypatch.setattr(target_values, "forget_constants", note)
    monkeypatch.setattr(unlearning, "forget_constants", note)
    return noted


def slow_label_nlls(folder, problem, name: str) -> list[list[float]]:
    """NLL of each label of each answer of a set under a model, one text at a time."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    rows = load_rows(problem.settings["data"][name]["path"])
    found = []
    for example in language_examples(rows, tokenizer, name=name, columns=LanguageColumns()):
        with torch.no_grad():
            log_probs = model(torch.tensor([example.input_ids])).logits[0].double().log_softmax(-1)
        places = range(len(example.input_ids) - example.num_labels, len(example.input_ids))
        found.append([-log_probs[place - 1, example.input_ids[place]].item() for place in places])
    return found


def flat(nlls: list[list[float]]) -> list[float]:
    return [value for own in nlls for value in own]


def check_targets(constants, places: list[float], problem) -> None:
    """Targets of the forget labels are the quantiles of the base model's holdout labels at these places."""
    targets = twins.quantile_targets(places, flat(slow_label_nlls(problem.model, problem, "holdout")))
    lengths = [len(own) for own in slow_label_nlls(problem.model, problem, "forget")]
    rows = constants["label_targets"].tolist()
    assert flat([row[:length] for row, length in zip(rows, lengths, strict=True)]) == pytest.approx(targets, abs=1e-3)
    assert constants["mean_target"].tolist() == pytest.approx([sum(targets) / len(targets)] * len(lengths), abs=1e-3)


def test_labels_get_targets_at_their_places_under_a_pretrained_model(problem, pretrained, tmp_path, seen):
    run(problem.config(pretrained_model=str(pretrained), **PLACED), tmp_path / "run")
    forget, holdout = (flat(slow_label_nlls(pretrained, problem, name)) for name in ("forget", "holdout"))
    check_targets(seen["constants"], twins.places_among(forget, holdout), problem)


def test_a_set_of_targets_takes_the_place_of_the_holdout_set_that_is_measured(problem, tmp_path, seen):
    path = problem.settings["data"]["holdout"]["path"]
    data = {
        f"data__{name}": {"path": path, "where": rule}
        for name, rule in (("holdout", "row < 2"), ("targets", "row > 1"))
    }
    record = run(problem.config(**LABELS, **data), tmp_path / "run")
    assert next(entry.count for entry in record.sets if entry.name == "holdout") == 2
    nlls = [sum(own) for own in slow_label_nlls(problem.model, problem, "holdout")[2:]]
    assert len(nlls) > 2
    assert seen["base"]["holdout"].nll_sum.tolist() == pytest.approx(nlls, rel=1e-4)
    assert seen["ends"]["holdout"].tolist() == [True] * len(nlls)


@pytest.mark.parametrize("weight", [0.0, 1.0])
@pytest.mark.parametrize("name", ["holdout", "targets"])
def test_what_targets_come_from_stays_unseen(problem, tmp_path, monkeypatch, weight, name):
    path = problem.settings["data"]["holdout"]["path"]
    parts = {"holdout": "row < 2", "targets": "row > 1"} if name == "targets" else {"holdout": None}
    given = {f"data__{part}": {"path": path, "where": where} for part, where in parts.items()}
    noted = []

    def note(model, task, objective, sets, **options):
        noted.append(sets.unseen)
        return train(model, task, objective, sets, **options)

    monkeypatch.setattr(pipeline, "train", note)
    record = run(
        problem.config(**given, objective__name="gradient_difference", objective__unseen_weight=weight),
        tmp_path / "run",
    )
    terms = [step.unseen_term for step in record.history]
    expected = next(entry.count for entry in record.sets if entry.name == name)
    assert [(len(unseen), unseen.name) for unseen in noted] == [(expected, name)]
    assert terms[-1] > 0 if weight else set(terms) == {None}
    said = ["trained on the holdout set, with which membership attacks compare" in note for note in record.notes]
    assert said == ([True] if weight and name == "holdout" else [])


def test_unlearn_gives_labels_targets_by_their_ranks(problem, seen):
    sets = {
        name: [json.loads(line) for line in Path(problem.settings["data"][name]["path"]).read_text().splitlines()]
        for name in ("forget", "retain", "holdout")
    }
    model, tokenizer = AutoModelForCausalLM.from_pretrained(problem.model), AutoTokenizer.from_pretrained(problem.model)
    given = {"tokenizer": tokenizer, "objective": "calibrated_labels", "training": TrainingConfig(steps=1)}
    with pytest.raises(ConfigError, match="need a run with a config"):
        unlearn(model, **sets, **given, target=TargetConfig(places="pretrained"))
    unlearn(model, **sets, **given)
    check_targets(
        seen["constants"], twins.places_by_rank(flat(slow_label_nlls(problem.model, problem, "forget"))), problem
    )


def slow_label_logits(folder, problem, name: str) -> tuple[list[list[float]], list[int]]:
    """Logits at each label of each answer of a set under a model, one text at a time, and the labels."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    logits, labels = [], []
    for example in language_examples(
        load_rows(problem.settings["data"][name]["path"]), tokenizer, name=name, columns=LanguageColumns()
    ):
        with torch.no_grad():
            found = model(torch.tensor([example.input_ids])).logits[0].double()
        for place in range(len(example.input_ids) - example.num_labels, len(example.input_ids)):
            logits.append(found[place - 1].tolist())
            labels.append(example.input_ids[place])
    return logits, labels


def check_distributions(constants, problem, targets: list[float], entropies: list[float] | None = None) -> None:
    """The rows are those of the slow twin with these targets of the labels, and others that are as sure as wanted."""
    given = slow_label_logits(problem.model, problem, "forget")
    expected = twins.target_distributions(*given, targets, 5, entropies)
    lengths = [len(own) for own in slow_label_nlls(problem.model, problem, "forget")]
    every = torch.arange(len(lengths))
    tokens, probabilities = (constants[name][every] for name in ("target_tokens", "target_probabilities"))
    places = [(row, place) for row, length in enumerate(lengths) for place in range(length)]
    assert len(places) == len(expected)
    for (row, place), own in zip(places, expected, strict=True):
        given = dict(zip([*tokens[row, place].tolist(), -1], probabilities[row, place].tolist(), strict=True))
        assert given == pytest.approx(own, abs=1e-4)


def test_distributions_take_targets_from_a_pretrained_model_and_proportions_from_the_base_model(
    problem, pretrained, tmp_path, seen, monkeypatch
):
    monkeypatch.setattr(target_distributions, "NUM_KEPT", 5)
    options = {"objective__name": "calibrated_distribution", "objective__target": {"source": "pretrained"}}
    run(problem.config(pretrained_model=str(pretrained), **options, training__steps=1), tmp_path / "run")
    check_distributions(seen["constants"], problem, flat(slow_label_nlls(pretrained, problem, "forget")))


@pytest.mark.parametrize("is_finished", [True, False])
@pytest.mark.parametrize("before", ["of an earlier version", None])
def test_a_run_with_distributions_of_another_version_is_not_gone_on_with(
    problem, tmp_path, before, is_finished, monkeypatch
):
    config = problem.config(objective__name="calibrated_distribution", training__steps=1, evaluation__generate=False)
    run(config, tmp_path / "run")
    if not is_finished:
        (tmp_path / "run" / "record.json").unlink()
    assert run(config, tmp_path / "run", resume=True).status == "finished"
    if not is_finished:
        (tmp_path / "run" / "record.json").unlink()
    path = tmp_path / "run" / "inputs.json"
    known = json.loads(path.read_text()) | {"target distributions": before}
    path.write_text(json.dumps({name: value for name, value in known.items() if value is not None}))
    monkeypatch.setattr(pipeline, "prepare", lambda *_: pytest.fail("models and data were read first"))
    with pytest.raises(RunDirectoryError, match=r"another version of .*, which makes target distributions"):
        run(config, tmp_path / "run", resume=True)


def test_a_run_that_was_killed_before_it_said_what_it_reads_is_begun_anew(problem, tmp_path):
    config = problem.config(objective__name="calibrated_distribution", training__steps=1, evaluation__generate=False)
    run(config, tmp_path / "run")
    for path in (tmp_path / "run").iterdir():
        if path.name != "config.yaml":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert run(config, tmp_path / "run", resume=True).status == "finished"


def test_unlearn_makes_distributions_without_another_model(problem, seen, monkeypatch):
    monkeypatch.setattr(target_distributions, "NUM_KEPT", 5)
    least = 1 + len(slow_label_nlls(problem.model, problem, "holdout"))  # all labels together, as there are few
    monkeypatch.setattr(constants, "_LEAST_OF_A_KIND", least)
    sets = {
        name: [json.loads(line) for line in Path(problem.settings["data"][name]["path"]).read_text().splitlines()]
        for name in ("forget", "retain", "holdout")
    }
    model, tokenizer = AutoModelForCausalLM.from_pretrained(problem.model), AutoTokenizer.from_pretrained(problem.model)
    given = {"tokenizer": tokenizer, "objective": "calibrated_distribution", "training": TrainingConfig(steps=1)}
    unlearn(model, **sets, **given)
    places = twins.places_by_rank(flat(slow_label_nlls(problem.model, problem, "forget")))
    unseen = flat(slow_label_nlls(problem.model, problem, "holdout"))
    targets = twins.quantile_targets(places, unseen)
    own, others = (
        [twins.entropy_of_others(*one) for one in zip(*slow_label_logits(problem.model, problem, name), strict=True)]
        for name in ("forget", "holdout")
    )
    entropies = twins.wanted_entropies(targets, own, unseen, others, least)
    check_distributions(seen["constants"], problem, targets, entropies)
    assert not all(math.isnan(value) for value in entropies)


def test_unlearning_towards_distributions_comes_near_them(problem, tmp_path):
    record = run(
        problem.config(
            objective__name="calibrated_distribution",
            objective__target={"source": "number", "nll": 4.0},
            model__finetune={"epochs": 20, "batch_size": 4, "learning_rate": 1e-2},
            evaluation__generate=False,
            training__steps=40,
            training__learning_rate=1e-2,
        ),
        tmp_path / "run",
    )
    first, last = record.history[0], record.history[-1]
    assert 0 <= last.forget_term < first.forget_term / 2
    base, unlearned = (record.evaluation(role).metric("forget_nll").value for role in ("base", "unlearned"))
    assert base + 0.5 < unlearned < 5


def test_an_image_gets_its_label_as_unlikely_as_asked_and_every_class_is_kept(tmp_path, seen):
    problem = make_image_problem(tmp_path)
    target = {"source": "number", "nll": 3.0}
    config = problem.config(objective={"name": "calibrated_distribution", "target": target}, training__steps=1)
    run(config, tmp_path / "run")
    probabilities = seen["constants"]["target_probabilities"].values
    torch.testing.assert_close(probabilities[:, :-1].sum(-1), torch.ones(len(probabilities)))
    assert probabilities[:, 0].tolist() == pytest.approx([math.exp(-3)] * len(probabilities))
    assert (probabilities[:, -1] < 1e-6).all()


@pytest.mark.parametrize("setting", ["base_model", "pretrained_model", "retain_model"])
def test_a_model_with_other_tokens_is_refused(problem, pretrained, tmp_path, setting):
    make_tokenizer(["something else"]).save_pretrained(pretrained)
    config = problem.config(**{setting: str(pretrained)}, **LABELS)
    with pytest.raises(ConfigError, match=f"{setting} is '.*', which has another tokenizer") as refused:
        run(config, tmp_path / "run")
    assert check_config(config).problems == [str(refused.value)]


def test_a_classifier_with_other_classes_is_refused(tmp_path):
    problem = make_image_problem(tmp_path)
    other = shutil.copytree(problem.model, tmp_path / "other")
    settings = json.loads((other / "config.json").read_text())
    settings["id2label"] = {str(number): str(number) for number in range(len(settings["id2label"]) + 1)}
    settings["label2id"] = {label: int(number) for number, label in settings["id2label"].items()}
    (other / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="another number of classes"):
        run(problem.config(pretrained_model=str(other)), tmp_path / "run")


@pytest.mark.parametrize("change", [{"image_mean": [0.1, 0.2, 0.3]}, {"size": {"height": 4, "width": 4}}])
def test_a_classifier_that_sees_other_pixel_values_is_refused(tmp_path, change):
    problem = make_image_problem(tmp_path)
    other = shutil.copytree(problem.model, tmp_path / "other")
    config = problem.config(retain_model=str(other))
    assert check_config(config).problems == []
    settings = json.loads((other / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps(settings | change))
    with pytest.raises(ConfigError, match=r"retain_model is '.*other', whose image processor makes other pixel values"):
        run(config, tmp_path / "run")
    assert len(check_config(config).problems) == 1


def named_classifier(problem, folder, names):
    """A copy of the problem's model whose labels have names."""
    shutil.copytree(problem.model, folder)
    settings = json.loads((folder / "config.json").read_text())
    settings["id2label"] = {str(number): name for number, name in enumerate(names)}
    settings["label2id"] = {name: number for number, name in enumerate(names)}
    (folder / "config.json").write_text(json.dumps(settings))
    return str(folder)


def test_a_given_classifier_that_counts_its_classes_otherwise_is_refused(tmp_path):
    problem = make_image_problem(tmp_path)
    count = len(json.loads((problem.model / "config.json").read_text())["id2label"])
    names = [f"class{place}" for place in range(count)]  # as in the data
    base = named_classifier(problem, tmp_path / "named", names)
    turned = named_classifier(problem, tmp_path / "turned", [*names[1:], names[0]])
    config = problem.config(base_model=base, retain_model=turned)
    with pytest.raises(ConfigError, match=r"class 'class0' is number 0 in the data and 3 in .*turned") as refused:
        run(config, tmp_path / "run")
    assert check_config(config).problems == [str(refused.value)]
    other = named_classifier(problem, tmp_path / "other", ["Feige", *names[1:]])
    (note,) = check_config(problem.config(base_model=base, retain_model=other)).notes
    assert "other names for 1 of 4 classes (first: number 0 is 'Feige', in the data 'class0')" in note
    with pytest.raises(ConfigError, match="class0"):
        run(problem.config(model__name=turned), tmp_path / "run")


def test_a_resume_with_another_pretrained_model_is_refused(problem, pretrained, tmp_path):
    config = problem.config(pretrained_model=str(pretrained), **PLACED)
    run(config, tmp_path / "run")
    (tmp_path / "run" / "record.json").unlink()
    shutil.copy(problem.model / "model.safetensors", pretrained)
    with pytest.raises(RunDirectoryError, match="changed: pretrained model"):
        run(config, tmp_path / "run", resume=True)


def test_options_that_a_run_did_not_have_yet_do_not_make_it_another(problem, tmp_path):
    config, place = problem.config(training__steps=1), tmp_path / "run" / "config.yaml"
    record = run(config, tmp_path / "run")
    settings = yaml.safe_load(place.read_text())
    del settings["pretrained_model"], settings["objective"]["target"]["places"]
    place.write_text(yaml.safe_dump(settings))
    assert run(config, tmp_path / "run", resume=True) == record
    for wrong in (settings | {"name": "other"}, settings | {"no_such_option": 1}):
        place.write_text(yaml.safe_dump(wrong))
        with pytest.raises(RunDirectoryError, match="other settings"):
            run(config, tmp_path / "run", resume=True)
