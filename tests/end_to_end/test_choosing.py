"""Choosing a checkpoint by forget quality and utility, on real rows of TOFU and the smallest real model."""

import json

import pytest
import torch
from peft import get_peft_model

from data_paths import shared_data
from stable_forgetting.adapters import BoundedLoraConfig
from stable_forgetting.config import RunConfig, StopRule, TrainingConfig, parse_config
from stable_forgetting.errors import ConfigError
from stable_forgetting.evaluation import validation_data
from stable_forgetting.evaluation.metrics_validation import VALIDATION_NAMES
from stable_forgetting.progress import SilentProgress
from stable_forgetting.runs import prepare, run
from stable_forgetting.runs.check import check_config
from stable_forgetting.runs.unlearning import unlearn
from stable_forgetting.runs.validation import validation_on
from stable_forgetting.training.stop_rules import Measured, Stop

CHOSEN = {
    "training__evaluate_every": 2,
    "training__best_metric": "forget_quality_and_utility",
    "training__stop": [{"metric": "forget_quality", "peak": 0.05, "patience": 2}],
}


@pytest.fixture(scope="module")
def tofu(problem, tmp_path_factory):
    """Config of a run on 8 questions to forget and 12 to keep, from settings by their places."""
    folder, model = shared_data("tofu"), shared_data("models/stories260K")
    made = tmp_path_factory.mktemp("rows")
    for name, count in (("forget01_perturbed", 8), ("retain_perturbed", 12)):
        lines = (folder / f"{name}.json").read_text().splitlines()[:count]
        (made / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    paths = {"forget": made / "forget01_perturbed.jsonl", "retain": made / "retain_perturbed.jsonl"}
    data = {name: {"path": str(path), "prompt": "question"} for name, path in paths.items()}

    def config(**changes) -> RunConfig:
        given = {
            "data": data,
            "model": {
                "name": str(model), "finetune": {"epochs": 6, "batch_size": 4, "learning_rate": 3e-3}
            },
            "training__steps": 12,
            "training__learning_rate": 0.02,
            "evaluation__generate": False,
        }  # fmt: skip
        return parse_config(problem.changed(**given | changes))

    return config


@pytest.fixture(scope="module")
def chosen(tofu, own_surroundings, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("chosen") / "run"
    return run(tofu(**CHOSEN), run_dir), run_dir


def test_the_best_validation_is_what_the_run_ends_with(chosen):
    record, run_dir = chosen
    validations = {step.step: step.validation for step in record.history if step.validation}
    assert all(set(found) == set(VALIDATION_NAMES["language"]) for found in validations.values())
    scores = [found["forget_quality_and_utility"] for found in validations.values()]
    best = next(step for step, found in validations.items() if found["forget_quality_and_utility"] == max(scores))
    kept = (run_dir / "checkpoints" / f"checkpoint-{best}" / "adapter_model.safetensors").read_bytes()
    assert (run_dir / "adapter" / "adapter_model.safetensors").read_bytes() == kept
    assert record.kept_step == best < record.history[-1].step
    assert record.choice.metrics == ["forget_quality_and_utility", "forget_quality"]
    assert record.choice.counts == {"forget": 8, "retain": 12}
    assert record.stopped is not None
    assert len(record.history) < 12
    qualities = [Measured(step, found["forget_quality"]) for step, found in validations.items()]
    assert record.stopped == Stop("forget_quality", peak=0.05, patience=2).reason(qualities)


def test_a_validation_of_all_examples_says_what_the_evaluation_of_the_same_weights_says(chosen):
    """Both measure the same weights where the sets are smaller than a validation."""
    record, _ = chosen
    validations = [step.validation for step in record.history if step.validation]
    best = max(validations, key=lambda found: found["forget_quality_and_utility"])
    end = record.evaluation("unlearned")
    for name in ("forget_quality", "forget_nll_ks", "forget_nll", "retain_truth_ratio", "retain_probability"):
        assert end.metric(name).value == pytest.approx(best[name], rel=1e-4), name


def test_validations_change_nothing_of_the_training(tofu, chosen, tmp_path):
    record, _ = chosen
    plain = run(tofu(training__steps=12), tmp_path / "run")
    assert plain.choice is None
    losses = [step.loss for step in record.history]
    assert losses == [step.loss for step in plain.history][: len(losses)]


def test_alternative_answers_are_read_only_where_one_of_them_decides(tofu, tmp_path):
    rule = {"metric": "forget_nll", "above": 1e3}
    record = run(tofu(training__steps=2, training__evaluate_every=1, training__stop=[rule]), tmp_path / "run")
    validations = [step.validation for step in record.history if step.validation]
    left_out = {"forget_quality", "forget_quality_and_utility", "retain_truth_ratio", "retain_utility"}
    assert [set(VALIDATION_NAMES["language"]) - set(found) for found in validations] == [left_out, left_out]


def test_base_weights_are_the_same_bits_after_a_validation(tofu):
    models = prepare(tofu(), SilentProgress())
    model = get_peft_model(models.loaded.model, BoundedLoraConfig(r=2, target_modules=["up_proj", "down_proj"]))
    for name, parameter in model.named_parameters():
        if "bounded_lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    task, model = models.loaded.task, model.train()
    data = validation_data(models.sets.by_name, size=4, seed=0)
    measured = validation_on(task, data, TrainingConfig(), 8).measure(model)
    assert measured["retain_utility"] > 0
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert before.keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": None}, ["'forget_quality'", "needs a retain model"]),
        ({"data": None}, ["'forget_quality'", "paraphrased answer and wrong", "in the forget set"]),
        ({"log": True}, ["'forget_quality'", "paraphrased answer and wrong", "forget set of the retain model"]),
    ],
)
def test_a_metric_that_cannot_be_had_is_refused_before_the_training(problem, tofu, tmp_path, changes, words):
    given = dict(CHOSEN)
    if "model" in changes:
        given["model"] = {"name": str(shared_data("models/stories260K"))}
    if "data" in changes:
        given["data"] = problem.settings["data"]
    if "log" in changes:
        entry = {"value_by_index": {str(place): {"prob": 0.5, "avg_loss": 0.7} for place in range(8)}}
        log = tmp_path / "TOFU_EVAL.json"
        log.write_text(json.dumps({"forget_Q_A_Prob": entry}))
        given |= {"retain_log": str(log), "model": {"name": str(shared_data("models/stories260K"))}}
    config = tofu(**given)
    with pytest.raises(ConfigError) as refused:
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert all(word in str(refused.value) for word in words), refused.value
    assert str(refused.value) in check_config(config).problems


def test_unlearn_has_no_retain_model(tofu):
    models = prepare(tofu(), SilentProgress())
    training = TrainingConfig(steps=2, evaluate_every=1, stop=[StopRule(metric="forget_quality", peak=0.05)])
    sets, given = models.sets, models.loaded
    with pytest.raises(ConfigError, match="'forget_quality' is not available, because it needs a retain model"):
        unlearn(given.model, sets.forget, sets.retain, tokenizer=given.task.tokenizer, training=training)
    training = TrainingConfig(steps=2, evaluate_every=1, best_metric="retain_utility")
    found = unlearn(given.model, sets.forget, sets.retain, tokenizer=given.task.tokenizer, training=training)
    assert found.outcome.history[0].validation["retain_truth_ratio"] > 0
