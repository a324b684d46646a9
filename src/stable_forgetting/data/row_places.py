"""Places of rows in a table, for rules that divide it: within each class, or in a random order."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from stable_forgetting.data.rows import Rows

_OWN_STREAM = 20_250_924
"""So that the order is none that a table may have been shuffled with already, such as NumPy's with seed 0."""


def shares_in(rows: Rows, column: str) -> list[float]:
    """For each row its place among the rows with the same value in a column, as a share: k / n for the k-th of n.

    The last fifth of every class, however large, is where the share is above 0.8.

    Args:
        rows: The table.
        column: Name of the column; rows that lack it belong together.

    Returns:
        One number per row, above 0 and at most 1.

    Example:
        >>> shares_in(Rows([{"label": label} for label in (0, 1, 0)], "given in memory"), "label")
        [0.5, 1.0, 1.0]
    """
    values = [_hashable(row.get(column)) for row in rows]
    sizes, seen = Counter(values), Counter[Any]()
    shares = []
    for value in values:
        seen[value] += 1
        shares.append(seen[value] / sizes[value])
    return shares


def random_places(rows: Rows, seed: int) -> list[int]:
    """For each row its place in a random order of the table; rows with places below N are N random ones.

    Args:
        rows: The table.
        seed: The same seed and number of rows give the same order.

    Returns:
        The numbers from 0 to the number of rows - 1, each once.
    """
    return [int(place) for place in np.random.default_rng([_OWN_STREAM, seed]).permutation(len(rows))]


def _hashable(value: Any) -> Any:
    return repr(value) if isinstance(value, list | dict) else value
