"""Training: the objective over a whole update, resuming, stop rules, and what happens when it blows up."""

import json
import shutil
from contextlib import nullcontext

import pytest
import torch
from peft import get_peft_model

from reference import objective_twins as twins
from stable_forgetting.adapters import BoundedLoraConfig
from stable_forgetting.config import StopRule, TrainingConfig
from stable_forgetting.data.pairs import FORGET, RETAIN, UNSEEN, ForgetRetainBatches, PairCollator, PairedExamples
from stable_forgetting.errors import ConfigError, NotFiniteError
from stable_forgetting.models.tasks import ImageTask, LanguageTask
from stable_forgetting.objectives import build_objective
from stable_forgetting.training import Sets, UnlearnTrainer, Validation, finetune, train
from stable_forgetting.training.checkpoints import last_complete_checkpoint
from stable_forgetting.training.train import training_arguments
from tiny_models import FakeTokenizer, image_set, language_set, tiny_image_model, tiny_language_model

TASK = LanguageTask(FakeTokenizer())


def adapted_model(seed: int = 0, **changes):
    return get_peft_model(tiny_language_model(seed=seed), BoundedLoraConfig(init_seed=0, **changes))


def sets(num_forget: int = 6, num_retain: int = 10, **constants) -> Sets:
    return Sets(language_set("forget", num_forget, 1), language_set("retain", num_retain, 2), constants)


def settings(**changes) -> TrainingConfig:
    base = {"steps": 6, "learning_rate": 1e-2, "forget_batch_size": 3, "retain_batch_size": 2, "save_every": 2}
    return TrainingConfig(**base | changes)


def adapter_state(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items() if "bounded_lora" in name}


def make_trainer(tmp_path, model, objective, found: Sets, **changes) -> UnlearnTrainer:
    chosen = settings(**changes)
    return UnlearnTrainer(
        model,
        training_arguments(chosen, tmp_path, chosen.steps),
        task=TASK,
        objective=objective,
        examples=PairedExamples(found.forget, found.retain, found.unseen),
        batches=ForgetRetainBatches(
            len(found.forget),
            len(found.retain),
            forget_batch_size=chosen.forget_batch_size,
            retain_batch_size=chosen.retain_batch_size,
            seed=0,
            num_unseen=len(found.unseen) if found.unseen else None,
            unseen_batch_size=chosen.unseen_batch_size,
        ),
        constants=found.constants,
    )


def test_training_that_computes_activations_again_reads_trees(tmp_path):
    """And learns what it learns without; a padded batch has five rows."""
    found, states = sets(), []
    for is_again in (True, False):
        model, sizes = adapted_model(), []
        model.get_base_model().register_forward_pre_hook(
            lambda _, __, given, sizes=sizes: sizes.append(len(given["input_ids"])), with_kwargs=True
        )
        objective = build_objective("gradient_difference")
        make_trainer(tmp_path / str(is_again), model, objective, found, gradient_checkpointing=is_again).train()
        assert sizes == [1] * 6
        states.append(adapter_state(model))
    torch.testing.assert_close(states[0], states[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "gradient_difference",
        "bounded_ascent",
        "npo",
        "calibrated",
        "calibrated_labels",
        "calibrated_distribution",
        "kl",
        "retain_only",
    ],
)
def test_the_loss_equals_the_slow_twin(tmp_path, name):
    found = sets()
    model = adapted_model()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                parameter.normal_(std=0.05)
    constants = {
        "reference_nll_sum": torch.linspace(5, 30, 6),
        "target": torch.linspace(1, 4, 6),
        "label_targets": torch.linspace(1, 4, 6 * 40).reshape(6, 40),
        "mean_target": torch.full((6,), 2.2),
        "target_tokens": torch.arange(6 * 40 * 3).reshape(6, 40, 3) % 7,
        "target_probabilities": torch.linspace(0.1, 0.4, 6 * 40)[:, None]
        .mul(torch.tensor([1, 0.5, 0.2]))
        .reshape(6, 40, 3),
    }
    rest = 1 - constants["target_probabilities"].sum(-1, keepdim=True)
    constants["target_probabilities"] = torch.cat([constants["target_probabilities"], rest], dim=-1)
    needed = {key: value for key, value in constants.items() if key in build_objective(name).needs}
    objective = build_objective(name, forget_weight=0.7, retain_weight=1.3, beta=0.2, limit=3.7)
    trainer = make_trainer(tmp_path, model, objective, Sets(found.forget, found.retain, needed))
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(model.eval(), batch).item()

    def padded(chosen, disabled=False):
        inputs = {key: batch[key][chosen] for key in ("input_ids", "attention_mask")}
        with torch.no_grad():
            if disabled:
                with model.disable_adapter():
                    return model(**inputs).logits
            return model(**inputs).logits

    is_forget = batch["role"] == FORGET
    rows = batch["index"][is_forget]
    forget = twins.nll_by_example(padded(is_forget), batch["labels"][is_forget])
    retain = twins.nll_by_example(padded(~is_forget), batch["labels"][~is_forget])
    reference = [[value] for value in constants["reference_nll_sum"][rows].tolist()]
    forget_term = {
        "gradient_difference": lambda: -twins.cross_entropy(forget),
        "bounded_ascent": lambda: twins.bounded_ascent(forget, 3.7),
        "kl": lambda: -twins.cross_entropy(forget),
        "retain_only": lambda: 0.0,
        "npo": lambda: twins.npo(forget, reference, 0.2),
        "calibrated": lambda: twins.calibrated(forget, constants["target"][rows].tolist()),
        "calibrated_labels": lambda: twins.calibrated_labels(forget, constants["label_targets"][rows].tolist(), 2.2),
        "calibrated_distribution": lambda: (
            twins.distribution_kl(
                padded(is_forget),
                batch["labels"][is_forget],
                constants["target_tokens"][rows].tolist(),
                constants["target_probabilities"][rows].tolist(),
            )
            + twins.calibrated_labels(forget, constants["label_targets"][rows].tolist(), 2.2)
        ),
    }[name]()
    retain_term = (
        twins.kl(padded(~is_forget), padded(~is_forget, disabled=True), batch["labels"][~is_forget])
        if name == "kl"
        else twins.cross_entropy(retain)
    )
    assert loss == pytest.approx(0.7 * forget_term + 1.3 * retain_term, abs=2e-4)


@pytest.mark.parametrize("retain", ["nll", "kl"])
@pytest.mark.parametrize("num_unseen", [1, 5])
def test_the_unseen_term_is_the_divergence_from_the_base_model_on_unseen_examples(tmp_path, retain, num_unseen):
    found = sets()
    found = Sets(found.forget, found.retain, unseen=language_set("holdout", num_unseen, 3))
    model = adapted_model()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    objective = build_objective("gradient_difference", retain=retain, retain_weight=1.3, unseen_weight=0.6)
    trainer = make_trainer(tmp_path, model, objective, found, unseen_batch_size=4)
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(model.eval(), batch).item()

    def logits(role, *, disabled=False):
        chosen = batch["role"] == role
        with torch.no_grad(), model.disable_adapter() if disabled else nullcontext():
            return model(input_ids=batch["input_ids"][chosen], attention_mask=batch["attention_mask"][chosen]).logits

    labels = {role: batch["labels"][batch["role"] == role] for role in (FORGET, RETAIN, UNSEEN)}
    assert [len(labels[role]) for role in (FORGET, RETAIN, UNSEEN)] == [3, 2, 4]
    divergence = {role: twins.kl(logits(role), logits(role, disabled=True), labels[role]) for role in (RETAIN, UNSEEN)}
    assert divergence[UNSEEN] > 1e-3
    likelihoods = {role: twins.cross_entropy(twins.nll_by_example(logits(role), labels[role])) for role in labels}
    retain_term = divergence[RETAIN] if retain == "kl" else likelihoods[RETAIN]
    expected = -likelihoods[FORGET] + 1.3 * retain_term + 0.6 * divergence[UNSEEN]
    assert loss == pytest.approx(expected, abs=2e-4)


def test_unseen_examples_that_are_asked_for_have_to_be_there(tmp_path):
    objective = build_objective("gradient_difference", unseen_weight=1.0)
    with pytest.raises(ConfigError, match="needs a set of unseen examples, but there is none"):
        train(adapted_model(), TASK, objective, sets(), settings=settings(), output_dir=tmp_path)


def test_the_unseen_term_is_in_the_history_and_keeps_what_the_model_says(tmp_path):
    """The same training without it goes further from the base model where nothing was to be forgotten."""
    found, outcomes = sets(), {}
    unseen = language_set("holdout", 8, 3)
    for weight in (0.0, 100.0):
        objective = build_objective("gradient_difference", unseen_weight=weight)
        given = Sets(found.forget, found.retain, unseen=unseen)
        model = adapted_model()
        outcome = train(
            model,
            TASK,
            objective,
            given,
            settings=settings(steps=12, learning_rate=3e-2),
            output_dir=tmp_path / str(weight),
        )
        batch = TASK.collate(list(unseen))
        with torch.no_grad():
            after = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            with model.disable_adapter():
                before = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        outcomes[weight] = (twins.kl(after, before, batch["labels"]), [step.unseen_term for step in outcome.history])
    assert outcomes[0.0][1] == [None] * 12
    assert all(value >= 0 for value in outcomes[100.0][1])
    assert outcomes[100.0][1][-1] > 0
    assert outcomes[100.0][0] < outcomes[0.0][0] / 2


@pytest.mark.parametrize("unseen_weight", [0.0, 2.0])
def test_accumulated_micro_batches_give_the_gradient_of_the_whole_batch(tmp_path, unseen_weight):
    found = Sets(sets().forget, sets().retain, unseen=language_set("holdout", 4, 3))
    objective = build_objective("gradient_difference", unseen_weight=unseen_weight)
    gradients = []
    for size, accumulation in ((3, 1), (1, 3)):
        model = adapted_model()
        torch.manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.05)  # where the model is the base model there is no divergence
        trainer = make_trainer(
            tmp_path,
            model,
            objective,
            found,
            forget_batch_size=size,
            retain_batch_size=size,
            gradient_accumulation=accumulation,
        )
        examples = [(role, index) for role in (FORGET, RETAIN, UNSEEN) for index in range(3)]
        if accumulation == 1:
            batches = [_collated(trainer, examples)]
        else:
            batches = [_collated(trainer, examples[place::3]) for place in range(3)]
        _, counts = trainer.get_batch_samples(iter(batches), len(batches), torch.device("cpu"))
        for batch in batches:
            trainer.compute_loss(model, batch, num_items_in_batch=counts).backward()
        gradients.append([p.grad.clone() for n, p in model.named_parameters() if "lora_B" in n])
    for whole, accumulated in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, accumulated, atol=1e-5, rtol=1e-4)


def _collated(trainer, draws):
    from stable_forgetting.data.pairs import Draw

    return trainer.data_collator([trainer.train_dataset[Draw(*draw)] for draw in draws])


def test_only_the_adapter_trains_and_forgetting_goes_the_right_way(tmp_path):
    model, found = adapted_model(), sets()
    before = {name: value.clone() for name, value in model.state_dict().items() if "bounded_lora" not in name}
    outcome = train(
        model, TASK, build_objective("gradient_difference"), found, settings=settings(steps=12), output_dir=tmp_path
    )
    for name, value in model.state_dict().items():
        if "bounded_lora" not in name:
            assert torch.equal(value, before[name]), name
    assert outcome.num_steps == 12
    assert [step.step for step in outcome.history] == list(range(1, 13))
    assert outcome.history[-1].forget_term < outcome.history[0].forget_term
    assert outcome.history[-1].adapter_norm > 0
    assert outcome.history[-1].largest_entry <= outcome.history[-1].entry_limit


def test_a_single_step_changes_the_adapter(tmp_path):
    model = adapted_model()
    before = adapter_state(model)
    objective = build_objective("gradient_difference")
    changes = {"steps": None, "epochs": 1, "forget_batch_size": 9, "save_every": 1}
    outcome = train(model, TASK, objective, sets(num_forget=9), settings=settings(**changes), output_dir=tmp_path)
    assert outcome.num_steps == 1
    assert any(not torch.equal(value, before[name]) for name, value in adapter_state(model).items())


@pytest.mark.parametrize(("accumulation", "is_said"), [(2, False), (3, True)])
def test_an_update_of_fewer_passes_than_were_asked_for_is_said(tmp_path, caplog, accumulation, is_said):
    objective, chosen = build_objective("gradient_difference"), settings(steps=1, gradient_accumulation=accumulation)
    train(adapted_model(), TASK, objective, sets(num_forget=5), settings=chosen, output_dir=tmp_path)
    assert ("An update takes 2 forward passes" in caplog.text) == is_said


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_training_over_float16_weights_warns(tmp_path, caplog, dtype):
    model = get_peft_model(tiny_language_model().to(dtype), BoundedLoraConfig(init_seed=0))
    objective = build_objective("gradient_difference")
    train(model, TASK, objective, sets(), settings=settings(steps=1, save_every=1), output_dir=tmp_path)
    assert ("small gradients are lost" in caplog.text) == (dtype == torch.float16)


def test_a_resumed_training_ends_with_the_same_bits(tmp_path):
    found = sets(num_forget=7, reference_nll_sum=torch.full((7,), 20.0))
    objective = build_objective("npo")
    whole = adapted_model()
    train(whole, TASK, objective, found, settings=settings(), output_dir=tmp_path / "whole")
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "killed" / "checkpoint-4")
    resumed = adapted_model()
    outcome = train(resumed, TASK, objective, found, settings=settings(), output_dir=tmp_path / "killed", resume=True)
    for name, value in adapter_state(whole).items():
        assert torch.equal(value, adapter_state(resumed)[name]), name
    assert [step.step for step in outcome.history] == list(range(1, 7))


def test_half_a_checkpoint_is_passed_over(tmp_path):
    found, objective = sets(), build_objective("gradient_difference")
    train(adapted_model(), TASK, objective, found, settings=settings(), output_dir=tmp_path)
    newest = tmp_path / "checkpoint-6"
    (newest / "complete").unlink()
    (newest / "trainer_state.json").write_text("{")
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-4"


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
@pytest.mark.parametrize("kind", ["loss", "gradient", "norm of the gradient"])
@pytest.mark.parametrize(("good_steps", "kept_step"), [(5, 4), (4, 2)])
def test_what_is_not_finite_stops_with_the_last_good_adapter(tmp_path, kind, good_steps, kept_step, max_grad_norm):
    """The checkpoint of the last step before the failure holds the weights that failed, so an earlier one is kept."""
    found = sets()
    model = adapted_model()
    calls = {"count": 0}
    original = TASK.predict

    def poisoned(model, batch):
        predictions = original(model, batch)
        calls["count"] += 1
        if calls["count"] > good_steps:
            factor = float("nan") if kind == "loss" else 1.0
            logits = predictions.logits * factor
            if kind != "loss":  # 1e30: finite entries whose squares are not
                factor = float("inf") if kind == "gradient" else 1e30
                logits.register_hook(lambda gradient: gradient * factor)
            return type(predictions)(logits, predictions.labels, predictions.example, predictions.num_examples)
        return predictions

    task = LanguageTask(FakeTokenizer())
    task.predict = poisoned
    chosen = settings(max_grad_norm=max_grad_norm)
    outcome = train(model, task, build_objective("gradient_difference"), found, settings=chosen, output_dir=tmp_path)
    assert kind in outcome.stopped
    assert f"in step {good_steps + 1}; the adapter of step {kept_step} was kept" in outcome.stopped
    assert outcome.num_steps == kept_step
    assert all(torch.isfinite(value).all() for value in adapter_state(model).values())
    from safetensors.torch import load_file

    saved = load_file(tmp_path / f"checkpoint-{kept_step}" / "adapter_model.safetensors")
    for name, value in saved.items():
        assert torch.equal(dict(model.state_dict())[_with_adapter_name(name)], value)


def _with_adapter_name(name: str) -> str:
    return name if ".default" in name else f"{name}.default"


def test_a_finetuning_that_is_not_finite_raises(tmp_path):
    model = tiny_language_model()
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(float("nan"))
    from stable_forgetting.config import FinetuneConfig

    with pytest.raises(NotFiniteError, match="loss became nan in step 1"):
        finetune(model, TASK, language_set("retain", 4), settings=FinetuneConfig(), output_dir=tmp_path)


def validation(values: list[float]) -> Validation:
    remaining = iter(values)
    return Validation(lambda _: {"forget_nll": next(remaining)}, {"forget_nll": True})


def test_a_stop_rule_ends_the_training_and_a_resume_keeps_to_it(tmp_path):
    found, objective = sets(), build_objective("gradient_difference")
    chosen = settings(evaluate_every=1, stop=[StopRule(metric="forget_nll", above=3.0)])
    model = adapted_model()
    outcome = train(
        model, TASK, objective, found, settings=chosen, output_dir=tmp_path, validation=validation([1, 2, 3.5, 9, 9])
    )
    assert outcome.num_steps == 3
    assert outcome.stopped == "stop rule: forget_nll above 3 (3.5 in step 3)"
    resumed = adapted_model()
    again = train(
        resumed, TASK, objective, found, settings=chosen, output_dir=tmp_path, validation=validation([]), resume=True
    )
    assert again.stopped == outcome.stopped
    assert again.num_steps == 3
    for name, value in adapter_state(model).items():
        assert torch.equal(value, adapter_state(resumed)[name])


def test_a_rule_that_applies_in_the_last_step_has_stopped_nothing(tmp_path):
    chosen = settings(steps=3, evaluate_every=1, stop=[StopRule(metric="forget_nll", above=3.0)])
    given = {"settings": chosen, "output_dir": tmp_path}
    objective = build_objective("gradient_difference")
    outcome = train(adapted_model(), TASK, objective, sets(), **given, validation=validation([1, 2, 3.5]))
    assert (outcome.num_steps, outcome.stopped) == (3, None)
    again = train(adapted_model(), TASK, objective, sets(), **given, validation=validation([]), resume=True)
    assert (again.num_steps, again.stopped) == (3, None)


def test_the_best_checkpoint_is_kept(tmp_path):
    chosen = settings(steps=4, evaluate_every=1, best_metric="forget_nll")
    model = adapted_model()
    outcome = train(
        model,
        TASK,
        build_objective("gradient_difference"),
        sets(),
        settings=chosen,
        output_dir=tmp_path,
        validation=validation([1.0, 5.0, 2.0, 3.0]),
    )
    assert outcome.num_steps == 2
    state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["best_global_step"] == 2
    from safetensors.torch import load_file

    for name, value in load_file(tmp_path / "checkpoint-2" / "adapter_model.safetensors").items():
        assert torch.equal(dict(model.state_dict())[_with_adapter_name(name)], value)


def test_an_unknown_validation_metric_is_refused(tmp_path):
    chosen = settings(evaluate_every=1, best_metric="forget_nul")
    with pytest.raises(ConfigError, match="Did you mean 'forget_nll'"):
        train(
            adapted_model(),
            TASK,
            build_objective("gradient_difference"),
            sets(),
            settings=chosen,
            output_dir=tmp_path,
            validation=validation([]),
        )


@pytest.mark.parametrize("name", ["gradient_difference", "bounded_ascent", "retain_only"])
def test_images_train_through_the_same_path(tmp_path, name):
    model = get_peft_model(tiny_image_model(), BoundedLoraConfig(init_seed=0))
    found = Sets(image_set("forget", 6, 1), image_set("retain", 8, 2))
    objective = build_objective(name, limit=8.0)
    chosen = settings(steps=20, learning_rate=1e-3, retain_batch_size=8)
    outcome = train(model, ImageTask(processor=None), objective, found, settings=chosen, output_dir=tmp_path)
    first, last = outcome.history[0], outcome.history[-1]
    if name == "retain_only":
        assert (first.forget_term, last.loss) == (None, last.retain_term)
        assert last.retain_term < first.retain_term
    else:
        assert last.forget_term < first.forget_term


@pytest.mark.parametrize("off", [("retain_only", {}), ("gradient_difference", {"forget_weight": 0})])
def test_without_a_forget_term_an_epoch_is_still_a_pass_over_the_forget_set(tmp_path, off):
    """As many steps as any other objective makes, on the same retain examples."""
    name, changes = off
    found = sets(num_forget=7, num_retain=10)
    choices = {"usual": build_objective("gradient_difference"), "off": build_objective(name, **changes)}
    outcomes, seen = {}, {}
    for key, objective in choices.items():
        task = CountingTask(FakeTokenizer())
        outcomes[key] = train(
            adapted_model(), task, objective, found, settings=settings(steps=None, epochs=2), output_dir=tmp_path / key
        )
        seen[key] = task.seen
    assert outcomes["off"].num_steps == outcomes["usual"].num_steps == 6
    retained = set(found.retain)
    assert seen["off"] == [example for example in seen["usual"] if example in retained]
    assert [step.forget_term for step in outcomes["off"].history] == [None] * 6


class CountingTask(LanguageTask):
    """Writes down the examples that training sees, in order."""

    def __init__(self, tokenizer):
        super().__init__(tokenizer)
        self.seen = []

    def collate(self, examples):
        self.seen += examples
        return super().collate(examples)


def test_the_collator_marks_roles():
    found = sets(2, 2)
    collate = PairCollator(TASK.collate)
    pairs = PairedExamples(found.forget, found.retain)
    batches = ForgetRetainBatches(2, 2, forget_batch_size=2, retain_batch_size=1, seed=0)
    batch = collate([pairs[draw] for draw in next(iter(batches))])
    assert batch["role"].tolist() == [0, 0, 1]
