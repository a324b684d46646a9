"""Rules that choose rows, such as ``person == "Ada" or label in [3, 5]``.

A rule is a Python expression of columns and constants. It is parsed and then interpreted node by node with the small
set of operations below; it is never executed, so a rule in somebody else's config cannot run code.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

from stable_forgetting.data.row_places import random_places, shares_in
from stable_forgetting.data.rows import Row, Rows
from stable_forgetting.errors import DataError, unknown_name

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda value, values: value in values,
    ast.NotIn: lambda value, values: value not in values,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}

_ALLOWED = (
    "Allowed: columns, constants, lists, == != < <= > >= in, not in, is None, and, or, not, column[index], "
    "share_in(column), random_place(seed)."
)

POSITION = "row"
"""Name of a row's position, in tables without a column of that name."""

Evaluate = Callable[[Row], Any]


def select_rows(rows: Rows, where: str) -> Rows:
    """The rows for which a rule is true, in order.

    A row that lacks a column has None there. ``row`` is the position of a row in the table, from 0, if no column has
    that name. ``share_in(column)`` is a row's place among the rows with the same value in the column, as a share above
    0 and at most 1; ``random_place(seed)`` is its place in a random order, from 0. Whether anything is left is for the
    caller to see: an empty set raises where the example set is made.

    Args:
        rows: The table.
        where: The rule, over the table's columns.

    Returns:
        The rows that are chosen; possibly none.

    Raises:
        DataError: The rule cannot be parsed, names an unknown column, uses anything that is not allowed, or compares
            values that have no order, such as a text and a number.

    Example:
        >>> rows = Rows([{"label": 3}, {"label": 4}, {"label": 5}], "given in memory")
        >>> [row["label"] for row in select_rows(rows, "label in [3, 5] and not label == 3")]
        [5]
        >>> [row["label"] for row in select_rows(rows, "row >= 1")]
        [4, 5]
        >>> [row["label"] for row in select_rows(rows, "random_place(0) < 2")]
        [4, 5]
    """
    rule = _parse(where)
    evaluate = _compile(rule, where, frozenset({*rows.columns, POSITION}))
    places = _places(rule, rows)
    if POSITION not in rows.columns:
        places[POSITION] = list(range(len(rows)))

    def keep(number: int, row: Row) -> bool:
        try:
            return bool(evaluate({**row, **{name: values[number] for name, values in places.items()}}))
        except (TypeError, IndexError, KeyError) as error:
            raise DataError(
                f"The rule '{where}' cannot be decided for row {number}: {error}. "
                "Compare texts with texts and numbers with numbers."
            ) from error

    chosen = [row for number, row in enumerate(rows) if keep(number, row)]
    return Rows(chosen, f"{rows.source}, where {where}")


def _parse(where: str) -> ast.expr:
    try:
        return ast.parse(where.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        position = getattr(error, "offset", None)
        place = f" at character {position}" if position else ""
        raise DataError(
            f"The rule '{where}' cannot be read{place}: {getattr(error, 'msg', error)}. {_ALLOWED}"
        ) from error


def _places(rule: ast.expr, rows: Rows) -> dict[str, list[Any]]:
    """The values of each place that a rule asks for, by how it is written."""
    found: dict[str, list[Any]] = {}
    for node in ast.walk(rule):
        match node:
            case ast.Call(func=ast.Name(id="share_in"), args=[ast.Name(id=column)]):
                found[ast.unparse(node)] = shares_in(rows, column)
            case ast.Call(func=ast.Name(id="random_place"), args=[ast.Constant(value=int() as seed)]):
                found[ast.unparse(node)] = random_places(rows, seed)
    return found


def _compile(node: ast.expr, where: str, columns: frozenset[str]) -> Evaluate:
    """A function from a row to the value of the node; every node of the rule is checked before any row is seen."""
    if isinstance(node, ast.Name) and node.id not in columns:
        raise DataError(f"The rule '{where}' is wrong: {unknown_name('column', node.id, columns)}")

    def inner(child: ast.expr) -> Evaluate:
        return _compile(child, where, columns)

    evaluate = _leaf(node) or _place(node, inner) or _logic(node, inner) or _structure(node, inner)
    if evaluate is None:
        raise DataError(
            f"The rule '{where}' uses '{ast.unparse(node)}' at character {node.col_offset + 1}, which is not allowed. "
            f"{_ALLOWED}"
        )
    return evaluate


def _leaf(node: ast.expr) -> Evaluate | None:
    match node:
        case ast.Constant(value=constant):
            return lambda row: constant
        case ast.Name(id=name):
            return lambda row: row.get(name)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return lambda row: -number
    return None


def _place(node: ast.expr, inner: Callable[[ast.expr], Evaluate]) -> Evaluate | None:
    match node:
        case ast.Call(func=ast.Name(id="share_in"), args=[ast.Name() as column], keywords=[]):
            inner(column)  # refuses a column that is not there
        case ast.Call(func=ast.Name(id="random_place"), args=[ast.Constant(value=int())], keywords=[]):
            pass
        case _:
            return None
    name = ast.unparse(node)
    return lambda row: row[name]


def _logic(node: ast.expr, inner: Callable[[ast.expr], Evaluate]) -> Evaluate | None:
    match node:
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return _negation(inner(operand))
        case ast.BoolOp(op=kind, values=values):
            return _combination(any if isinstance(kind, ast.Or) else all, [inner(value) for value in values])
        case ast.Compare(left=left, ops=kinds, comparators=rest):
            comparisons = [_COMPARISONS[type(kind)] for kind in kinds]
            return _comparison([inner(value) for value in (left, *rest)], comparisons)
    return None


def _structure(node: ast.expr, inner: Callable[[ast.expr], Evaluate]) -> Evaluate | None:
    match node:
        case ast.List(elts=elements) | ast.Tuple(elts=elements) | ast.Set(elts=elements):
            if all(isinstance(element, ast.Constant) for element in elements):  # long lists are made once
                constants = [element.value for element in elements if isinstance(element, ast.Constant)]
                return lambda row: constants
            return _sequence([inner(element) for element in elements])
        case ast.Subscript(value=value, slice=index) if not isinstance(index, ast.Slice):
            return _item(inner(value), inner(index))
    return None


def _sequence(elements: list[Evaluate]) -> Evaluate:
    return lambda row: [element(row) for element in elements]


def _negation(operand: Evaluate) -> Evaluate:
    return lambda row: not operand(row)


def _combination(quantifier: Callable[[Any], bool], values: list[Evaluate]) -> Evaluate:
    return lambda row: quantifier(value(row) for value in values)


def _comparison(values: list[Evaluate], comparisons: list[Callable[[Any, Any], Any]]) -> Evaluate:
    def evaluate(row: Row) -> bool:
        found = [value(row) for value in values]
        return all(compare(left, right) for compare, left, right in zip(comparisons, found, found[1:], strict=False))

    return evaluate


def _item(value: Evaluate, index: Evaluate) -> Evaluate:
    return lambda row: value(row)[index(row)]
