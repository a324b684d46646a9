"""Where the real data of the tests is: beside the repository, and never in it."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def shared_data(name: str) -> Path:
    """A folder of the shared data; skips the test where it is missing."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"the shared data '{name}' is not on this machine")
    return path
