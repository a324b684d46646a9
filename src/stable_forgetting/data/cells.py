"""Values of single cells: nothing in its several forms, NumPy's numbers, and lists that were written as text."""

from __future__ import annotations

import ast
import math
from typing import Any

import numpy as np


def plain_value(value: Any) -> Any:
    """Python's own number or list for NumPy's: rows that pandas made hold these."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def is_missing(value: Any) -> bool:
    """Whether there is nothing: tables of numbers write that as NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_blank(value: Any) -> bool:
    """Whether a text has nothing to read."""
    return isinstance(value, str) and not value.strip()


def is_list_as_text(value: Any) -> bool:
    """Whether a text is how Python or JSON writes a list of texts, as tables without lists hold it.

    Example:
        >>> is_list_as_text("['Paris', 'Rome']"), is_list_as_text("[sic] Paris")
        (True, False)
    """
    if not (isinstance(value, str) and value.strip().startswith("[") and value.strip().endswith("]")):
        return False
    try:
        found = ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    return isinstance(found, list) and bool(found) and all(isinstance(part, str) for part in found)
