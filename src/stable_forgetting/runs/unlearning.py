"""Unlearning itself, without files and configs: a model, a forget set and a retain set in, a forgetful model out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftModel

from stable_forgetting import processes
from stable_forgetting.adapters import BoundedLoraConfig, LayerCertificate, attach, certificate
from stable_forgetting.config import TargetConfig, TrainingConfig
from stable_forgetting.data.examples import ExampleSet
from stable_forgetting.data.language import DEFAULT_TEMPLATE
from stable_forgetting.data.ragged import RowValues
from stable_forgetting.evaluation import validation_data
from stable_forgetting.models.tasks import Task
from stable_forgetting.objectives import Objective
from stable_forgetting.progress import Progress, SilentProgress
from stable_forgetting.runs.arguments import (
    Data,
    Reading,
    check_model,
    check_surroundings,
    check_unseen,
    make_adapter,
    make_objective,
    make_sets,
    make_settings,
    make_task,
)
from stable_forgetting.runs.cache import alone_in
from stable_forgetting.runs.constants import ends_of, forget_constants
from stable_forgetting.runs.likelihoods import Measuring, set_likelihoods
from stable_forgetting.runs.target_distributions import target_distributions
from stable_forgetting.runs.training_directory import claim, training_identity
from stable_forgetting.runs.validation import validation_on
from stable_forgetting.training import Sets as TrainingSets
from stable_forgetting.training import TrainingOutcome, Validation, train
from stable_forgetting.training.surroundings import move_to_training_device

VALIDATION_SIZE = 64
"""Largest number of examples of each set in validations during training."""


@dataclass(frozen=True, eq=False)
class Unlearned:
    """What `unlearn` gives back.

    Args:
        model: The base model with the trained adapter: a PeftModel, with all that PEFT offers.
        outcome: How the training went.
        certificate: The bound's guarantee for each adapted layer.
    """

    model: PeftModel
    outcome: TrainingOutcome
    certificate: list[LayerCertificate] = field(default_factory=list)


def unlearn(  # noqa: PLR0913  (one call with everything by name is the point of it)
    model: Any,
    forget: Data,
    retain: Data | None = None,
    *,
    tokenizer: Any = None,
    image_processor: Any = None,
    holdout: Data | None = None,
    objective: str | Objective = "gradient_difference",
    adapter: BoundedLoraConfig | None = None,
    target: TargetConfig | None = None,
    training: TrainingConfig | None = None,
    template: str = DEFAULT_TEMPLATE,
    chat_template: bool | None = None,
    max_length: int = 512,
    output_dir: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Unlearned:
    """Train a bounded adapter that makes a model forget one set of examples and keep another.

    For a further request give the model that has forgotten already as plain weights, `result.model.merge_and_unload()`.

    Args:
        model: A causal language model or image classifier of transformers, without an adapter. Its weights are not
            changed; it is moved to a GPU if there is one, and its layers are wrapped in place, as by
            `peft.get_peft_model`. After an error they are its own again.
        forget: What is to be forgotten.
        retain: What is to be kept; no example may be in two sets. May be left out if the objective has no retain term.
        tokenizer: Of a language model.
        image_processor: Of an image classifier. One of the two must be given.
        holdout: Unseen examples of the forget set's kind, for calibrated forgetting and for the unseen term.
        objective: Name of an objective, or one that was built.
        adapter: The adapter; by default rank 4, sine, omega 100, on the MLP layers. It starts by `training.seed` if its
            own `init_seed` is None. `modules_to_save` is refused: no bound holds for what is trained besides.
        target: Where calibrated forgetting stops; by default where the holdout set is. Not from a pretrained model.
        training: Steps, rates and batches. Validations measure at most 64 examples of each set, and without a retain
            model none of the metrics that compare with one.
        template: Rows of prompts and answers: text with ``{prompt}`` and, at its end, ``{answer}``, used where there is
            no chat template.
        chat_template: Whether prompts are put into the tokenizer's chat template; by default if it has one.
        max_length: Largest number of tokens of an example; longer ones are cut at the end of the answer.
        output_dir: Where checkpoints are kept; by default they are thrown away at the end.
        resume: Whether to go on from the last complete checkpoint in `output_dir`, if there is one.
        progress: Where progress is shown, such as `RichProgress()`.

    Returns:
        The model with its adapter, the history and the certificate.

    Raises:
        ConfigError: An argument is not allowed, or is missing: one of tokenizer and image_processor, what the
            objective needs, the place to resume from.
        DataError: A set is empty or malformed, or two sets overlap.
        ModelError: The model is not one, has an adapter already, or has no layer to adapt.
        RunDirectoryError: `output_dir` holds checkpoints, and `resume` is False or they are of another training; or
            another process is at work in it.
    """
    check_model(model)
    check_surroundings(progress, resume=resume, output_dir=output_dir)
    progress = progress or SilentProgress()
    processes.join()
    chosen = make_objective(objective, target, has_retain=retain is not None, has_unseen=holdout is not None)
    settings = make_settings(training, has_retain=retain is not None)
    config = make_adapter(adapter, settings.seed)
    task = make_task(model, tokenizer, image_processor)
    check_unseen(chosen, task)
    given = {"forget": forget, "retain": retain, "holdout": holdout}
    sets = make_sets(given, model, task, Reading(template, chat_template, max_length))
    validation = _validation(task, sets, settings)
    target = target or TargetConfig()
    identity = partial(training_identity, model, chosen, target, settings, config, sets)
    with _checkpoint_folder(output_dir, identity, resume=resume) as folder, ExitStack() as attached:
        move_to_training_device(model)
        constants = _constants(model, task, chosen, target, sets, settings, progress)
        peft_model = attached.enter_context(_attached(model, config))
        outcome = train(
            peft_model,
            task,
            chosen,
            TrainingSets(sets["forget"], sets.get("retain"), constants, sets.get("holdout")),
            settings=settings,
            output_dir=folder,
            validation=validation,
            resume=resume,
            progress=progress,
        )
    peft_model.eval()
    return Unlearned(peft_model, outcome, certificate(peft_model))


@contextmanager
def _checkpoint_folder(
    output_dir: str | Path | None, identity: Callable[[], Mapping[str, str]], *, resume: bool
) -> Iterator[Path]:
    """Where checkpoints go: the folder that was given, this training's alone, or one that is deleted in the end."""
    if output_dir is None:
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)
        return
    folder = Path(output_dir)
    with alone_in(folder):
        claim(folder, identity(), resume=resume)
        yield folder


@contextmanager
def _attached(model: Any, config: BoundedLoraConfig) -> Iterator[PeftModel]:
    """The model with a new adapter, which is taken off if the training does not come to its end.

    The model can then be given once more, and the weights that could be trained before can be again.
    """
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    peft_model = attach(model, config)
    try:
        yield peft_model
    except BaseException:
        peft_model.unload()
        for weight in trainable:
            weight.requires_grad_(True)
        raise


def _constants(
    model: Any,
    task: Task,
    objective: Objective,
    target: TargetConfig,
    sets: Mapping[str, ExampleSet[Any]],
    settings: TrainingConfig,
    progress: Progress,
) -> dict[str, RowValues]:
    """What the forget term needs of the base model, which is measured for it as far as that takes."""
    names = ["forget"] if objective.needs_targets or "reference_nll_sum" in objective.needs else []
    names += ["holdout"] if objective.needs_targets and "holdout" in sets else []
    measured = {name: sets[name] for name in names}
    size = settings.forget_batch_size + settings.retain_batch_size
    how = Measuring("label_targets" in objective.needs, size, progress, "base model")
    return forget_constants(
        objective,
        base=set_likelihoods(model, task, measured, how),
        pretrained={},
        target=target,
        distributions=partial(
            target_distributions, model=model, task=task, forget=sets["forget"], batch_size=size, progress=progress
        ),
        ends=ends_of(measured),
    )


def _validation(task: Task, sets: Mapping[str, ExampleSet[Any]], settings: TrainingConfig) -> Validation | None:
    """Metrics on a part of both sets, for stop rules and the best checkpoint; None without validations."""
    if settings.evaluate_every is None:
        return None
    data = validation_data(sets, size=VALIDATION_SIZE, seed=settings.seed)
    return validation_on(task, data, settings, settings.forget_batch_size + settings.retain_batch_size)
