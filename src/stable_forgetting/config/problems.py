"""What is wrong with a config as a whole: settings that need or exclude one another."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stable_forgetting.config.data_options import DataConfig, SourceConfig
    from stable_forgetting.config.options import RunConfig

MEASURED_ONLY = ("retain_evaluation", "forgotten_before", "real_authors", "world_facts")
"""Sets that nothing is taught from."""

WITH_TARGETS = ("calibrated", "calibrated_labels", "calibrated_distribution")
"""Objectives that stop at a target."""

_LANGUAGE_ONLY = ("retain_evaluation", "real_authors", "world_facts")
"""For images the attacks take the measured retain images for members, so these have to be the taught ones."""

_OF_A_PATH = ("subset", "prompt", "answer", "paraphrased", "perturbed", "text", "messages", "image", "label")
"""Settings that a set without a path has from `data.source`."""


_AT_THE_END = (
    "batch_size",
    "generate",
    "max_new_tokens",
    "num_examples",
    "test_limit",
    "gradient_norm",
    "linear_probe",
    "num_resamples",
)
"""Settings of `evaluation` that change no adapter."""


def measures_again(config: RunConfig, *, is_half_trained: bool) -> frozenset[str]:
    """Paths of the settings with which a run that is resumed may differ: they decide on its measuring alone.

    Args:
        config: The config. Validations draw from the retain examples that are measured, so that their limit is one of
            these settings only without validations.
        is_half_trained: Whether the training goes on from a checkpoint: it is to go on with targets that were made in
            batches of the same size, by which they are rounded.
    """
    names = {*_AT_THE_END} - ({"batch_size"} if is_half_trained else set())
    names |= set() if config.training.evaluate_every else {"retain_limit"}
    return frozenset(f"evaluation.{name}" for name in names)


def find_problems(config: RunConfig) -> list[str]:
    """One sentence for each problem; none means that the settings fit together.

    Args:
        config: The config.
    """
    data = config.data
    problems = _problems_of_sets(data)
    if config.task == "image":
        problems += [f"data.{name}: only language models have it" for name in _LANGUAGE_ONLY if getattr(data, name)]
        if config.retain_log:
            problems.append("retain_log: there are logs of language models only; give retain_model")
        if config.evaluation.compat:
            problems.append(f"evaluation.compat: '{config.evaluation.compat}' is a protocol of language models")
    else:
        problems += _problems_of_language(config)
    if config.objective.name in WITH_TARGETS:
        problems += _problems_of_target(config)
    if config.objective.unseen_weight > 0:
        problems += _problems_of_unseen(config)
    if config.objective.forget_weight == 0 and config.objective.retain_weight == 0:
        problems.append("objective: forget_weight and retain_weight are both 0, so there is nothing to train")
    if config.model.quantization and (config.model.finetune or config.merge):
        problems.append(
            f"model.quantization is '{config.model.quantization}': rounded weights are neither finetuned nor merged; "
            "leave out model.finetune and merge, or model.quantization"
        )
    if config.retain_log and config.retain_model:
        problems.append("retain_log and retain_model are both given; leave one of them out")
    return problems


def _problems_of_unseen(config: RunConfig) -> list[str]:
    weight = f"objective.unseen_weight is {config.objective.unseen_weight}"
    if config.task == "image":  # unseen images are those of the classes that are forgotten
        return [f"{weight}: only language models have it; leave it out"]
    if config.data.holdout is None and config.data.targets is None:
        return [f"{weight}, which needs data.holdout or data.targets, examples that the base model has not seen"]
    return []


def _problems_of_target(config: RunConfig) -> list[str]:
    problems, target = [], config.objective.target
    if target.source == "number" and target.nll is None:
        problems.append("objective.target: source 'number' needs 'nll', the target in nats per label")
    if target.source == "holdout" and config.data.holdout is None and config.data.targets is None:
        problems.append(
            "objective.target: source 'holdout' needs data.holdout or data.targets, unseen examples of the same kind"
        )
    if target.places == "pretrained" and not target.needs_pretrained:
        problems.append("objective.target: places 'pretrained' is for source 'holdout' and matching 'quantiles' only")
    if target.needs_pretrained and config.pretrained_model is None:
        setting = "source" if target.source == "pretrained" else "places"
        if config.task == "image":  # the head of a classifier is made anew before finetuning
            problems.append(
                f"objective.target: {setting} 'pretrained' needs pretrained_model, a classifier of the same classes"
            )
        elif config.model.finetune is None:
            problems.append(f"objective.target: {setting} 'pretrained' needs pretrained_model, or model.finetune")
    return problems


def _problems_of_language(config: RunConfig) -> list[str]:
    problems = []
    if config.model.image_size is not None:
        problems.append(f"model.image_size is {config.model.image_size}: only image models have it")
    if any(training.trains == "head" for training in config.model.finetune or []):
        problems.append("model.finetune.trains is 'head': only image classifiers have a head that is trained alone")
    return problems


def _problems_of_sets(data: DataConfig) -> list[str]:
    names = ("forget", "retain", "holdout", "targets", "test", *MEASURED_ONLY)
    shared = {name: source for name in names if (source := getattr(data, name)) is not None and source.path is None}
    if data.source is None:
        return (
            [f"data: these sets need a 'path' each, or a common 'data.source': {', '.join(shared)}"] if shared else []
        )
    if data.source.path is None:
        return ["data.source: give a 'path', the source of the sets that have none of their own"]
    problems = [
        f"data.{name}: give a 'where' rule or a 'split' that says which examples of data.source it takes"
        for name, source in shared.items()
        if name != "retain" and source.where is None and source.split is None
    ]
    return problems + [
        f"data.{name}.{setting}: a set without a 'path' has the {setting} of data.source; set it there"
        for name, source in shared.items()
        for setting in _of_its_own(source, data.source)
    ]


def _of_its_own(source: SourceConfig, common: SourceConfig) -> list[str]:
    """Settings that were given to a set although it has them from the common source."""
    fields = type(source).model_fields
    return [name for name in _OF_A_PATH if getattr(source, name) not in (fields[name].default, getattr(common, name))]
