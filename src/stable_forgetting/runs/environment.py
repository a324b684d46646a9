"""Where and with what a run was executed, and how long it took."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch

from stable_forgetting.records import Environment

_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
"""Linux: writing 5 to the first resets the peak resident size (VmHWM) in the second; see proc(5)."""

_PACKAGES = ("stable-forgetting", "torch", "transformers", "peft", "accelerate", "numpy", "scipy")


def environment() -> Environment:
    """Versions, commit, machine and device."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu"
    return Environment(
        versions={"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
        commit=_commit(),
        platform=platform.platform(),
        device=device,
        num_threads=torch.get_num_threads(),
    )


def _commit() -> str | None:
    """Commit of the checkout that this package runs from, or None if it is installed from elsewhere."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return None
    return answer.stdout.strip() or None


def reset_peak_memory() -> None:
    """Begin a new measurement of the peak, so that what came before does not count."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif _CLEAR_REFS.exists():
        _CLEAR_REFS.write_text("5")


def peak_memory_bytes() -> int | None:
    """Peak memory since `reset_peak_memory`: of the GPU if there is one, else of the process; None where unknown."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if not _CLEAR_REFS.exists():
        return None
    lines = _STATUS.read_text().splitlines()
    kilobytes = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), None)
    return None if kilobytes is None else int(kilobytes) * 1024


@dataclass
class Clock:
    """Seconds of each phase, by name."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the block to that of the phase."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
