"""Tables in local files: JSON lines, JSON, CSV, Parquet and plain text.

Text formats are read line by line here, so that an error can name the line, and so that no value is changed on the
way: a general CSV reader makes a missing value of the answer "None" and a 7 of "007".
"""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stable_forgetting.errors import DataError

Records = list[dict[str, Any]]


def read_json(path: Path) -> Records:
    """Rows of a JSON file: one object per line, or one list of objects.

    Args:
        path: The file, ``.json`` or ``.jsonl``; blank lines are skipped.

    Returns:
        The objects in order.

    Raises:
        DataError: The file is not UTF-8, not JSON, or holds something other than objects.
    """
    text = _read_text(path)
    if text.lstrip().startswith("["):
        rows: list[Any] = _parse_json(text, path, 1)
        places = [f"item {number} of '{path}'" for number in range(1, len(rows) + 1)]
    else:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        rows = [_parse_json(line, path, number) for number, line in lines]
        places = [f"line {number} of '{path}'" for number, _ in lines]
    for row, place in zip(rows, places, strict=True):
        if not isinstance(row, dict):
            raise DataError(
                f"Not a table: {place} holds {_json_kind(row)}, not an object. "
                "Give one object per line, or one list of objects."
            )
    return list(rows)


def read_csv(path: Path) -> Records:
    """Rows of a CSV file with a header line.

    A column becomes whole numbers or decimal numbers only if each of its values is written exactly as that number is
    written back; otherwise it stays text. So nothing is lost: "007" and "None" stay what they are.

    Args:
        path: The file.

    Returns:
        The rows in order.

    Raises:
        DataError: The file is not UTF-8, has no header, names a column twice, or a row has another number of cells.
    """
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    try:
        header, *rows = _csv_cells(reader, path) or [[]]
    except csv.Error as error:
        raise DataError(f"Line {reader.line_num} of '{path}' is not CSV: {error}. Correct the line.") from error
    if not header or len(set(header)) < len(header):
        found = f"the columns {', '.join(header)}" if header else "no header line"
        raise DataError(f"'{path}' has {found}. The first line must name each column once.")
    columns = [_typed_column([row[place] for row in rows]) for place in range(len(header))]
    return [dict(zip(header, cells, strict=True)) for cells in zip(*columns, strict=True)]


def read_parquet(path: Path) -> Records:
    """Rows of a Parquet file; columns of images, as the hub stores them, come as PIL images.

    Args:
        path: The file.

    Returns:
        The rows in order.

    Raises:
        DataError: The file is damaged or not Parquet.
    """
    import datasets
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    with tempfile.TemporaryDirectory() as cache_dir:
        try:
            pq.read_schema(path)  # datasets would log a damaged file before it raises
            table = datasets.Dataset.from_parquet(str(path), cache_dir=cache_dir, keep_in_memory=True)
        except (datasets.exceptions.DatasetGenerationError, pa.ArrowException, OSError) as error:
            raise DataError(f"'{path}' is not a Parquet file, or it is damaged. Write it again.") from error
        return [dict(row) for row in table]


def read_text(path: Path) -> Records:
    """One row per line of a text file, in the column ``text``; blank lines are dropped.

    Args:
        path: The file.

    Returns:
        The rows in order.

    Raises:
        DataError: The file is not UTF-8.
    """
    return [{"text": line} for line in _read_text(path).split("\n") if line.strip()]


READERS: dict[str, Callable[[Path], Records]] = {
    ".jsonl": read_json,
    ".json": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
    ".txt": read_text,
}
"""Reader by the ending of the file's name."""


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from error


def _parse_json(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise DataError(
            f"Line {line} of '{path}' is not JSON: {error.msg} at character {error.colno}. "
            "Give one object per line, or one list of objects; a line may have been cut off."
        ) from error


def _json_kind(value: Any) -> str:
    kinds = {list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return kinds.get(type(value), "a number")


def _csv_cells(reader: Iterator[list[str]], path: Path) -> list[list[str]]:
    table: list[list[str]] = []
    for number, cells in enumerate(reader):
        if not cells:
            continue
        if table and len(cells) != len(table[0]):
            raise DataError(
                f"Row {number} of '{path}' has {len(cells)} cells, but the header names {len(table[0])} columns. "
                "Quote cells that hold a comma."
            )
        table.append(cells)
    return table


def _typed_column(cells: list[str]) -> list[Any]:
    for kind in (int, float):
        try:
            values = [kind(cell) for cell in cells]
        except ValueError:
            continue
        if all(str(value) == cell for value, cell in zip(values, cells, strict=True)):
            return values
    return list(cells)
