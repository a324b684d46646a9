"""Examples and example sets: what the models are trained on and measured with, identified by content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from stable_forgetting.errors import DataError


class Example(Protocol):
    """What all examples have in common."""

    @property
    def key(self) -> str:
        """Hash of the content that makes two examples the same, used to find overlaps."""
        ...

    @property
    def identity(self) -> str:
        """Hash of everything that a model is taught by the example."""
        ...

    @property
    def measured_identity(self) -> str:
        """Hash of everything that a model is measured with: the example and its alternative answers."""
        ...

    @property
    def num_labels(self) -> int:
        """Number of label positions: answer tokens and end token, or one for an image."""
        ...


@dataclass(frozen=True)
class LanguageExample:
    """A prompt and its answer, as text and as tokens.

    Args:
        prompt: Question, or an empty string for plain text.
        answer: Answer, or the whole text.
        input_ids: Prompt tokens, answer tokens and the end token.
        num_prompt_tokens: Label positions are ``input_ids[num_prompt_tokens:]``; at least 1, because the first token
            has nothing before it to be predicted from.
        end_token: The token that ends the answer, also where the example was cut before it; None for plain text, which
            does not say where it ends.
        metadata: The other columns of the row.
        paraphrased: The right answer to the same prompt in other words; None if there is none.
        perturbed: Wrong answers to the same prompt, of the same form.
    """

    prompt: str
    answer: str
    input_ids: tuple[int, ...]
    num_prompt_tokens: int
    end_token: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, compare=False)
    paraphrased: LanguageExample | None = None
    perturbed: tuple[LanguageExample, ...] = ()

    def __post_init__(self) -> None:
        """Check that there is a label, and something before it."""
        if not 1 <= self.num_prompt_tokens < len(self.input_ids):
            raise DataError(
                f"An example has {len(self.input_ids)} tokens, of which {self.num_prompt_tokens} belong to the prompt "
                f"({self.prompt[:60]!r}). There has to be at least one of each: a label, and a token that it follows."
            )

    @property
    def key(self) -> str:
        """Hash of prompt and answer without surrounding white space."""
        return hashlib.sha256(f"{self.prompt.strip()}\x1f{self.answer.strip()}".encode()).hexdigest()

    @property
    def identity(self) -> str:
        """Hash of the tokens and of where the answer begins: templates and tokenizers change them, the text stays."""
        return hashlib.sha256(f"{self.key} {self.num_prompt_tokens} {self.input_ids}".encode()).hexdigest()

    @property
    def has_end(self) -> bool:
        """Whether its last token ends the answer: not where it was cut, nor in plain text."""
        return self.end_token is not None and self.input_ids[-1] == self.end_token

    @property
    def input_sha256(self) -> str:
        """Hash of the tokens alone: what a model reads."""
        return hashlib.sha256(f"{self.input_ids}".encode()).hexdigest()

    @property
    def alternatives(self) -> tuple[LanguageExample, ...]:
        """The paraphrased answer, if there is one, and the wrong answers: measured, never taught."""
        return (*(() if self.paraphrased is None else (self.paraphrased,)), *self.perturbed)

    @property
    def measured_identity(self) -> str:
        """The identity itself where there are no alternative answers."""
        if not self.alternatives:
            return self.identity
        paraphrased = None if self.paraphrased is None else self.paraphrased.identity
        perturbed = [answer.identity for answer in self.perturbed]
        return hashlib.sha256(f"{self.identity} {paraphrased} {perturbed}".encode()).hexdigest()

    @property
    def num_labels(self) -> int:
        """Number of answer tokens and end token."""
        return len(self.input_ids) - self.num_prompt_tokens


@dataclass(frozen=True, eq=False)
class ImageExample:
    """An image and its class.

    Args:
        pixels: The image as it came, uint8, height × width × 3.
        label: Class index, from 0.
        pixel_values: The image as the model takes it, float32, channels × height × width.
        metadata: The other columns of the row.
    """

    pixels: npt.NDArray[np.uint8]
    label: int
    pixel_values: torch.Tensor
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """Hash of the pixels and their shape."""
        return pixels_sha256(self.pixels)

    @cached_property
    def values_sha256(self) -> str:
        """Hash of the pixel values."""
        return hashlib.sha256(np.ascontiguousarray(self.pixel_values.numpy()).data).hexdigest()

    @property
    def identity(self) -> str:
        """Hash of the pixel values and the label: other processing or another label teaches something else."""
        return f"{self.key}:{self.values_sha256}:{self.label}"

    @property
    def measured_identity(self) -> str:
        """The identity: an image has no alternatives."""
        return self.identity

    @property
    def num_labels(self) -> int:
        """One: an image has one label."""
        return 1


class ImageOnDemand(ImageExample):
    """An image that is not held in memory: its pixels and its pixel values are had anew whenever they are looked at.

    Args:
        read: Gives the image as it came.
        read_values: Gives the image as the model takes it.
        label: Class index, from 0.
        key: Hash of the pixels.
        metadata: The other columns of the row.
    """

    def __init__(
        self,
        read: Callable[[], npt.NDArray[np.uint8]],
        read_values: Callable[[], torch.Tensor],
        label: int,
        key: str,
        metadata: Mapping[str, Any],
    ) -> None:
        # The fields of a frozen class are set past its guard, as its own __init__ does.
        self.__dict__.update(_read=read, _read_values=read_values, label=label, key=key, metadata=metadata)

    @property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """The image as it came."""
        return self.__dict__["_read"]()  # type: ignore[no-any-return]

    @property
    def pixel_values(self) -> torch.Tensor:
        """The image as the model takes it."""
        return self.__dict__["_read_values"]()  # type: ignore[no-any-return]


def pixels_sha256(pixels: npt.NDArray[np.uint8]) -> str:
    """Hash of an image's pixels and of their shape."""
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()


E = TypeVar("E", bound=Example)
E_co = TypeVar("E_co", bound=Example, covariant=True)


@dataclass(frozen=True, eq=False)
class ExampleSet(Generic[E_co]):
    """A named, ordered and never empty collection of examples.

    Args:
        name: forget, retain, holdout, test ...
        examples: The examples in order.
        source: Where they came from, in words.

    Raises:
        DataError: There are no examples.
    """

    name: str
    examples: Sequence[E_co]
    source: str = "given in memory"

    def __post_init__(self) -> None:
        if not self.examples:
            raise DataError(f"The {self.name} set is empty ({self.source}). Give at least one example.")

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> E_co:
        return self.examples[index]

    def __iter__(self) -> Iterator[E_co]:
        return iter(self.examples)

    @property
    def sha256(self) -> str:
        """Hash of all examples in order, alternative answers included."""
        return _hash_of(example.measured_identity for example in self.examples)

    @property
    def taught_sha256(self) -> str:
        """Hash of what a model is taught by the examples in order, whatever they are measured with."""
        return _hash_of(example.identity for example in self.examples)


def _hash_of(identities: Iterable[str]) -> str:
    return hashlib.sha256("\x1f".join(identities).encode()).hexdigest()
