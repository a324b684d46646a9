"""Where and with what a run was executed."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from stable_forgetting.records import Environment

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


def peak_memory_bytes() -> int:
    """Peak memory so far: of the GPU if there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
