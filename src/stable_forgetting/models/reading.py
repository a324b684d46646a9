"""How language models read: whether a token sees what comes behind it, and how places in a text are counted."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from stable_forgetting.errors import ModelError
from stable_forgetting.models.packing import causal_model
from stable_forgetting.models.trunk import is_of_transformers

_COUNT_FROM_PADDING = frozenset(
    {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "data2vec-text", "roberta-prelayernorm", "xmod"}
)
"""Families whose places begin behind the number of the pad token, and are counted by the model itself."""

_BOTH_WAYS = _COUNT_FROM_PADDING | {
    "bert", "bert-generation", "big_bird", "electra", "ernie", "megatron-bert", "rembert", "roc_bert", "roformer"
}  # fmt: skip
"""Families of encoders, which are causal language models only where their config says so."""

_STRETCHED = frozenset({"dynamic", "longrope"})
"""Kinds of rotary positions that depend on the length of what is read."""

_ADVICE = "Load a causal language model, with AutoModelForCausalLM."


def check_causal(model: Any) -> None:
    """Check that a model predicts each token from those before it alone.

    Raises:
        ModelError: It is an encoder, an encoder with a decoder, or has no output head.
    """
    config, name = model.config, type(model).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{name} is an encoder with a decoder, but answers are read behind their prompts. {_ADVICE}")
    if config.model_type in _BOTH_WAYS and not config.is_decoder:
        raise ModelError(
            f"{name} reads its texts in both directions, so that it sees the tokens that it is to predict. Load it "
            "with is_decoder=True if it was trained so, else another model."
        )
    if is_of_transformers(model) and model.get_output_embeddings() is None:
        raise ModelError(f"{name} has no output head that predicts tokens. {_ADVICE}")


def num_positions(config: Any) -> int | None:
    """The longest text that a model can read, in tokens; None where nothing limits it."""
    text_config = config.get_text_config()
    positions: int | None = getattr(text_config, "max_position_embeddings", None)
    if positions is None or text_config.model_type not in _COUNT_FROM_PADDING:
        return positions
    return positions - int(text_config.pad_token_id) - 1


def reads_padded_prompts(model: nn.Module) -> bool:
    """Whether the model takes the places of tokens as they are given, so that there may be padding before a prompt.

    Others count padding as tokens, or begin to count at another number than 0.
    """
    return "position_ids" in accepted_inputs(model) and causal_model(model).config.model_type not in _COUNT_FROM_PADDING


def stretching_length(model: nn.Module) -> int | None:
    """Tokens of the longest text that leaves rotary positions as they are; a longer one stretches its whole batch's.

    Returns:
        None for a model that stretches none.
    """
    config = causal_model(model).config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") not in _STRETCHED:
        return None
    return int(rope.get("original_max_position_embeddings") or config.max_position_embeddings)


def accepted_inputs(model: nn.Module) -> set[str]:
    """Names of what the model's own forward pass takes."""
    return set(inspect.signature(causal_model(model).forward).parameters)
