"""Unlearning itself, without files and configs: a model, a forget set and a retain set in, a forgetful model out."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model

from stable_forgetting.adapters import BoundedLoraConfig, LayerCertificate, certificate
from stable_forgetting.config import TargetConfig, TrainingConfig
from stable_forgetting.data.examples import ExampleSet
from stable_forgetting.data.language import LanguageColumns, language_examples
from stable_forgetting.data.rows import Rows
from stable_forgetting.data.splits import check_no_overlap
from stable_forgetting.data.vision import image_examples
from stable_forgetting.errors import ConfigError
from stable_forgetting.evaluation import LikelihoodScores, score_examples, validation_data
from stable_forgetting.models.tasks import ImageTask, LanguageTask, Task
from stable_forgetting.objectives import Objective, build_objective
from stable_forgetting.progress import Progress
from stable_forgetting.runs.constants import forget_constants
from stable_forgetting.runs.sets import process_with
from stable_forgetting.runs.validation import validation_on
from stable_forgetting.training import Sets as TrainingSets
from stable_forgetting.training import TrainingOutcome, Validation, train

Data = ExampleSet[Any] | Sequence[Mapping[str, Any]]
"""Examples, or rows: {"prompt", "answer"}, {"messages"} or {"text"} for language, {"image", "label"} for images."""

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
    retain: Data,
    *,
    tokenizer: Any = None,
    image_processor: Any = None,
    holdout: Data | None = None,
    objective: str | Objective = "gradient_difference",
    adapter: BoundedLoraConfig | None = None,
    target: TargetConfig | None = None,
    training: TrainingConfig | None = None,
    output_dir: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Unlearned:
    """Train a bounded adapter that makes a model forget one set of examples and keep another.

    Args:
        model: A causal language model or image classifier of transformers. Its weights are not changed; its layers are
            wrapped in place, as `peft.get_peft_model` does.
        forget: What is to be forgotten.
        retain: What is to be kept; no example may be in both.
        tokenizer: Of a language model.
        image_processor: Of an image classifier. One of the two must be given.
        holdout: Unseen examples of the forget set's kind, for calibrated forgetting.
        objective: Name of an objective, or one that was built.
        adapter: The adapter; by default rank 4, sine, omega 100, on the MLP layers.
        target: Where calibrated forgetting stops; by default where the holdout set is. Not from a pretrained model.
        training: Steps, rates and batches. Validations measure at most 64 examples of each set, and without a retain
            model none of the metrics that compare with one.
        output_dir: Where checkpoints are kept; by default they are thrown away at the end.
        resume: Whether to go on from the last complete checkpoint in `output_dir`.
        progress: Where progress is shown.

    Returns:
        The model with its adapter, the history and the certificate.

    Raises:
        ConfigError: Neither or both of tokenizer and image_processor are given, or the objective lacks what it needs.
        DataError: A set is empty or malformed, or the sets overlap.
        RunDirectoryError: `output_dir` holds checkpoints of another training, and `resume` is False.
    """
    target = target or TargetConfig()
    if target.needs_pretrained:
        raise ConfigError(
            "Targets from the pretrained model need a run with a config (pretrained_model). Use the source 'holdout' "
            "and places from the base model here."
        )
    task = make_task(model, tokenizer, image_processor)
    sets = {"forget": make_examples("forget", forget, task), "retain": make_examples("retain", retain, task)}
    check_no_overlap(sets["forget"], sets["retain"])
    if holdout is not None:
        sets["holdout"] = make_examples("holdout", holdout, task)
        check_no_overlap(sets["forget"], sets["holdout"])
    chosen = build_objective(objective) if isinstance(objective, str) else objective
    settings = training or TrainingConfig()
    validation = _validation(task, sets, settings)
    scores = _needed_scores(model, task, chosen, sets, settings)
    constants = forget_constants(
        chosen,
        base=scores,
        pretrained={},
        target=target,
    )
    peft_model = get_peft_model(model, adapter or BoundedLoraConfig(init_seed=settings.seed))
    with tempfile.TemporaryDirectory() as scratch:
        outcome = train(
            peft_model,
            task,
            chosen,
            TrainingSets(sets["forget"], sets["retain"], constants),
            settings=settings,
            output_dir=Path(output_dir or scratch),
            validation=validation,
            resume=resume,
            progress=progress,
        )
    peft_model.eval()
    return Unlearned(peft_model, outcome, certificate(peft_model))


def make_task(model: Any, tokenizer: Any, image_processor: Any) -> Task:
    """The task of a model with the tokenizer or image processor that it is used with.

    Raises:
        ConfigError: Neither or both are given.
    """
    if (tokenizer is None) == (image_processor is None):
        given = "neither" if tokenizer is None else "both"
        raise ConfigError(f"Give either tokenizer or image_processor, not {given}: they say what the model reads.")
    if image_processor is not None:
        return ImageTask.of(model, image_processor)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return LanguageTask(tokenizer)


def make_examples(name: str, data: Data, task: Task) -> ExampleSet[Any]:
    """Examples of rows; examples stay as they are."""
    if isinstance(data, ExampleSet):
        return data
    rows = Rows(list(data), "given in memory")
    if isinstance(task, LanguageTask):
        return language_examples(rows, task.tokenizer, name=name, columns=LanguageColumns())
    return image_examples(rows, process_with(task), name=name)


def _needed_scores(
    model: Any, task: Task, objective: Objective, sets: Mapping[str, ExampleSet[Any]], settings: TrainingConfig
) -> dict[str, LikelihoodScores]:
    """The base model's likelihoods that the objective needs."""
    names = ["forget"] if objective.needs_targets or "reference_nll_sum" in objective.needs else []
    names += ["holdout"] if objective.needs_targets and "holdout" in sets else []
    size, with_tokens = settings.forget_batch_size + settings.retain_batch_size, "label_targets" in objective.needs
    return {name: score_examples(model, task, sets[name], batch_size=size, with_tokens=with_tokens) for name in names}


def _validation(task: Task, sets: Mapping[str, ExampleSet[Any]], settings: TrainingConfig) -> Validation:
    """Metrics on a part of both sets, for stop rules and the best checkpoint."""
    data = validation_data(sets, size=VALIDATION_SIZE, seed=settings.seed)
    return validation_on(task, data, settings, settings.forget_batch_size + settings.retain_batch_size)
