"""The log of a retain model in place of the model itself, and whether it is of the same questions."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from stable_forgetting.config import RunConfig
from stable_forgetting.data.examples import ExampleSet
from stable_forgetting.data.language import generation_prompt_ids
from stable_forgetting.evaluation import check_same_examples, described
from stable_forgetting.evaluation.open_unlearning import read_log
from stable_forgetting.evaluation.values import ModelValues
from stable_forgetting.models.tasks import LanguageTask, Task
from stable_forgetting.runs.scoring import measured_sets
from stable_forgetting.runs.sets import Sets

logger = logging.getLogger(__name__)


def log_sha256(path: Path) -> str:
    """Hash of a log's file, by which a run knows what it was compared with."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def logged_retain_values(config: RunConfig) -> ModelValues | None:
    """What a log says about a retain model; None if the config names no log.

    Raises:
        DataError: The file is missing or no such log.
    """
    return None if config.retain_log is None else read_log(Path(config.retain_log).expanduser(), "retain")


def check_retain_log(config: RunConfig, sets: Sets, task: Task) -> None:
    """Check that the log is of the sets that will be measured, and warn if its model read other prompts.

    Raises:
        DataError: The log is of other examples.
    """
    logged = logged_retain_values(config)
    if logged is None or not isinstance(task, LanguageTask):
        return
    measured = measured_sets(sets, config.evaluation).by_name
    check_same_examples({name: described(examples) for name, examples in measured.items()}, logged.sets)
    for name, values in logged.sets.items():
        if values.prompts is not None and name in measured:
            _compare_prompts(values.prompts, measured[name], task.tokenizer)


def _compare_prompts(logged: tuple[str, ...], examples: ExampleSet[Any], tokenizer: Any) -> None:
    ours = [tokenizer.decode(generation_prompt_ids(example), skip_special_tokens=True) for example in examples]
    other = [place for place, pair in enumerate(zip(logged, ours, strict=True)) if _words(pair[0]) != _words(pair[1])]
    if other:
        logger.warning(
            "The retain log's prompts differ from this run's in %d of %d %s examples, so its values are of another "
            "situation. The log has %r, this run %r. See data.chat_template, data.system_prompt and data.date.",
            len(other),
            len(ours),
            examples.name,
            logged[other[0]],
            ours[other[0]],
        )


def _words(text: str) -> list[str]:
    return text.split()
