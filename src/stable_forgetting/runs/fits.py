"""Whether examples fit a model: its positions, its embeddings and its classes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from stable_forgetting.data.examples import ExampleSet, ImageExample, LanguageExample
from stable_forgetting.errors import ConfigError, DataError
from stable_forgetting.models.reading import num_positions


def all_answers(sets: Iterable[ExampleSet[Any]]) -> list[LanguageExample]:
    """Every text of some sets, alternative answers included; none of images."""
    found = [example for part in sets for example in part if isinstance(example, LanguageExample)]
    return [answer for example in found for answer in (example, *example.alternatives)]


def check_positions(model: Any, texts: Iterable[LanguageExample], *, setting: str) -> None:
    """Check that the longest text fits into the model's positions, if their number is known.

    Args:
        model: A language model, with or without its weights.
        texts: What it will read.
        setting: What limits the length, for the message.

    Raises:
        ConfigError: It does not.
    """
    positions = num_positions(model.config)
    longest = max((len(text.input_ids) for text in texts), default=0)
    if positions is not None and longest > positions:
        raise ConfigError(
            f"The longest example has {longest} tokens, but the model has {positions} positions. "
            f"Set {setting} to at most {positions}."
        )


def check_tokens(model: Any, texts: Iterable[LanguageExample], *, pad_token_id: int) -> None:
    """Check that the model has an embedding for every token that it will read.

    Args:
        model: A language model.
        texts: What it will read.
        pad_token_id: Of the tokenizer.

    Raises:
        ConfigError: It has fewer embeddings.
    """
    rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    highest = max((max(text.input_ids) for text in texts), default=-1)
    if rows is None or max(highest, pad_token_id) < rows:
        return
    what = f"the token {highest}" if highest >= rows else f"the pad token {pad_token_id}"
    raise ConfigError(
        f"The tokenizer gives {what}, but the model has {rows} embeddings, numbered from 0. Give the tokenizer that "
        "belongs to the model, or call model.resize_token_embeddings(len(tokenizer)) after tokens were added."
    )


def check_labels(model: Any, sets: Iterable[ExampleSet[Any]]) -> None:
    """Check that the classifier has a class for the label of every image.

    Args:
        model: An image classifier.
        sets: What it will see.

    Raises:
        DataError: A label is out of range.
    """
    classes = int(model.config.num_labels)
    for examples in sets:
        for index, example in enumerate(examples):
            if isinstance(example, ImageExample) and not 0 <= example.label < classes:
                raise DataError(
                    f"The label of row {index} of the {examples.name} set is {example.label}, but the model has "
                    f"{classes} classes, numbered from 0. Correct the label, or give a model with more classes."
                )
