"""Data sets of the Hugging Face hub, or of its cache on this machine."""

from __future__ import annotations

from typing import Any

from stable_forgetting.errors import DataError


def load_hub_rows(name: str, *, subset: str | None, split: str | None) -> list[dict[str, Any]]:
    """Rows of a hub data set. Without a split, the rows of all splits with their name in the column ``split``.

    Where the data set names the classes in a column ``fine_label``, the column ``fine_label_name`` has the names.

    Args:
        name: ``owner/name``, or a name without owner.
        subset: Configuration of the data set, or None for its only one.
        split: Name of a split, or None for all.

    Returns:
        The rows in order; columns of images come as PIL images.

    Raises:
        DataError: There is no such data set, subset or split, or the hub cannot be reached.
    """
    import datasets
    from huggingface_hub.errors import HFValidationError

    try:
        loaded = datasets.load_dataset(name, subset, split=split)
    except (datasets.exceptions.DatasetNotFoundError, FileNotFoundError, HFValidationError) as error:
        raise DataError(
            f"'{name}' is neither a file nor a folder here, and the hub has no public data set of that name. "
            "Check the spelling; a private data set needs `hf auth login`."
        ) from error
    except ConnectionError as error:
        raise DataError(
            f"'{name}' is neither a file nor a folder here, and the hub cannot be reached "
            f"({_why_unreachable(datasets)}). Check the name, give a local path, or load the data set once while "
            "online."
        ) from error
    except (ValueError, RuntimeError) as error:  # the latter for data sets that are made by code
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise DataError(f"The hub data set '{name}' cannot be used: {reason}. Check 'subset' and 'split'.") from error
    if split is not None:
        return _rows(loaded, datasets.ClassLabel)
    return [{"split": part, **row} for part, rows in loaded.items() for row in _rows(rows, datasets.ClassLabel)]


def _rows(loaded: Any, class_label: type[Any]) -> list[dict[str, Any]]:
    features = (loaded.features or {}).items()
    names = {column: feature.names for column, feature in features if isinstance(feature, class_label)}
    return [
        {**row, **{f"{column}_name": _name(row[column], known) for column, known in names.items()}} for row in loaded
    ]


def _name(label: int | None, names: list[str]) -> str | None:
    """Name of a class; None where the class is not known, for which data sets have -1."""
    return None if label is None or label < 0 else names[label]


def _why_unreachable(datasets: Any) -> str:
    return "offline mode is on" if datasets.config.HF_HUB_OFFLINE else "no connection"
