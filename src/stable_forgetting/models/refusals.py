"""Why a model cannot be read, in one sentence: the hub's own words are several, and meant for programmers."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.constants import is_offline_mode
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError

from stable_forgetting.errors import ModelError, StableForgettingError
from stable_forgetting.models.heads import head_names

if TYPE_CHECKING:
    from stable_forgetting.models.load import ModelSource

logger = logging.getLogger(__name__)

_LONGEST_REASON = 250

_OF_HUB: dict[type[BaseException], str] = {
    HFValidationError: (
        "The model '{name}' is no local folder, and such a name cannot be on the hub. Give a folder made by "
        "save_pretrained, or a hub name such as 'org/model'."
    ),
    GatedRepoError: "The hub model '{name}' is gated. Ask for access on its page, and log in with `hf auth login`.",
    RepositoryNotFoundError: (
        "The model '{name}' is no local folder, and the hub has no public model of that name. Check the spelling; "
        "a private model needs `hf auth login`."
    ),
    RevisionNotFoundError: "The hub model '{name}' has no such revision. Check model.revision, or leave it out.",
    LocalEntryNotFoundError: (
        "The model '{name}' is neither a local folder nor in the hub's cache here, and the hub cannot be reached "
        "({why}). Check the name, give a local folder, or load the model once while online."
    ),
    EntryNotFoundError: "The hub model '{name}' lacks a file: {reason} Give a model that transformers can load.",
}
"""What is said, by the first of these that is among the causes: later ones are more general."""


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turn what transformers raises for a model that cannot be read into one sentence.

    Args:
        name: The model's name as the user gave it.

    Raises:
        ModelError: The model cannot be read.
    """
    try:
        yield
    except StableForgettingError:
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        is_hub_name = ":" not in name and not Path(name).expanduser().exists()
        sentence = _of_hub(name, list(_causes(error))) if is_hub_name else None
        raise ModelError(
            sentence or f"The model '{name}' cannot be loaded: {_short(error)} Check its name and files."
        ) from error


def _of_hub(name: str, causes: list[BaseException]) -> str | None:
    """What a hub name is refused for, if it is known."""
    sentence = next((text for kind, text in _OF_HUB.items() if any(isinstance(cause, kind) for cause in causes)), None)
    if sentence is None:
        return None
    why = "offline mode is on" if is_offline_mode() else "no connection"
    return sentence.format(name=name, why=why, reason=_short(causes[0]))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _short(error: BaseException) -> str:
    """The first sentences of an error's text, as many as there is room for."""
    text = " ".join(str(error).split())
    if not text:
        return f"{type(error).__name__}."
    if len(text) <= _LONGEST_REASON:
        return text if text[-1] in ".!?" else f"{text}."
    ends = [found.end() for found in re.finditer(r"[.!?](?= )", text) if found.end() <= _LONGEST_REASON]
    return text[: ends[-1]] if ends else f"{text[:_LONGEST_REASON].rsplit(' ', 1)[0]} …"


def check_complete(source: ModelSource, model: Any, found: Mapping[str, Any]) -> None:
    """Refuse files that lack weights: transformers makes random ones. A head that was asked for is meant to be new.

    Args:
        source: What was read.
        model: The model.
        found: What transformers says about the loading.

    Raises:
        ModelError: Weights are missing in a model that is used as it is, or have another shape.
    """
    new = () if source.num_classes is None else tuple(f"{name}." for name in head_names(model))
    _check_shapes(source, [entry for entry in found["mismatched_keys"] if not entry[0].startswith(new)])
    missing = sorted(name for name in found["missing_keys"] if not name.startswith(new))
    if not missing:
        return
    shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
    if source.num_classes is not None:
        logger.warning("'%s' lacks %d weights beside the head, now random: %s.", source.name, len(missing), shown)
        return
    kind = "causal language model" if source.kind == "language" else "image classifier"
    raise ModelError(
        f"'{source.name}' lacks {len(missing)} weights of a {kind}, which would be random: {shown}. Give a folder that "
        f"`save_pretrained` of the whole {kind} wrote."
    )


def _check_shapes(source: ModelSource, mismatched: Sequence[tuple[str, Any, Any]]) -> None:
    """Refuse weights of another shape than the config asks for: a new head is asked for, nothing else may be random."""
    if mismatched:
        name, stored, needed = min(mismatched)
        raise ModelError(
            f"'{source.name}' holds {len(mismatched)} weights of another shape than its config says, such as '{name}': "
            f"{list(stored)}, where {list(needed)} is needed. Correct its config.json, or give the folder that "
            "`save_pretrained` wrote."
        )
