"""PEFT's ways to put an adapter on a model, without the warning that they give for each of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model


@contextmanager
def without_old_names() -> Iterator[None]:
    """Leave out one warning: PEFT 0.21 asks models of transformers 5 for `is_gradient_checkpointing`, an old name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def attach(model: Any, config: PeftConfig) -> PeftModel:
    """Put a fresh adapter on a model, as `peft.get_peft_model` does.

    Args:
        model: The base model; its layers are wrapped in place.
        config: The adapter.
    """
    with without_old_names():
        return get_peft_model(model, config)
