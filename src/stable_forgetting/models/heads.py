"""Heads of image classifiers: the last layers, which turn the features of a backbone into logits."""

from __future__ import annotations

from typing import Any

from accelerate.utils import extract_model_from_parallel
from torch import nn

HEADS = ("classifier", "cls_classifier", "distillation_classifier", "head")
"""Names under which image classifiers of transformers keep their heads; the first one gives the features' use."""


def head_names(model: Any) -> list[str]:
    """Names of a classifier's heads, also under an adapter: most have one, distilled DeiT has two.

    Args:
        model: An image classifier of transformers, or timm's in transformers' wrapper.

    Returns:
        The names; none if no head is known.
    """
    unwrapped = extract_model_from_parallel(model)
    inner = getattr(unwrapped, "timm_model", None)
    if inner is not None:
        head = inner.get_classifier()
        return [name for name, part in unwrapped.named_modules() if part is head and _has_weights(part)]
    found = ((name, getattr(unwrapped, name, None)) for name in HEADS)
    return [name for name, head in found if isinstance(head, nn.Module) and _has_weights(head)]


def find_head(model: Any) -> nn.Module | None:
    """The classifier's head, the first if it has several; None if none is known."""
    names = head_names(model)
    return extract_model_from_parallel(model).get_submodule(names[0]) if names else None


def _has_weights(part: nn.Module) -> bool:
    return any(True for _ in part.parameters())
