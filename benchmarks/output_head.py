"""Time and memory of labels' likelihoods from hidden states: with all logits, and a part of the vocabulary at a time.

    OMP_NUM_THREADS=1 python benchmarks/output_head.py

The sizes are those of a batch of answer trees of SmolLM2-135M: 480 hidden states of width 576, 560 labels, 49,152
tokens. CPU seconds, medians of both ways in turn; on Linux what a process of its own needs at its peak beyond what it
had before.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from stable_forgetting.models.output_head import HeadPredictions
from stable_forgetting.models.predictions import Predictions

STATES, LABELS, WIDTH, TOKENS, TURNS = 480, 560, 576, 49_152, 7
WAYS = ("all logits", "a part at a time")


def measured(way: str, hidden: torch.Tensor, head: torch.nn.Linear, state: torch.Tensor, labels: torch.Tensor) -> float:
    """CPU seconds of likelihood and most likely token."""
    example, start = torch.zeros_like(labels), time.process_time()
    with torch.inference_mode():
        if way == WAYS[0]:
            predictions = Predictions(head(hidden)[state], labels, example, 1)
        else:
            predictions = HeadPredictions(hidden, head, state, labels, example, 1)
        _ = predictions.nll_sum, predictions.correct
    return time.process_time() - start


def inputs() -> tuple[torch.Tensor, torch.nn.Linear, torch.Tensor, torch.Tensor]:
    """Random hidden states, head, states of labels, and labels."""
    torch.manual_seed(0)
    head = torch.nn.Linear(WIDTH, TOKENS, bias=False)
    state = torch.randint(0, STATES, (LABELS,)).sort().values
    return torch.randn(STATES, WIDTH), head, state, torch.randint(0, TOKENS, (LABELS,))


def memory(name: str) -> float:
    """An entry of the process's status, MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def peak_mib(way: str) -> float:
    """Peak of a process of its own beyond what it had before."""
    return float(subprocess.run([sys.executable, __file__, way], check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measure, print and write."""
    given = inputs()
    if len(sys.argv) > 1:
        before = memory("VmRSS")
        measured(sys.argv[1], *given)
        print(memory("VmHWM") - before)
        return
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(TURNS + 1):
        for way in WAYS:
            found = measured(way, *given)
            if turn:
                seconds[way].append(found)
    medians = {way: statistics.median(values) for way, values in seconds.items()}
    result = {"cpu_seconds": medians, "turns": TURNS, "peak_mib": {way: peak_mib(way) for way in WAYS}}
    path = Path(__file__).parent / "results" / "output_head_cpu.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
