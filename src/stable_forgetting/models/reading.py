"""How language models read: whether a token sees what comes behind it, and how places in a text are counted."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from stable_forgetting.errors import ModelError
from stable_forgetting.models.trunk import is_of_transformers

_COUNT_FROM_PADDING = frozenset(
    {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "data2vec-text", "roberta-prelayernorm", "xmod"}
)
"""Families whose places begin behind the number of the pad token, and are counted by the model itself."""

_BOTH_WAYS = _COUNT_FROM_PADDING | {
    "bert", "bert-generation", "big_bird", "electra", "ernie", "flaubert", "megatron-bert", "rembert", "roc_bert",
    "roformer", "xlm", "xlnet",
}  # fmt: skip
"""Families of encoders, which are causal language models only where their config says so."""

_FOR_GAPS = {*MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()} - {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()}
"""Classes that fill gaps in texts."""

_WITHOUT_PLACES = frozenset({"bloom", "mpt"})
"""Families whose attention goes by distances alone (ALiBi)."""

_ADVICE = "Load a causal language model, with AutoModelForCausalLM."


def causal_model(model: nn.Module) -> Any:
    """The model of transformers within adapters and wrappers."""
    unwrapped: Any = extract_model_from_parallel(model)
    return unwrapped.get_base_model() if hasattr(unwrapped, "get_base_model") else unwrapped


def check_causal(model: Any) -> None:
    """Check that a model predicts each token from those before it alone.

    Raises:
        ModelError: It is an encoder, an encoder with a decoder, or has no output head.
    """
    config, name = model.config, type(model).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{name} is an encoder with a decoder, but answers are read behind their prompts. {_ADVICE}")
    is_causal = any(getattr(config, option, False) for option in ("is_decoder", "causal"))
    if name in _FOR_GAPS or (config.model_type in _BOTH_WAYS and not is_causal):
        raise ModelError(
            f"{name} reads its texts in both directions, so that it sees the tokens that it is to predict. {_ADVICE} "
            "An encoder that was trained as a decoder is loaded with is_decoder=True."
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
    """Whether there may be padding before a prompt: the model takes the places of tokens as given, or has none.

    Others count padding as tokens, as BART's decoders do, or begin to count at another number than 0.
    """
    return "position_ids" in accepted_inputs(model) or causal_model(model).config.model_type in _WITHOUT_PLACES


def stretching_length(model: nn.Module) -> int | None:
    """Tokens of the longest text that leaves rotary positions as they are; a longer one stretches its whole batch's.

    Those of the kind ``dynamic`` are stretched behind the last position only, and such texts are refused.

    Returns:
        None for a model that stretches none.
    """
    config = causal_model(model).config.get_text_config()
    given = getattr(config, "rope_parameters", None) or {}
    ropes = [given, *(each for each in given.values() if isinstance(each, dict))]  # or one for each type of layer
    long = [rope for rope in ropes if rope.get("rope_type") == "longrope"]
    key = "original_max_position_embeddings"
    return min((int(rope.get(key) or config.max_position_embeddings) for rope in long), default=None)


def accepted_inputs(model: nn.Module) -> frozenset[str]:
    """Names of what the model's own forward pass takes; without `position_ids` where they are better left to it."""
    inner = causal_model(model)
    own = {"position_ids"} if inner.config.model_type in _COUNT_FROM_PADDING else set()
    return _parameters(type(inner).forward) - own


@cache  # it is asked for with every token of an answer
def _parameters(forward: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)
