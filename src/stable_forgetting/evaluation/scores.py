"""What a model gave for each example: enough to compute every metric again without the model."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
from torch import nn

from stable_forgetting.data.examples import ExampleSet, LanguageExample
from stable_forgetting.errors import DataError, unknown_name
from stable_forgetting.evaluation.alternatives import score_answers
from stable_forgetting.evaluation.generation import GreedyDecoder
from stable_forgetting.evaluation.gradient import gradient_norms
from stable_forgetting.evaluation.images import score_images
from stable_forgetting.evaluation.likelihood import Floats, Ints, LikelihoodScores, Progress
from stable_forgetting.evaluation.likelihood_scores import as_numbers
from stable_forgetting.models.tasks import LanguageTask, Task
from stable_forgetting.records import ModelRole

FORMAT = 3
"""Number of the stored form; it grows whenever an old reader would misunderstand a new file."""

TaskName = Literal["language", "image"]

SET_NAMES: dict[TaskName, tuple[str, ...]] = {
    "language": ("forget", "retain", "holdout", "test", "forgotten_before", "real_authors", "world_facts"),
    "image": ("forget", "retain", "holdout", "forget_test", "retain_test", "forgotten_before"),
}
"""Sets that metrics know, by task. Language: `test` is plain text for perplexity."""

ATTACKED_SETS = ("forget", "holdout")
"""Sets whose examples membership attacks tell apart."""

_LIKELIHOODS = ("likelihood", "paraphrased", "perturbed")
_TEXTS = ("answers", "references")
_NUMBERS: dict[str, type[np.generic]] = {
    "num_perturbed": np.int64,
    "compressed_bytes": np.int64,
    "gradient_norm": np.float64,
    "probe_predicted": np.int64,
}


@dataclass(frozen=True, eq=False)
class SetScores:
    """One set under one model.

    Args:
        sha256: Hash of the example set, so that values of different examples are never compared.
        likelihood: Columns per example.
        answers: Greedy answers; None if there are none.
        references: Right answers beside them.
        paraphrased: Likelihood of each example's paraphrased answer, N rows; None unless every example has one.
        perturbed: Likelihood of the wrong answers, example after example, sum of `num_perturbed` rows; None unless
            every example has at least one.
        num_perturbed: (N,), wrong answers of each example; None where `perturbed` is.
        compressed_bytes: (N,), length of the answer's text in UTF-8 after zlib; None where no attack needs it.
        gradient_norm: (N,), 2-norm of the gradient of the example's mean NLL over all weights of the model as it is
            measured (adapters merged); None unless asked for.
        probe_predicted: (N,), class that a linear probe on the model's features predicts; None without a probe.
    """

    sha256: str
    likelihood: LikelihoodScores
    answers: tuple[str, ...] | None = None
    references: tuple[str, ...] | None = None
    paraphrased: LikelihoodScores | None = None
    perturbed: LikelihoodScores | None = None
    num_perturbed: Ints | None = None
    compressed_bytes: Ints | None = None
    gradient_norm: Floats | None = None
    probe_predicted: Ints | None = None

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
        if data["task"] not in tuple(SET_NAMES) or data["role"] not in get_args(ModelRole):
            raise DataError(
                f"The per-example values have task {data['task']!r} and role {data['role']!r}. Score the model again."
            )
        if not isinstance(data["sets"], Mapping) or not isinstance(data["source"], str):
            raise DataError(
                "The per-example values have no sets by name, or no source in words. Score the model again."
            )
        sets = {name: _set_from_json(name, scores) for name, scores in data["sets"].items()}
        return cls(task=data["task"], role=data["role"], source=data["source"], sets=sets)


def _set_to_json(scores: SetScores) -> dict[str, Any]:
    found: dict[str, Any] = {"sha256": scores.sha256}
    for name in _LIKELIHOODS:
        likelihood = getattr(scores, name)
        found[name] = None if likelihood is None else likelihood.to_json()
    for name in _TEXTS:
        texts = getattr(scores, name)
        found[name] = None if texts is None else list(texts)
    for name in _NUMBERS:
        numbers = getattr(scores, name)
        found[name] = None if numbers is None else numbers.tolist()
    return found


def _set_from_json(name: str, data: Any) -> SetScores:
    expected = {"sha256", *_LIKELIHOODS, *_TEXTS, *_NUMBERS}
    if not isinstance(data, Mapping) or set(data) != expected:
        held = sorted(data) if isinstance(data, Mapping) else repr(data)
        raise DataError(f"The values of the {name} set hold {held}, not {sorted(expected)}. Score again.")
    if not isinstance(data["sha256"], str) or data["likelihood"] is None:
        raise DataError(f"The values of the {name} set have no hash or no likelihood. Score the model again.")
    present = {key: values for key, values in data.items() if values is not None}
    found: dict[str, Any] = {"sha256": data["sha256"]}
    found |= {key: LikelihoodScores.from_json(present[key]) for key in _LIKELIHOODS if key in present}
    found |= {key: _texts(key, present[key]) for key in _TEXTS if key in present}
    found |= {key: as_numbers(key, present[key], dtype) for key, dtype in _NUMBERS.items() if key in present}
    lengths = {len(found[key]) for key in ("likelihood", "paraphrased", *_TEXTS, *_NUMBERS) if key in found}
    num_perturbed = int(found["num_perturbed"].sum()) if "num_perturbed" in found else 0
    if len(lengths) != 1 or len(found.get("perturbed", ())) != num_perturbed:
        raise DataError(f"The columns of the {name} set have the lengths {sorted(lengths)}. Score the model again.")
    return SetScores(**found)


def _texts(name: str, values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise DataError(f"The column '{name}' of the per-example values is no list of texts. Score the model again.")
    return tuple(values)


@dataclass(frozen=True)
class ScoringOptions:
    """How models are measured.

    Args:
        batch_size: Examples per forward pass.
        generate: Whether language models answer the prompts; of no meaning for images.
        max_new_tokens: Longest answer.
        generate_sets: Sets whose prompts are answered.
        gradient_norm: Whether to measure the gradients that a membership attack looks at: one backward pass per
            example.
        linear_probe: Whether a linear probe is trained on the features of an image classifier and tested.
    """

    batch_size: int
    generate: bool
    max_new_tokens: int
    generate_sets: tuple[str, ...] = ("forget", "retain", "real_authors", "world_facts")
    gradient_norm: bool = False
    linear_probe: bool = True


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
    known: Mapping[str, SetScores] | None = None,
    keep: Callable[[ModelScores], None] = lambda _: None,
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
        known: Language: values of the same model that were kept before; sets of the same examples are not measured
            again.
        keep: Language: called with what there is after each set that was measured.

    Raises:
        DataError: A set has a name that no metric knows.
    """
    for name in sets:
        if name not in SET_NAMES[task.name]:
            raise DataError(unknown_name("example set", name, SET_NAMES[task.name]))

    def tell(what: str) -> Progress | None:
        return None if progress is None else partial(progress, f"{role} model: {what}")

    if isinstance(task, LanguageTask):
        found: dict[str, SetScores] = {}
        for name, part in sets.items():
            if known is not None and name in known and known[name].sha256 == part.sha256:
                found[name] = known[name]
                continue
            found[name] = _score_language_set(model, task, name, part, options, tell)
            keep(ModelScores(task=task.name, role=role, source=source, sets=found))
    else:
        size, probe = options.batch_size, options.linear_probe
        images = score_images(model, task, sets, batch_size=size, linear_probe=probe, tell=tell)
        found = {
            name: SetScores(sets[name].sha256, scores.likelihood, probe_predicted=scores.probe_predicted)
            for name, scores in images.items()
        }
    return ModelScores(task=task.name, role=role, source=source, sets=found)


def _score_language_set(
    model: nn.Module,
    task: LanguageTask,
    name: str,
    example_set: ExampleSet[LanguageExample],
    options: ScoringOptions,
    tell: Callable[[str], Progress | None],
) -> SetScores:
    size, is_attacked = options.batch_size, name in ATTACKED_SETS
    decoder = None
    if options.generate and name in options.generate_sets and _asks(example_set):
        decoder = GreedyDecoder(model, task, example_set, max_new_tokens=options.max_new_tokens, batch_size=size)
    scores = score_answers(
        model,
        task,
        example_set,
        batch_size=size,
        with_tokens=is_attacked,
        decoder=decoder,
        progress=tell(f"likelihood of {name}"),
    )
    columns: dict[str, Any] = {}
    if decoder is not None:
        # Places count in another way in answers than in likelihoods where tokens are hidden.
        num_known = None if task.hides_pad_tokens else scores.num_leading_correct.tolist()
        answers = decoder.answers(num_known, progress=tell(f"answers of {name}"))
        columns = {"answers": tuple(answers), "references": tuple(example.answer for example in example_set)}
    if is_attacked:
        sizes = [len(zlib.compress(example.answer.encode())) for example in example_set]
        columns["compressed_bytes"] = np.array(sizes, dtype=np.int64)
    if is_attacked and options.gradient_norm:
        columns["gradient_norm"] = gradient_norms(model, task, example_set, progress=tell(f"gradients of {name}"))
    return SetScores(
        sha256=example_set.sha256,
        likelihood=scores.likelihood,
        paraphrased=scores.paraphrased,
        perturbed=scores.perturbed,
        num_perturbed=scores.num_perturbed,
        **columns,
    )
