"""What `unlearn` is given: checked before anything changes, and made into a task, example sets and an adapter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from stable_forgetting.adapters import BoundedLoraConfig
from stable_forgetting.config import TargetConfig, TrainingConfig
from stable_forgetting.data.examples import ExampleSet
from stable_forgetting.data.language import DEFAULT_TEMPLATE, LanguageColumns, language_examples
from stable_forgetting.data.rows import Rows
from stable_forgetting.data.splits import check_no_overlap
from stable_forgetting.data.vision import image_examples
from stable_forgetting.errors import ConfigError, DataError, ModelError
from stable_forgetting.models.processors import with_pad_token
from stable_forgetting.models.reading import check_causal
from stable_forgetting.models.tasks import ImageTask, LanguageTask, Task
from stable_forgetting.objectives import Objective, build_objective
from stable_forgetting.progress import Progress
from stable_forgetting.runs.fits import all_answers, check_labels, check_positions, check_tokens
from stable_forgetting.runs.sets import process_with

Data = ExampleSet[Any] | Sequence[Mapping[str, Any]]
"""Examples, or rows: {"prompt", "answer"}, {"messages"} or {"text"} for language, {"image", "label"} for images."""


_LEAST_LENGTH = 2


@dataclass(frozen=True)
class Reading:
    """How rows of texts are read.

    Args:
        template: Text with ``{prompt}`` and, at its end, ``{answer}``, where there is no chat template.
        chat_template: Whether prompts are put into the tokenizer's chat template; None: if it has one.
        max_length: Largest number of tokens; longer examples are cut at the end of the answer.
    """

    template: str = DEFAULT_TEMPLATE
    chat_template: bool | None = None
    max_length: int = 512

    def __post_init__(self) -> None:
        """Check what is not checked where it is used."""
        if not isinstance(self.template, str):
            raise ConfigError(f"template is {self.template!r}. Give text with {{prompt}} and, at its end, {{answer}}.")
        if not isinstance(self.max_length, int) or isinstance(self.max_length, bool) or self.max_length < _LEAST_LENGTH:
            raise ConfigError(
                f"max_length is {self.max_length!r}. Give a whole number of tokens of at least {_LEAST_LENGTH}: one of "
                "the prompt and one of the answer."
            )


def check_model(model: Any) -> None:
    """Check that this is a model that can be unlearned.

    Raises:
        ModelError: It is something else, is compiled, or has an adapter.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"The model is {model!r}, a {type(model).__name__}, but a loaded one is needed. Load it first, with "
            "from_pretrained of AutoModelForCausalLM or AutoModelForImageClassification."
        )
    if hasattr(model, "_orig_mod"):
        raise ModelError(
            "The model is compiled (torch.compile), and a saved adapter would name layers that the model itself does "
            "not have. Give the model that was compiled, and compile the result."
        )
    if isinstance(model, PeftModel) or any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ModelError(
            "The model has an adapter already. Of the PeftModel that holds it (`result.model` of an earlier call) give "
            "`merge_and_unload()` for a further request, or `unload()` to begin again without what it has forgotten."
        )
    if not hasattr(model, "config"):
        raise ModelError(
            f"The model is a {type(model).__name__} without a config, but a causal language model or an image "
            "classifier of transformers is needed. Load one with from_pretrained."
        )


def make_task(model: Any, tokenizer: Any, image_processor: Any) -> Task:
    """The task of a model with the tokenizer or image processor that it is used with.

    Raises:
        ConfigError: Neither or both are given, one is a name, or the tokenizer has neither a pad nor an end token.
        ModelError: The model is no causal language model, or an image classifier of other channels.
    """
    if (tokenizer is None) == (image_processor is None):
        given = "neither" if tokenizer is None else "both"
        raise ConfigError(f"Give either tokenizer or image_processor, not {given}: they say what the model reads.")
    is_one = {"tokenizer": hasattr(tokenizer, "pad_token_id"), "image_processor": callable(image_processor)}
    for what, value in (("tokenizer", tokenizer), ("image_processor", image_processor)):
        if value is not None and not is_one[what]:
            raise ConfigError(f"{what} is {value!r}, but a loaded one is needed. Load it with from_pretrained.")
    if image_processor is not None:
        return ImageTask.of(model, image_processor)
    check_causal(model)
    return LanguageTask(with_pad_token(tokenizer))


def make_objective(
    given: str | Objective, target: TargetConfig | None, *, has_retain: bool, has_unseen: bool
) -> Objective:
    """The objective, with which the other arguments go together.

    Args:
        given: Name of an objective, or one that was built.
        target: Where it stops, if it stops at targets.
        has_retain: Whether there is a retain set.
        has_unseen: Whether there is a holdout set.

    Raises:
        ConfigError: It is unknown, its targets need another model, or it needs a set that is not there.
    """
    if target is not None and not isinstance(target, TargetConfig):
        raise ConfigError(f"target is {target!r}. Give TargetConfig(...), or leave it out.")
    if target is not None and target.needs_pretrained:
        raise ConfigError(
            "Targets from the pretrained model need a run with a config (pretrained_model). Use the source 'holdout' "
            "and places from the base model here."
        )
    objective = build_objective(given) if isinstance(given, str) else given
    if not isinstance(objective, Objective):
        raise ConfigError(f"objective is {given!r}. Give the name of an objective, or build_objective(name, ...).")
    if objective.uses_retain and not has_retain:
        raise ConfigError(
            "The objective has a retain term, but retain is None. Give a retain set, or an objective without that "
            "term, such as 'ascent'."
        )
    if objective.uses_unseen and not has_unseen:
        raise ConfigError(
            f"The objective's unseen_weight is {objective.unseen_weight}, but holdout is None. Give a holdout set, "
            "unseen examples of the forget set's kind, or leave unseen_weight out."
        )
    return objective


def check_surroundings(progress: Progress | None, *, resume: bool, output_dir: str | Path | None) -> None:
    """Check what the training is shown with and gone on from.

    Raises:
        ConfigError: `progress` shows nothing, `output_dir` is no path, or there is no place to resume from.
    """
    if progress is not None and not hasattr(progress, "track"):
        raise ConfigError(f"progress is {progress!r}. Give RichProgress() of this package, or leave it out.")
    if output_dir is not None and not isinstance(output_dir, str | Path):
        raise ConfigError(f"output_dir is {output_dir!r}. Give a path, or leave it out.")
    if resume and output_dir is None:
        raise ConfigError("resume is True, but output_dir is not given. Give the folder that holds the checkpoints.")


def check_unseen(objective: Objective, task: Task) -> None:
    """Refuse to keep what an image model says of unseen images: they are of the classes that it is to forget.

    Raises:
        ConfigError: The objective has an unseen term, and the task is one of images.
    """
    if objective.uses_unseen and task.name == "image":
        raise ConfigError(
            f"The objective's unseen_weight is {objective.unseen_weight}: only language models have it. Leave it out."
        )


def make_settings(given: TrainingConfig | None, *, has_retain: bool) -> TrainingConfig:
    """The settings of the training.

    Raises:
        ConfigError: They are none, or ask for validations without a retain set.
    """
    settings = TrainingConfig() if given is None else given
    if not isinstance(settings, TrainingConfig):
        raise ConfigError(f"training is {given!r}. Give TrainingConfig(steps=..., ...), or leave it out.")
    if settings.evaluate_every is not None and not has_retain:
        raise ConfigError(
            f"training.evaluate_every is {settings.evaluate_every}, but retain is None, and validations measure both "
            "sets. Give a retain set, or leave evaluate_every out."
        )
    return settings


def make_adapter(given: BoundedLoraConfig | None, seed: int) -> BoundedLoraConfig:
    """The adapter that is attached: a copy, whose start is as random as the seed says.

    Args:
        given: As the user gave it; None for the default.
        seed: Of the training; takes the place of an `init_seed` that is None.

    Raises:
        ConfigError: It is no bounded adapter, or would train other weights too, of which the bound says nothing.
    """
    config = BoundedLoraConfig() if given is None else given
    if not isinstance(config, BoundedLoraConfig):
        raise ConfigError(
            f"adapter is a {type(config).__name__}. Give BoundedLoraConfig(...); bound='identity' is plain LoRA."
        )
    if config.modules_to_save:
        raise ConfigError(
            f"adapter.modules_to_save is {sorted(config.modules_to_save)}: these modules would be trained without a "
            "bound, and the certificate would say nothing about them. Leave it out, or adapt them by target_modules."
        )
    copied = replace(config, init_seed=seed if config.init_seed is None else config.init_seed)
    copied.inference_mode = False  # which the config of a saved adapter says
    return copied


def make_sets(given: Mapping[str, Data | None], model: Any, task: Task, reading: Reading) -> dict[str, ExampleSet[Any]]:
    """Example sets by name, without those that are None; they fit the model, and no two share an example.

    Args:
        given: Rows or examples by name.
        model: What will read them.
        task: Its task.
        reading: How rows of texts are read.

    Raises:
        DataError: A set is empty or malformed, a label is no class of the model, or two sets overlap.
        ConfigError: An example is too long for the model, or has tokens that it does not know.
    """
    sets = {
        name: _examples(name, data, task, reading)
        for name, data in given.items()
        if data is not None or name == "forget"
    }
    for first, second in combinations(sets.values(), 2):
        check_no_overlap(first, second)
    if isinstance(task, LanguageTask):
        texts = all_answers(sets.values())
        check_positions(model, texts, setting="max_length")
        check_tokens(model, texts, pad_token_id=int(task.tokenizer.pad_token_id))
    else:
        check_labels(model, sets.values())
    return sets


def _examples(name: str, data: Data | None, task: Task, reading: Reading) -> ExampleSet[Any]:
    if isinstance(data, ExampleSet):
        return data
    is_table = isinstance(data, Iterable) and not isinstance(data, str | Mapping)
    rows: list[Any] = list(data) if is_table and data is not None else []
    strange = [type(row).__name__ for row in rows if not isinstance(row, Mapping)]
    if strange or not is_table:
        found = f"a {type(data).__name__} of {strange[0]}" if strange else f"a {type(data).__name__}"
        raise DataError(
            f"The {name} set is {found}. Give a list of rows, each a dict: {{'prompt': ..., 'answer': ...}}, "
            "{'messages': ...} or {'text': ...} for language, {'image': ..., 'label': ...} for images."
        )
    table = Rows(rows, "given in memory")
    if not isinstance(task, LanguageTask):
        return image_examples(table, process_with(task), name=name)
    return language_examples(
        table,
        task.tokenizer,
        name=name,
        columns=LanguageColumns(template=reading.template),
        max_length=reading.max_length,
        chat_template=reading.chat_template,
    )
