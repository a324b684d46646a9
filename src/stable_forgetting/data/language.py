"""From rows to language examples: text, tokens, and the boundary between prompt and answer.

The boundary is found in the tokens of the full text by their character offsets. Tokenising the prompt alone and
counting its tokens can shift it, because a tokenizer may join the end of the prompt and the start of the answer.

A token with at least one character of the answer belongs to the answer, so a token that lies across the boundary is a
label, and the prompt tokens never give away a part of the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from stable_forgetting.data.annotation import (
    DEFAULT_TEMPLATE,
    AnnotatedText,
    Annotator,
    LanguageColumns,
    Span,
    annotator,
)
from stable_forgetting.data.cells import is_blank, is_list_as_text, is_missing, plain_value
from stable_forgetting.data.examples import ExampleSet, LanguageExample
from stable_forgetting.data.rows import Row, Rows
from stable_forgetting.errors import DataError

__all__ = [
    "DEFAULT_TEMPLATE",
    "LanguageColumns",
    "answer_tokens",
    "generation_prompt_ids",
    "language_examples",
]


def language_examples(
    rows: Rows,
    tokenizer: Any,
    *,
    name: str,
    columns: LanguageColumns | None = None,
    max_length: int = 512,
    chat_template: bool | None = None,
) -> ExampleSet[LanguageExample]:
    """Language examples of all rows.

    Labels are the answer's tokens and one end token: with a chat template the special token that ends the turn, else
    the tokenizer's ``eos_token``. Plain text has no end token, because nothing says that it ends there, and all of its
    tokens but the first are labels. Special tokens that the tokenizer puts first, such as ``<s>``, are kept.

    Args:
        rows: The table.
        tokenizer: A fast tokenizer, one that knows the character offsets of its tokens.
        name: Name of the set.
        columns: Which columns are read; None for ``prompt``, ``answer``, ``text``, ``messages``.
        max_length: Largest number of tokens; longer examples are cut at the end of the answer.
        chat_template: Whether prompts are put into the tokenizer's chat template; None: if it has one.

    Returns:
        One example per row, in order, with its alternative answers. The other columns are in the examples' metadata.
        How many answers were cut is said in the set's source.

    Raises:
        DataError: A column is missing, an answer is empty or cut off entirely, messages are malformed, the tokenizer
            has no offsets, end token or chat template although it needs them, there is a template beside a chat
            template, or there are no rows.
    """
    if not len(rows):
        return ExampleSet(name, [], rows.source)
    columns = columns or LanguageColumns()
    _require_fast(tokenizer)
    use_template = _uses_template(tokenizer, columns, chat_template)
    reader = annotator(rows, tokenizer, columns, use_template=use_template, name=name)
    places = [f"row {number} of the {name} set" for number in range(len(rows))]
    texts = [_answers(row, reader, columns, place) for row, place in zip(rows, places, strict=True)]
    tokens = _tokenize([text for answers in texts for text in answers], tokenizer)
    examples, num_cut = [], 0
    for row, answers, place in zip(rows, texts, places, strict=True):
        found = []
        for text in answers:
            ids, start, end = _labelled(text, *next(tokens), tokenizer, max_length, place)
            found.append(LanguageExample(text.prompt, text.answer, tuple(ids[:max_length]), start, end))
            num_cut += len(ids) > max_length
        metadata = {column: value for column, value in row.items() if column not in reader.used}
        has_paraphrase = alternative_answers(row, columns, place)[0] is not None
        examples.append(_with_alternatives(found, metadata, has_paraphrase=has_paraphrase))
    cut = f", {num_cut} of {sum(map(len, texts))} answers cut at {max_length} tokens" if num_cut else ""
    return ExampleSet(name, examples, f"{rows.source}{cut}")


def generation_prompt_ids(example: LanguageExample) -> tuple[int, ...]:
    """The tokens before the answer, from which a model generates its own: exactly those it was trained after."""
    return example.input_ids[: example.num_prompt_tokens]


def answer_tokens(offsets: Sequence[Span], span: Span) -> tuple[int, int] | None:
    """First token of the answer and the one after its last: the tokens with a character in the answer's span.

    Args:
        offsets: First character of each token and the one after its last; special tokens have an empty span.
        span: The same of the answer.

    Returns:
        The two positions, or None if no token has a character of the answer.

    Example:
        >>> answer_tokens([(0, 0), (0, 4), (4, 7), (7, 9)], (5, 9))
        (2, 4)
    """
    inside = [place for place, (start, end) in enumerate(offsets) if max(start, span[0]) < min(end, span[1])]
    return (inside[0], inside[-1] + 1) if inside else None


def _uses_template(tokenizer: Any, columns: LanguageColumns, chat_template: bool | None) -> bool:
    """Whether prompts are put into the chat template; what was given for the other case is refused."""
    if chat_template and not tokenizer.chat_template:
        raise DataError(
            "The tokenizer has no chat template, but chat_template is true. Set it to false or leave it out."
        )
    uses = bool(tokenizer.chat_template) if chat_template is None else chat_template
    if columns.system_prompt is not None and not uses:
        raise DataError(
            f"The system prompt {columns.system_prompt!r} needs a chat template, but there is none or chat_template is "
            "false. Leave system_prompt out."
        )
    if columns.template != DEFAULT_TEMPLATE and uses:
        raise DataError(
            f"The template {columns.template!r} is not used where prompts are put into the tokenizer's chat template. "
            "Set chat_template to false, or leave template out."
        )
    return uses


def _answers(row: Row, reader: Annotator, columns: LanguageColumns, place: str) -> list[AnnotatedText]:
    """The answer of a row, then its paraphrased answer, if there is one, then its wrong answers."""
    found = [_annotated(row, reader, place)]
    if reader.with_answer is None:
        return found
    paraphrased, perturbed = alternative_answers(row, columns, place)
    if paraphrased is not None:
        found.append(_annotated(reader.with_answer(row, paraphrased), reader, f"{place} ({columns.paraphrased})"))
    return found + [
        _annotated(reader.with_answer(row, answer), reader, f"{place} ({columns.perturbed})") for answer in perturbed
    ]


def alternative_answers(row: Row, columns: LanguageColumns, place: str) -> tuple[Any, list[Any]]:
    """The paraphrased answer of a row, None if it has none, and its wrong answers, possibly none.

    An empty cell is none: tables as text have no other word for it.

    Raises:
        DataError: The wrong answers are the text of a list, which would be read as a single one.
    """
    values = (plain_value(row.get(name)) for name in (columns.paraphrased, columns.perturbed))
    right, wrong = (None if is_missing(value) or is_blank(value) else value for value in values)
    if is_list_as_text(wrong):
        raise DataError(
            f"Column '{columns.perturbed}' in {place} holds a list that was written as text, {str(wrong)[:60]!r}: it "
            "would be read as one wrong answer. Give the rows as JSON or Parquet, which have lists."
        )
    if wrong is None:
        return right, []
    return right, list(wrong) if isinstance(wrong, list | tuple) else [wrong]


def _annotated(row: Row, reader: Annotator, place: str) -> AnnotatedText:
    found = reader.annotate(row, place)
    try:
        found.text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"The text in {place} has {error.object[error.start]!r}, half of a character, as JSON can write it. Write "
            "the whole character, or leave it out."
        ) from error
    return found


def _with_alternatives(
    found: list[LanguageExample], metadata: dict[str, Any], *, has_paraphrase: bool
) -> LanguageExample:
    answer, *others = found
    paraphrased = others.pop(0) if has_paraphrase and others else None
    return replace(answer, metadata=metadata, paraphrased=paraphrased, perturbed=tuple(others))


def _require_fast(tokenizer: Any) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(
            f"The tokenizer {type(tokenizer).__name__} is a slow one: it does not know the character offsets of its "
            "tokens, which the boundary of the answer needs. Load it with use_fast=True, from a tokenizer.json."
        )


def _tokenize(texts: Sequence[AnnotatedText], tokenizer: Any) -> Iterator[tuple[list[int], list[Span]]]:
    encoded = tokenizer(
        [text.text for text in texts],
        add_special_tokens=not texts[0].templated,
        return_offsets_mapping=True,
        return_attention_mask=False,
    )
    yield from zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)


def _labelled(
    text: AnnotatedText, ids: list[int], offsets: list[Span], tokenizer: Any, max_length: int, place: str
) -> tuple[list[int], int, int | None]:
    """All tokens up to the end token; the number before the answer; the end token."""
    found = answer_tokens(offsets, text.span)
    if found is None:
        raise DataError(f"The answer in {place} has no token of its own. Give it a longer text.")
    start, end = max(found[0], 1), found[1]
    whole = ids[:end]
    end_id = _end_token(text, ids[end:], tokenizer) if text.add_end else None
    if end_id is not None and whole[-1] != end_id:
        whole = [*whole, end_id]
    if start >= len(whole):
        raise DataError(f"The text in {place} has a single token, which nothing predicts. Give it a longer text.")
    if start >= max_length:
        raise DataError(
            f"The prompt in {place} has {start} tokens, so max_length {max_length} leaves nothing of the answer. "
            "Raise max_length or shorten the prompt."
        )
    return whole, start, end_id


def _end_token(text: AnnotatedText, following: list[int], tokenizer: Any) -> int:
    if text.templated:
        special = set(tokenizer.all_special_ids) | {
            number for number, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        for number in following:
            if number in special:
                return number
    if tokenizer.eos_token_id is None:
        raise DataError("The tokenizer has no end token, so nothing marks the end of an answer. Set its eos_token.")
    return int(tokenizer.eos_token_id)
