"""From a row to one text and the span of the answer in it: prompt and answer, chat messages, or running text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from jinja2 import TemplateError

from stable_forgetting.data.cells import is_missing, plain_value
from stable_forgetting.data.rows import Row, Rows
from stable_forgetting.errors import DataError

DEFAULT_TEMPLATE = "Question: {prompt}\nAnswer: {answer}"
"""How prompt and answer are put together without a chat template."""

DEFAULT_DATE = "10 Apr 2025"
"""The date for chat templates that write one, such as those of Llama 3; open-unlearning's logs have the same."""

_WITH_GIVEN_DATE = "{%- macro strftime_now(format) -%}{{ date_string }}{%- endmacro -%}"
"""Templates that ask for today's date are given the other one; whatever its format, it is written as it is."""

_STAND_IN = "⟦answer⟧"

Span = tuple[int, int]


_NAMED = {name: name for name in ("prompt", "answer", "text", "messages")}
_NAMED |= {"paraphrased": "paraphrased answer", "perturbed": "wrong answers"}
"""Names of columns that a config gives, and what is in them."""


@dataclass(frozen=True)
class LanguageColumns:
    """Names of the columns that are read, and how prompt and answer are put together.

    Prompt and answer are used if both columns exist, else messages, else plain text.

    Args:
        prompt: Column of the prompt.
        answer: Column of the answer.
        text: Column of plain text.
        messages: Column of chat messages: a list of objects with ``role`` and ``content``. The last message must be
            the assistant's and is the answer; all before it are the prompt.
        template: Text with ``{prompt}`` and, at its end, ``{answer}``; refused where a chat template is used.
        paraphrased: Column of the right answer in other words; used where a row has it, beside prompts and messages.
        perturbed: Column of wrong answers, a list of texts or one text; used likewise.
        system_prompt: First message in the chat template, where a row has none of its own; None: what the template
            does without one.
        date: What a chat template that writes a date is given. Left to itself it would write today's, so that the
            same data made other prompts, other hashes and other models on another day.
    """

    prompt: str = "prompt"
    answer: str = "answer"
    text: str = "text"
    messages: str = "messages"
    template: str = DEFAULT_TEMPLATE
    paraphrased: str = "paraphrased_answer"
    perturbed: str = "perturbed_answer"
    system_prompt: str | None = None
    date: str = DEFAULT_DATE


@dataclass(frozen=True)
class AnnotatedText:
    """A full text and where its answer is.

    Args:
        prompt: The prompt as the row has it, or the messages before the answer as text.
        answer: The answer as the row has it.
        text: The full text that is tokenised.
        span: First character of the answer in ``text``, and the one after its last.
        add_end: Whether the answer ends here, so that an end token follows it.
        templated: Whether a chat template made the text, with its own special tokens.
    """

    prompt: str
    answer: str
    text: str
    span: Span
    add_end: bool
    templated: bool


@dataclass(frozen=True)
class Annotator:
    """How the rows of one table become texts.

    Args:
        annotate: From a row and its place in words to its text.
        used: Columns that it reads.
        with_answer: From a row and another answer to the row that has it; None for plain text, which asks nothing.
    """

    annotate: Callable[[Row, str], AnnotatedText]
    used: frozenset[str]
    with_answer: Callable[[Row, Any], Row] | None


def annotator(rows: Rows, tokenizer: Any, columns: LanguageColumns, *, use_template: bool, name: str) -> Annotator:
    """Decide by the columns what the rows are, and how their text is made.

    Args:
        rows: The table.
        tokenizer: Its chat template is used if ``use_template``.
        columns: Which columns are read.
        use_template: Whether prompts are put into the chat template.
        name: Name of the set, for messages.

    Returns:
        The functions for it. They raise a `DataError` for a bad row.

    Raises:
        DataError: A column that was named is not there, no columns fit, or messages come without a chat template.
    """
    _check_names(rows, columns, name)
    alternatives = {columns.paraphrased, columns.perturbed}
    used = frozenset({columns.prompt, columns.answer})
    if used <= set(rows.columns):
        with_answer = partial(_with_answer, columns=columns)
        if use_template:
            return Annotator(
                lambda row, place: _chat(_as_messages(row, columns, place), tokenizer, columns, place),
                used | alternatives,
                with_answer,
            )
        pieces = _template_pieces(columns.template)
        return Annotator(lambda row, place: _plain(row, columns, pieces, place), used | alternatives, with_answer)
    if columns.messages in rows.columns:
        if not use_template:
            raise DataError(
                f"The {name} set has chat messages, which need a chat template, but the tokenizer has none or "
                "chat_template is false. Give prompt and answer columns, or a tokenizer with a chat template."
            )
        return Annotator(
            lambda row, place: _chat(_checked_messages(row, columns, place), tokenizer, columns, place),
            frozenset({columns.messages} | alternatives),
            partial(_with_last_message, columns=columns),
        )
    if columns.text in rows.columns:
        return Annotator(lambda row, place: _running_text(row, columns, place), frozenset({columns.text}), None)
    raise DataError(
        f"The {name} set has none of the columns '{columns.prompt}' and '{columns.answer}', '{columns.messages}' or "
        f"'{columns.text}' ({rows.source}). Columns: {', '.join(rows.columns) or 'none'}. Name the columns to use."
    )


def _check_names(rows: Rows, columns: LanguageColumns, name: str) -> None:
    """A name that was given is meant, so rows are not read as something else where it is misspelt."""
    for kind, words in _NAMED.items():
        given = getattr(columns, kind)
        if given != getattr(LanguageColumns, kind) and given not in rows.columns:
            raise DataError(
                f"The {name} set has no column '{given}', which is named as its {words} ({rows.source}). "
                f"Columns: {', '.join(rows.columns) or 'none'}. Correct the name."
            )


def _with_answer(row: Row, answer: Any, *, columns: LanguageColumns) -> Row:
    return {**row, columns.answer: answer}


def _with_last_message(row: Row, answer: Any, *, columns: LanguageColumns) -> Row:
    *before, last = row[columns.messages]
    return {**row, columns.messages: [*before, {**last, "content": answer}]}


def _field(row: Row, column: str, place: str) -> str:
    value = plain_value(row.get(column))
    if isinstance(value, bool) or not isinstance(value, str | int | float) or is_missing(value):
        raise DataError(f"Column '{column}' in {place} holds {value!r}, which is not text. Give a text.")
    return str(value)


def _filled(value: str, what: str, place: str) -> str:
    if not value.strip():
        raise DataError(f"The {what} in {place} is empty. Give it a text, or leave the row out.")
    return value


def _template_pieces(template: str) -> tuple[str, str]:
    before, has_prompt, rest = template.partition("{prompt}")
    between, has_answer, after = rest.partition("{answer}")
    if not has_prompt or not has_answer or after:
        raise DataError(f"The template {template!r} must hold '{{prompt}}' once and end with '{{answer}}'.")
    return before, between


def _plain(row: Row, columns: LanguageColumns, pieces: tuple[str, str], place: str) -> AnnotatedText:
    prompt = _field(row, columns.prompt, place)
    answer = _filled(_field(row, columns.answer, place), "answer", place)
    before = f"{pieces[0]}{prompt}{pieces[1]}"
    span = (len(before), len(before) + len(answer))
    return AnnotatedText(prompt, answer, before + answer, span, add_end=True, templated=False)


def _running_text(row: Row, columns: LanguageColumns, place: str) -> AnnotatedText:
    text = _filled(_field(row, columns.text, place), "text", place)
    return AnnotatedText("", text, text, (0, len(text)), add_end=False, templated=False)


def _as_messages(row: Row, columns: LanguageColumns, place: str) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": _field(row, columns.prompt, place)},
        {"role": "assistant", "content": _filled(_field(row, columns.answer, place), "answer", place)},
    ]


def _checked_messages(row: Row, columns: LanguageColumns, place: str) -> list[dict[str, str]]:
    messages = row.get(columns.messages)
    if not isinstance(messages, list) or not all(_is_message(message) for message in messages):
        raise DataError(
            f"Column '{columns.messages}' in {place} must be a list of objects with the texts 'role' and 'content'."
        )
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        roles = ", ".join(message["role"] for message in messages) or "none"
        raise DataError(
            f"The messages in {place} have the roles {roles}. Give at least two; the last one, the answer, must be "
            "the assistant's."
        )
    _filled(messages[-1]["content"], "answer", place)
    return [dict(message) for message in messages]


def _is_message(message: Any) -> bool:
    return isinstance(message, Mapping) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def _chat(messages: list[dict[str, str]], tokenizer: Any, columns: LanguageColumns, place: str) -> AnnotatedText:
    """Render the conversation, and find the answer by rendering it once more with a stand-in for the answer.

    Looking for the answer's text would find it in the wrong place if it also occurs in the template or the prompt.
    """
    answer = messages[-1]["content"]
    text = _rendered(messages, tokenizer, columns, place)
    stand_in = [*messages[:-1], {**messages[-1], "content": _STAND_IN}]
    before, found, after = _rendered(stand_in, tokenizer, columns, place).rpartition(_STAND_IN)
    if not found or not (text.startswith(before) and text.endswith(after)):
        raise DataError(f"The chat template changes the answer in {place}. Set chat_template to false.")
    start, end = len(before), len(text) - len(after)
    if text[start:end].strip() != answer.strip():
        raise DataError(f"The chat template changes the answer in {place}. Set chat_template to false.")
    prompt = "\n".join(message["content"] for message in messages[:-1])
    return AnnotatedText(prompt, answer, text, (start, end), add_end=True, templated=True)


def _rendered(messages: list[dict[str, str]], tokenizer: Any, columns: LanguageColumns, place: str) -> str:
    """The conversation in the chat template, with the system prompt where it has no system message of its own."""
    if columns.system_prompt is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": columns.system_prompt}, *messages]
    template = _WITH_GIVEN_DATE + tokenizer.get_chat_template()
    try:
        text: str = tokenizer.apply_chat_template(
            messages, tokenize=False, chat_template=template, date_string=columns.date
        )
    except TemplateError as error:
        advice = "" if columns.system_prompt is None else "Leave system_prompt out, or set "
        raise DataError(
            f"The chat template refuses the messages of {place}: {error}. {advice or 'Set '}chat_template to false."
        ) from error
    return text
