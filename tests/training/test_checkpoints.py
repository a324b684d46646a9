"""What a training leaves behind: the model's own forward, the best weights after a resume, no other run's adapter."""

import shutil
from dataclasses import dataclass

import pytest
import torch
from peft import PeftModel, get_peft_model

from stable_forgetting.adapters import BoundedLoraConfig
from stable_forgetting.config import StopRule, TrainingConfig
from stable_forgetting.errors import ConfigError, NotFiniteError, RunDirectoryError
from stable_forgetting.models.tasks import LanguageTask
from stable_forgetting.objectives import build_objective
from stable_forgetting.runs.unlearning import unlearn
from stable_forgetting.training import Sets, TrainingOutcome, Validation, train
from stable_forgetting.training.callbacks import CompleteCheckpoints
from tiny_models import FakeTokenizer, language_set, tiny_language_model


def adapted_model() -> PeftModel:
    return get_peft_model(tiny_language_model(), BoundedLoraConfig(init_seed=0))


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items() if "bounded_lora" in name}


def same(one, other) -> bool:
    return all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())


def settings(**changes) -> TrainingConfig:
    base = {"steps": 4, "learning_rate": 1e-2, "forget_batch_size": 3, "retain_batch_size": 2, "save_every": 1}
    return TrainingConfig(**base | changes)


def validation(values: list[float], error_at_end: bool = False) -> Validation:
    remaining = iter(values)

    def measure(_):
        value = next(remaining, None)
        if value is None and error_at_end:
            raise NotFiniteError("the likelihood is not finite")
        return {"forget_nll": value}

    return Validation(measure, {"forget_nll": True})


@dataclass
class Training:
    """A training in a directory, with everything else fixed."""

    output_dir: object
    settings: TrainingConfig

    def run(self, model, **changes) -> TrainingOutcome:
        return train(
            model,
            changes.pop("task", LanguageTask(FakeTokenizer())),
            build_objective("gradient_difference"),
            Sets(language_set("forget", 6, 1), language_set("retain", 10, 2)),
            settings=self.settings,
            output_dir=self.output_dir,
            **changes,
        )


def trained_for(num_steps: int, output_dir) -> PeftModel:
    """The model after so many of six steps."""
    model = adapted_model()
    training = Training(output_dir, settings(steps=6))
    outcome = training.run(model, task=failing_after(num_steps + 1))
    assert outcome.num_steps == num_steps
    return model


def failing_after(num_steps: int) -> LanguageTask:
    """A task whose loss is not finite in the step after so many."""
    task = LanguageTask(FakeTokenizer())
    original, left = task.predict, iter(range(num_steps))

    def predict(given, batch):
        if next(left, None) is None:
            raise NotFiniteError("the loss became nan")
        return original(given, batch)

    task.predict = predict
    return task


def logits_of(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(1, 9)[None]).logits


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_has_its_own_forward_after_bfloat16(tmp_path, fails):
    model, task = adapted_model(), LanguageTask(FakeTokenizer())
    if fails:
        original, left = task.predict, iter(range(2))

        def predict(given, batch):
            assert "_original_forward" in model.__dict__, "accelerate no longer patches forward: drop _own_forward"
            if next(left, None) is None:
                raise NotFiniteError("the loss became nan")
            return original(given, batch)

        task.predict = predict
    outcome = Training(tmp_path, settings(bf16=True)).run(model, task=task)
    assert (outcome.stopped is not None) == fails
    assert not {"forward", "_original_forward"} & set(model.__dict__)
    twin = adapted_model()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(logits_of(model), logits_of(twin))


def test_a_forward_of_the_users_own_stays(tmp_path):
    model = adapted_model()
    own = model.forward
    model.forward = own
    Training(tmp_path, settings(steps=1, bf16=True)).run(model)
    assert model.__dict__["forward"] is own
    assert "_original_forward" not in model.__dict__


def best_then_stopped() -> TrainingConfig:
    rule = StopRule(metric="forget_nll", below=1.0)
    return settings(evaluate_every=1, best_metric="forget_nll", stop=[rule])


def test_a_resume_after_a_stop_gives_the_best_weights_wherever_the_folder_is_now(tmp_path):
    whole, resumed = adapted_model(), adapted_model()
    outcome = Training(tmp_path / "a", best_then_stopped()).run(whole, validation=validation([2, 5, 0.5]))
    (tmp_path / "a").rename(tmp_path / "b")
    again = Training(tmp_path / "b", best_then_stopped()).run(resumed, validation=validation([]), resume=True)
    assert outcome.num_steps == again.num_steps == 2
    assert again.stopped == outcome.stopped == "stop rule: forget_nll below 1 (0.5 in step 3)"
    assert same(whole, resumed)


@pytest.mark.parametrize("length", [{"steps": 3}, {"steps": None, "epochs": 1.5}])
def test_a_resume_of_a_training_at_its_end_takes_no_further_step(tmp_path, length):
    training = Training(tmp_path, settings(**length))
    whole, resumed = adapted_model(), adapted_model()
    outcome = training.run(whole)
    again = training.run(resumed, resume=True)
    assert outcome.num_steps == again.num_steps == 3
    assert again.stopped is None
    assert again.history == outcome.history
    assert same(whole, resumed)


def test_a_resume_without_the_best_checkpoint_is_refused(tmp_path):
    training = Training(tmp_path, best_then_stopped())
    training.run(adapted_model(), validation=validation([2, 5, 0.5]))
    shutil.rmtree(tmp_path / "checkpoint-2")
    with pytest.raises(RunDirectoryError, match=r"checkpoint-2.*Restore it"):
        training.run(adapted_model(), validation=validation([]), resume=True)


def test_checkpoints_of_another_training_are_refused(tmp_path):
    training = Training(tmp_path, settings(steps=1))
    training.run(adapted_model())
    model = adapted_model()
    before = weights(model)
    with pytest.raises(RunDirectoryError, match=r"checkpoint-1.*another output_dir.*resume=True"):
        training.run(model)
    assert all(torch.equal(value, weights(model)[name]) for name, value in before.items())


def test_a_validation_that_is_not_finite_goes_back_to_an_earlier_step(tmp_path):
    model = adapted_model()
    training = Training(tmp_path, settings(evaluate_every=1))
    outcome = training.run(model, validation=validation([1, 2], error_at_end=True))
    assert outcome.num_steps == 2
    assert "the adapter of step 2 was kept" in outcome.stopped


@pytest.mark.parametrize(("values", "kept"), [([5, 2, 1], 1), ([2, 5, 1], 2), ([1, 2, 5], 3)])
def test_with_a_best_metric_it_goes_back_to_the_best_step(tmp_path, values, kept):
    training = Training(tmp_path, settings(steps=6, evaluate_every=1, best_metric="forget_nll"))
    model = adapted_model()
    outcome = training.run(model, validation=validation(values, error_at_end=True))
    assert outcome.num_steps == kept
    assert f"the adapter of step {kept} was kept" in outcome.stopped
    assert same(model, trained_for(kept, tmp_path / "twin"))


@pytest.mark.parametrize(("values", "kept"), [([1, 2, 5], 2), ([1, 4, 2, 5], 2), ([1, 4, 4, 5], 2)])
def test_the_best_step_is_not_gone_back_to_if_its_weights_give_what_is_not_finite(tmp_path, values, kept):
    """But to the best one before it."""
    training = Training(tmp_path, settings(steps=6, evaluate_every=1, best_metric="forget_nll"))
    outcome = training.run(adapted_model(), validation=validation(values), task=failing_after(len(values)))
    assert outcome.num_steps == kept
    assert "Lower training.learning_rate" in outcome.stopped


def test_what_is_not_finite_before_the_first_update_is_not_put_down_to_the_learning_rate(tmp_path):
    outcome = Training(tmp_path, settings()).run(adapted_model(), task=failing_after(0))
    assert outcome.num_steps == 0
    assert "No weight had been changed yet" in outcome.stopped
    assert "learning_rate" not in outcome.stopped


@pytest.mark.parametrize(
    ("objective", "sets", "message"),
    [
        ("gradient_difference", Sets(language_set("forget", 6, 1), None), "needs a retain set, but there is none"),
        ("ascent", Sets(None, language_set("retain", 6, 1)), "needs a forget set, but there is none"),
        ("npo", Sets(language_set("forget", 6, 1), language_set("retain", 6, 2)), "are not there: reference_nll_sum"),
    ],
)
def test_a_training_without_what_its_objective_needs_is_refused(tmp_path, objective, sets, message):
    with pytest.raises(ConfigError, match=message):
        train(
            adapted_model(),
            LanguageTask(FakeTokenizer()),
            build_objective(objective),
            sets,
            settings=settings(),
            output_dir=tmp_path,
        )


class Killed(BaseException):
    """In place of a kill: nothing in the package catches it."""


def test_a_kill_before_a_checkpoint_is_complete_costs_one_of_them_only(tmp_path, monkeypatch):
    mark = CompleteCheckpoints.on_save

    def mark_or_die(self, args, state, control, **given):
        if state.global_step == 4:
            raise Killed
        mark(self, args, state, control, **given)

    monkeypatch.setattr(CompleteCheckpoints, "on_save", mark_or_die)
    training = Training(tmp_path, settings(evaluate_every=1, best_metric="forget_nll"))
    with pytest.raises(Killed):
        training.run(adapted_model(), validation=validation([5, 1, 2, 3]))
    assert {path.parent.name for path in tmp_path.glob("*/complete")} == {"checkpoint-1", "checkpoint-3"}


def test_without_an_earlier_checkpoint_the_fresh_adapter_is_kept(tmp_path):
    """The only checkpoint, of step 1, holds the weights that gave the loss of step 2."""
    model = adapted_model()
    outcome = Training(tmp_path, settings()).run(model, task=failing_after(1))
    assert (tmp_path / "checkpoint-1").is_dir()
    assert outcome.num_steps == 0
    assert "the fresh adapter was kept" in outcome.stopped
    assert same(model, adapted_model())


def test_validations_without_metrics_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"training.evaluate_every is 1.*Give train\(\) a validation"):
        Training(tmp_path, settings(evaluate_every=1)).run(adapted_model())


def test_unlearn_validates_on_its_own_sets_and_resumes(tmp_path):
    chosen = settings(
        steps=2, evaluate_every=1, best_metric="retain_nll", stop=[StopRule(metric="forget_nll", above=0.0)]
    )

    def call(**changes):
        return unlearn(
            tiny_language_model(),
            language_set("forget", 70, 1),
            language_set("retain", 6, 2),
            tokenizer=FakeTokenizer(),
            training=chosen,
            output_dir=tmp_path,
            **changes,
        )

    first = call()
    assert set(first.outcome.history[0].validation) >= {"forget_nll", "retain_nll", "forget_probability"}
    assert first.outcome.stopped.startswith("stop rule: forget_nll above 0")
    with pytest.raises(RunDirectoryError, match="already holds checkpoints"):
        call()
    assert same(call(resume=True).model, first.model)
