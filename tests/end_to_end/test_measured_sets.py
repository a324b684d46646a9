"""Sets that are only measured, their columns and overlaps, and the model as it is measured: with merged adapters."""

import json

import numpy as np
import pytest
import torch
from peft import get_peft_model

from data_paths import shared_data
from stable_forgetting.adapters import BoundedLoraConfig
from stable_forgetting.config import EvaluationConfig, parse_config
from stable_forgetting.errors import ConfigError, DataError, ModelError
from stable_forgetting.evaluation import ModelScores, score_model
from stable_forgetting.evaluation.scores import ScoringOptions
from stable_forgetting.evaluation.text import exact_memorization
from stable_forgetting.models.load import LoadedModel
from stable_forgetting.progress import SilentProgress
from stable_forgetting.runs import prepare, run
from stable_forgetting.runs.models import RunModels
from stable_forgetting.runs.scoring import measured_sets, merged_adapters, score

FINETUNE = {"epochs": 1, "batch_size": 4}


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_rows(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return {"path": str(path)}


def with_alternatives(rows):
    return [
        {**row, "paraphrased_answer": f"tea {row['answer']}", "perturbed_answer": ["oslo and tea .", "lima ."]}
        for row in rows
    ]


@pytest.fixture
def tofu_like(problem, tmp_path):
    """Settings with all sets: alternatives beside the forget questions and those that are measured only."""
    forget, retain = (rows_of(problem.folder / f"{name}.jsonl") for name in ("forget", "retain"))
    names = {"prompt": "question", "answer": "reply"}
    world = [{"question": f"what is {place} ?", "reply": f"{place} ."} for place in ("oslo", "lima", "cairo")]
    real = write_rows(tmp_path / "real.json", [{**row, "perturbed_answer": "tea ."} for row in world[:2]])
    return {
        "data__forget": write_rows(tmp_path / "forget.jsonl", with_alternatives(forget)),
        "data__retain_evaluation": write_rows(tmp_path / "measured.jsonl", with_alternatives(retain[:3])),
        "data__real_authors": real | names,
        "data__world_facts": write_rows(tmp_path / "world.jsonl", world) | names,
    }


def test_a_run_measures_all_sets(problem, tofu_like, tmp_path):
    record = run(problem.config(**tofu_like), tmp_path / "run")
    scores = json.loads((tmp_path / "run" / record.per_example_paths["unlearned"]).read_text())["sets"]
    assert list(scores) == ["forget", "retain", "holdout", "real_authors", "world_facts"]
    assert {name: len(found["answers"]) for name, found in scores.items() if found["answers"]} == {
        "forget": 6, "retain": 3, "real_authors": 2, "world_facts": 3,
    }  # fmt: skip
    assert scores["forget"]["num_perturbed"] == [2] * 6
    assert len(scores["retain"]["paraphrased"]["nll_sum"]) == 3
    assert scores["real_authors"]["num_perturbed"] == [1, 1]
    assert scores["real_authors"]["paraphrased"] is scores["world_facts"]["perturbed"] is None
    assert {entry.name: entry.count for entry in record.sets}["retain_evaluation"] == 3


def test_the_measured_retain_set_replaces_the_taught_one_and_is_limited(problem, tofu_like):
    sets = prepare(problem.config(**tofu_like), SilentProgress()).sets
    measured = measured_sets(sets, EvaluationConfig(retain_limit=2))
    assert len(sets.retain) == 10
    assert (len(measured.retain), measured.retain.name) == (2, "retain")
    assert "retain_evaluation" not in measured.by_name


def test_what_is_measured_changes_no_taught_model(problem, tofu_like, monkeypatch, tmp_path):
    monkeypatch.setenv("STABLE_FORGETTING_CACHE", str(tmp_path / "cache"))
    sets = []
    for changes in ({}, tofu_like):
        models = prepare(problem.config(model__finetune=FINETUNE, **changes), SilentProgress())
        assert isinstance(models, RunModels)
        models.base()
        sets.append(models.sets)
    assert sets[0].forget.sha256 != sets[1].forget.sha256
    assert sets[0].forget.taught_sha256 == sets[1].forget.taught_sha256 == sets[0].forget.sha256
    assert len(list((tmp_path / "cache" / "models").iterdir())) == 1


def test_what_was_forgotten_before_is_measured_and_not_taught(problem, tmp_path):
    earlier = {"path": str(problem.folder / "holdout.jsonl")}
    config = problem.config(data__forgotten_before=earlier, data__holdout=None, training__steps=1)
    record = run(config, tmp_path / "run")
    for evaluation in record.evaluations:
        (found,) = [metric for metric in evaluation.metrics if metric.name == "forgotten_before_probability"]
        assert found.count == 6
        assert found.direction == "retain"
    without = run(problem.config(training__steps=1), tmp_path / "without")
    assert not [m for e in without.evaluations for m in e.metrics if m.name == "forgotten_before_probability"]


@pytest.mark.parametrize("name", ["retain_evaluation", "forgotten_before", "real_authors", "world_facts"])
def test_measured_sets_hold_nothing_to_be_forgotten(problem, name):
    forget = {"path": str(problem.folder / "forget.jsonl"), "limit": 2}
    with pytest.raises(DataError, match=f"forget and {name} share 2 examples"):
        prepare(problem.config(**{f"data__{name}": forget}), SilentProgress())


def test_rows_by_position_and_measured_rows_stay_retained(problem, tmp_path):
    source = write_rows(
        tmp_path / "all.jsonl", [r for n in ("forget", "retain") for r in rows_of(problem.folder / f"{n}.jsonl")]
    )
    data = {"source": source, "forget": {"where": "row < 6"}, "retain_evaluation": {"where": "8 <= row and row < 11"}}
    sets = prepare(problem.config(data=data), SilentProgress()).sets
    assert {name: len(found) for name, found in sets.by_name.items()} == {
        "forget": 6, "retain": 10, "retain_evaluation": 3,
    }  # fmt: skip
    assert [e.key for e in sets.by_name["retain_evaluation"]] == [e.key for e in sets.retain][2:5]


@pytest.mark.parametrize(("setting", "value"), [("prompt", "question"), ("perturbed", "wrong"), ("subset", "forget10")])
def test_settings_that_would_be_ignored_are_refused(problem, setting, value):
    data = {"source": {"path": "x.jsonl"}, "forget": {"where": "row < 2", setting: value}}
    with pytest.raises(ConfigError, match=rf"data.forget.{setting}: a set without a 'path' has the {setting} of"):
        problem.config(data=data)
    data["source"][setting] = value
    problem.config(data=data)


def test_tofu_is_an_ordinary_config(problem):
    folder, model = shared_data("tofu"), shared_data("models/stories260K")
    files = {
        "forget": "forget01_perturbed",
        "retain": "retain99",
        "retain_evaluation": "retain_perturbed",
        "holdout": "holdout01",
        "real_authors": "real_authors_perturbed",
        "world_facts": "world_facts_perturbed",
    }
    data = {name: {"path": str(folder / f"{file}.json"), "prompt": "question"} for name, file in files.items()}
    data["retain"]["limit"] = 40
    config = problem.config(data=data, model={"name": str(model)})
    sets = prepare(config, SilentProgress()).sets
    assert {name: len(found) for name, found in sets.by_name.items()} == {
        "forget": 40, "retain": 40, "holdout": 40, "retain_evaluation": 400, "real_authors": 100, "world_facts": 117,
    }  # fmt: skip
    measured = measured_sets(sets, config.evaluation).by_name
    assert list(measured) == ["forget", "retain", "holdout", "real_authors", "world_facts"]
    assert {len(example.perturbed) for name in ("forget", "retain") for example in measured[name]} == {5}
    assert {len(example.perturbed) for name in ("real_authors", "world_facts") for example in measured[name]} == {3}
    assert all(example.paraphrased is not None for name in ("forget", "retain") for example in measured[name])


@pytest.mark.parametrize("name", ["retain_evaluation", "real_authors", "world_facts"])
def test_images_have_no_measured_sets_of_language(name):
    data = {"source": {"path": "builtin:digits"}, "forget": {"where": "label == 1"}, name: {"path": "x.csv"}}
    with pytest.raises(ConfigError, match=rf"data\.{name}: only language models have it"):
        parse_config({"task": "image", "model": {"name": "builtin:digits"}, "data": data})


def test_a_record_follows_the_protocol_that_the_settings_name(problem, tmp_path):
    record = run(problem.config(evaluation__compat="open-unlearning"), tmp_path / "run")
    kept = json.loads((tmp_path / "run" / record.per_example_paths["base"]).read_text())
    likelihood = ModelScores.from_json(kept).sets["forget"].likelihood
    found = next(metric for metric in record.evaluations[0].metrics if metric.name == "forget_exact_memorization")
    assert found.value == pytest.approx(exact_memorization(likelihood, compat="open-unlearning").mean())
    assert found.value != pytest.approx(exact_memorization(likelihood).mean())


def test_images_have_no_protocol_of_language_models():
    data = {"source": {"path": "builtin:digits"}, "forget": {"where": "label == 1"}}
    given = {"task": "image", "model": {"name": "builtin:digits"}, "data": data}
    with pytest.raises(ConfigError, match=r"evaluation\.compat: 'open-unlearning' is a protocol of language models"):
        parse_config(given | {"evaluation": {"compat": "open-unlearning"}})


@pytest.fixture
def adapted(problem):
    """A model under an adapter that changes it."""
    models = prepare(problem.config(), SilentProgress())
    model = get_peft_model(models.loaded.model, BoundedLoraConfig(r=2, target_modules=["up_proj", "down_proj"]))
    for name, parameter in model.named_parameters():
        if "bounded_lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(0))
    return LoadedModel(model.eval(), models.loaded.task, "here"), models.sets


def base_weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_values_with_merged_adapters_are_those_without(adapted):
    loaded, sets = adapted
    before = base_weights(loaded.model)
    settings = EvaluationConfig(max_new_tokens=8)
    merged = score(loaded, sets, "unlearned", settings=settings, progress=SilentProgress())
    options = ScoringOptions(batch_size=1, generate=True, max_new_tokens=8)
    plain = score_model(loaded.model, loaded.task, sets.by_name, role="unlearned", source="here", options=options)
    with loaded.model.disable_adapter():
        base = score_model(loaded.model, loaded.task, sets.by_name, role="base", source="here", options=options)
    for name, values in plain.sets.items():
        np.testing.assert_allclose(merged.sets[name].likelihood.nll_sum, values.likelihood.nll_sum, rtol=1e-5)
        assert merged.sets[name].answers == values.answers
        assert np.abs(base.sets[name].likelihood.nll_sum - values.likelihood.nll_sum).max() > 1e-3
    after = base_weights(loaded.model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_adapters_are_unmerged_after_an_error_and_left_alone_if_merged_before(adapted):
    model = adapted[0].model
    before = base_weights(model)

    def fail():
        with merged_adapters(model) as is_plain:
            assert is_plain
            assert any(not torch.equal(before[name], value) for name, value in model.state_dict().items())
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    model.merge_adapter()
    merged = base_weights(model)
    with merged_adapters(model) as is_plain:
        assert is_plain
    assert all(torch.equal(merged[name], value) for name, value in model.state_dict().items())
    model.unmerge_adapter()


def test_the_gradient_norm_is_that_of_the_merged_model(adapted):
    loaded, sets = adapted
    settings = EvaluationConfig(generate=False, gradient_norm=True)
    found = score(loaded, sets, "unlearned", settings=settings, progress=SilentProgress())
    example, model = sets.forget[0], loaded.model.merge_and_unload().requires_grad_(True)
    batch = loaded.task.collate([example])
    model(**batch).loss.backward()
    squares = [float(parameter.grad.square().sum()) for parameter in model.parameters()]
    assert found.sets["forget"].gradient_norm[0] == pytest.approx(sum(squares) ** 0.5, rel=1e-4)


def test_quantised_weights_are_not_merged_and_have_no_gradient_norm(adapted):
    loaded, sets = adapted
    codes = torch.nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False)
    loaded.model.register_parameter("codes", codes)
    before = base_weights(loaded.model)
    with merged_adapters(loaded.model) as is_plain:
        assert not is_plain
        assert all(torch.equal(before[name], value) for name, value in loaded.model.state_dict().items())
    settings = EvaluationConfig(generate=False, gradient_norm=True)
    with pytest.raises(ModelError, match="unlearned model is quantised"):
        score(loaded, sets, "unlearned", settings=settings, progress=SilentProgress())
