"""What a model gave for each example: enough to compute every metric again without the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

from torch import nn

from stable_forgetting.data.examples import ExampleSet
from stable_forgetting.errors import DataError, unknown_name
from stable_forgetting.evaluation.generation import greedy_answers
from stable_forgetting.evaluation.likelihood import LikelihoodScores, score_examples
from stable_forgetting.models.tasks import LanguageTask, Task
from stable_forgetting.records import ModelRole

FORMAT = 1
"""Number of the stored form; it grows whenever an old reader would misunderstand a new file."""

TaskName = Literal["language", "image"]

SET_NAMES: dict[TaskName, tuple[str, ...]] = {
    "language": ("forget", "retain", "holdout", "test"),
    "image": ("forget", "retain", "holdout", "forget_test", "retain_test"),
}
"""Sets that metrics know, by task. Language: `test` is plain text for perplexity."""


@dataclass(frozen=True, eq=False)
class SetScores:
    """One set under one model.

    Args:
        sha256: Hash of the example set, so that values of different examples are never compared.
        likelihood: Columns per example.
        answers: Greedy answers; None if there are none.
        references: Right answers beside them.
    """

    sha256: str
    likelihood: LikelihoodScores
    answers: tuple[str, ...] | None = None
    references: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.likelihood)


@dataclass(frozen=True, eq=False)
class ModelScores:
    """All sets under one model.

    Args:
        task: Kind of the model.
        role: Base, unlearned or retain model.
        source: Where the model came from, in words.
        sets: Values by set name.
    """

    task: TaskName
    role: ModelRole
    source: str
    sets: Mapping[str, SetScores]

    def to_json(self) -> dict[str, Any]:
        """Plain lists, numbers and texts for `json.dump`; `from_json` gives back every bit."""
        return {
            "format": FORMAT,
            "task": self.task,
            "role": self.role,
            "source": self.source,
            "sets": {name: _set_to_json(scores) for name, scores in self.sets.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelScores:
        """Read what `to_json` wrote.

        Raises:
            DataError: The data are of another format or damaged.
        """
        if data.get("format") != FORMAT:
            raise DataError(
                f"The per-example values have format {data.get('format')!r}; this version reads {FORMAT}. "
                "Score the model again."
            )
        missing = {"task", "role", "source", "sets"} - set(data)
        if missing:
            raise DataError(f"The per-example values lack {sorted(missing)}. Score the model again.")
        if data["task"] not in SET_NAMES or data["role"] not in get_args(ModelRole):
            raise DataError(
                f"The per-example values have task {data['task']!r} and role {data['role']!r}. Score the model again."
            )
        sets = {name: _set_from_json(name, scores) for name, scores in data["sets"].items()}
        return cls(task=data["task"], role=data["role"], source=data["source"], sets=sets)


def _set_to_json(scores: SetScores) -> dict[str, Any]:
    return {
        "sha256": scores.sha256,
        "likelihood": scores.likelihood.to_json(),
        "answers": None if scores.answers is None else list(scores.answers),
        "references": None if scores.references is None else list(scores.references),
    }


def _set_from_json(name: str, data: Mapping[str, Any]) -> SetScores:
    expected = {"sha256", "likelihood", "answers", "references"}
    if set(data) != expected:
        raise DataError(f"The values of the {name} set hold {sorted(data)}, not {sorted(expected)}. Score again.")
    likelihood = LikelihoodScores.from_json(data["likelihood"])
    texts = {key: None if data[key] is None else tuple(data[key]) for key in ("answers", "references")}
    lengths = {len(values) for values in texts.values() if values is not None} | {len(likelihood)}
    if len(lengths) != 1:
        raise DataError(f"The columns of the {name} set have the lengths {sorted(lengths)}. Score the model again.")
    return SetScores(sha256=data["sha256"], likelihood=likelihood, **texts)


@dataclass(frozen=True)
class ScoringOptions:
    """How models are measured.

    Args:
        batch_size: Examples per forward pass.
        generate: Whether language models answer the prompts; of no meaning for images.
        max_new_tokens: Longest answer.
        generate_sets: Sets whose prompts are answered.
    """

    batch_size: int
    generate: bool
    max_new_tokens: int
    generate_sets: tuple[str, ...] = ("forget", "retain", "holdout")


def _asks(example_set: ExampleSet[Any]) -> bool:
    """Whether the examples are questions with answers: plain text asks nothing."""
    return all(example.end_token is not None for example in example_set)


def score_model(
    model: nn.Module,
    task: Task,
    sets: Mapping[str, ExampleSet[Any]],
    *,
    role: ModelRole,
    source: str,
    options: ScoringOptions,
    progress: Callable[[str, int, int], None] | None = None,
) -> ModelScores:
    """Measure a model on every example of the sets.

    Args:
        model: Model of the task.
        task: Language or image task.
        sets: Example sets by their names in `SET_NAMES`.
        role: Which of the three models it is.
        source: Where it came from, in words.
        options: Batch size and answers.
        progress: Told after each batch: what is done, number of examples done, number of all.

    Raises:
        DataError: A set has a name that no metric knows.
    """
    for name in sets:
        if name not in SET_NAMES[task.name]:
            raise DataError(unknown_name("example set", name, SET_NAMES[task.name]))
    found = {}
    for name, example_set in sets.items():
        likelihood = score_examples(
            model,
            task,
            example_set,
            batch_size=options.batch_size,
            progress=None if progress is None else partial(progress, f"{role} model: likelihood of {name}"),
        )
        texts = {}
        if options.generate and isinstance(task, LanguageTask) and name in options.generate_sets and _asks(example_set):
            answers = greedy_answers(
                model,
                task,
                example_set,
                max_new_tokens=options.max_new_tokens,
                batch_size=options.batch_size,
                progress=None if progress is None else partial(progress, f"{role} model: answers of {name}"),
            )
            references = tuple(example.answer for example in example_set)
            texts = {"answers": tuple(answers), "references": references}
        found[name] = SetScores(sha256=example_set.sha256, likelihood=likelihood, **texts)
    return ModelScores(task=task.name, role=role, source=source, sets=found)
