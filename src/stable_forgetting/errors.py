"""Every exception that a user's mistake or a stopped run can raise.

StableForgettingError
├── ConfigError          a config, an option or an argument is not allowed
├── DataError            a data file or an example set cannot be used
├── ModelError           a model or an adapter cannot be loaded, adapted or merged
├── RunDirectoryError    a run directory is missing, occupied or of another run
└── NotFiniteError       the loss or a gradient is infinite or not a number

The command line prints the message of any of them as one sentence and exits with code 2. Everything else is a
bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class StableForgettingError(Exception):
    """Root of the package's exceptions."""


class ConfigError(StableForgettingError, ValueError):
    """A config, an option or an argument is not allowed."""


class DataError(StableForgettingError, ValueError):
    """A data file or an example set cannot be used."""


class ModelError(StableForgettingError, ValueError):
    """A model or an adapter cannot be loaded, adapted or merged."""


class RunDirectoryError(StableForgettingError, ValueError):
    """A run directory is missing, occupied or of another run."""


class NotFiniteError(StableForgettingError, ArithmeticError):
    """The loss or a gradient is infinite or not a number."""


def unknown_name(kind: str, name: str, available: Iterable[str]) -> str:
    """Sentence for a name that is not in a table.

    Args:
        kind: What the name should have been, such as ``"bound"``.
        name: What came.
        available: The names that are allowed.

    Returns:
        The sentence, with the closest names if any is close.

    Example:
        >>> unknown_name("bound", "sinus", ["sine", "tanh"])
        "Unknown bound 'sinus'. Did you mean 'sine'? Available: sine, tanh."
    """
    names = sorted(available)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return f"Unknown {kind} '{name}'.{hint} Available: {', '.join(names)}."
