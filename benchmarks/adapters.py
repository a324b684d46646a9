"""Time and memory of one adapted layer, forward and backward, beside what it could cost at best.

    OMP_NUM_THREADS=1 python benchmarks/adapters.py            # all shapes that fit into the time limit
    OMP_NUM_THREADS=1 python benchmarks/adapters.py --quick    # one shape, one number of tokens

The variants take turns in one process, so that a change in the machine's load meets all of them. Times are CPU seconds
of the process, which other processes disturb less than wall-clock time; the JSON file has both. Ratios are medians of
the ratios within a turn.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import peft
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from stable_forgetting.adapters import BoundedLoraConfig

SHAPES = [(576, 1536), (768, 3072), (2048, 8192), (4096, 14336)]
TOKENS = [1024, 256, 64, 4096]  # in the order of interest
RANK, OMEGA = 8, 100.0
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FEWEST_TURNS, MOST_TURNS = 3, 15


@dataclass(frozen=True)
class Case:
    """One layer and one input."""

    num_in: int
    num_out: int
    tokens: int
    dtype: str

    @property
    def work(self) -> int:
        """Multiplications of one product of the layer's size."""
        return self.num_in * self.num_out * self.tokens


def make_variants(
    case: Case, device: str = "cpu"
) -> dict[str, tuple[Callable[[], object], Callable[[Tensor], Tensor] | None]]:
    """Forward and backward pass of every variant, and its forward pass alone."""
    torch.manual_seed(0)
    dtype = DTYPES[case.dtype]
    base = nn.Linear(case.num_in, case.num_out, bias=False, device=device, dtype=dtype).requires_grad_(False)
    x = torch.randn(case.tokens, case.num_in, device=device, dtype=dtype, requires_grad=True)
    dy = torch.randn(case.tokens, case.num_out, device=device, dtype=dtype)
    weight, plain_x = base.weight, x.detach()
    lora = get_peft_model(nn.Sequential(base), LoraConfig(r=RANK, target_modules=["0"])).base_model.model[0]
    options = {"r": RANK, "omega": OMEGA, "target_modules": ["0"]}
    ours = get_peft_model(nn.Sequential(base), BoundedLoraConfig(**options)).base_model.model[0]
    nn.init.normal_(ours.bounded_lora_B["default"], std=1e-3)
    change = ours.low_rank_change("default")

    def naive_delta() -> Tensor:
        return (change.scale * torch.sin(OMEGA * (change.lora_b @ change.lora_a))).to(dtype)

    def three_products() -> tuple[Tensor, ...]:
        return plain_x @ weight.t(), dy @ weight, dy.t() @ plain_x

    forwards: dict[str, Callable[[Tensor], Tensor]] = {
        "frozen layer": base,
        "LoRA of PEFT": lora,
        "naive sine": lambda x: base(x) + F.linear(x, naive_delta()),
        "naive sine, one product": lambda x: F.linear(x, weight + naive_delta()),
        "bounded": ours,
    }
    steps = {name: (lambda f=forward: f(x).backward(dy), forward) for name, forward in forwards.items()}
    return {"three products": (three_products, None), **steps}


def count_saved_bytes(forward: Callable[[Tensor], Tensor], case: Case) -> int:
    """Bytes held between the passes, each storage once."""
    saved: dict[int, int] = {}
    x = torch.randn(case.tokens, case.num_in, dtype=DTYPES[case.dtype], requires_grad=True)

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward(x)
    del output
    return sum(saved.values())


def take_time(step: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall-clock seconds of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    step()
    return time.process_time() - cpu, time.perf_counter() - wall


def measure(case: Case, limit_s: float) -> dict[str, object]:
    """All variants of a case in turns, as many as the limit allows."""
    variants = make_variants(case)
    for step, _ in variants.values():
        step()
    start, turns = time.perf_counter(), []
    while len(turns) < FEWEST_TURNS or (len(turns) < MOST_TURNS and time.perf_counter() - start < limit_s):
        turns.append({name: take_time(step) for name, (step, _) in variants.items()})
    results = {}
    for name, (_, forward) in variants.items():
        cpu = [turn[name][0] * 1e3 for turn in turns]
        low, middle, high = statistics.quantiles(cpu, n=4)
        results[name] = {
            "cpu_ms": {"median": middle, "quartiles": [low, high]},
            "wall_ms": {"median": statistics.median(turn[name][1] * 1e3 for turn in turns)},
            "saved_bytes": None if forward is None else count_saved_bytes(forward, case),
        }
    ratios = {
        other: statistics.median(turn["bounded"][0] / turn[other][0] for turn in turns)
        for other in variants
        if other != "bounded"
    }
    return {**vars(case), "turns": len(turns), "variants": results, "bounded_relative_to": ratios}


def run(cases: list[Case], limit_s: float, total_s: float) -> list[dict[str, object]]:
    """Measure the cases; those that would pass a time limit are left out, with the reason."""
    seconds_per_work: dict[str, float] = {}
    results: list[dict[str, object]] = []
    run_start = time.perf_counter()
    for case in cases:
        expected = seconds_per_work.get(case.dtype, 0.0) * case.work * (FEWEST_TURNS + 1)
        left = total_s - (time.perf_counter() - run_start)
        if expected > min(4 * limit_s, left) or left <= 0:
            reason = f"about {expected:.0f} s expected, {max(left, 0):.0f} s of the time limit left"
            results.append({**vars(case), "skipped": reason})
            print(f"{case}: skipped, {reason}", flush=True)
            continue
        start = time.perf_counter()
        result = measure(case, limit_s)
        rate = (time.perf_counter() - start) / (result["turns"] + 1) / case.work
        seconds_per_work[case.dtype] = min(rate, seconds_per_work.get(case.dtype, rate))
        results.append(result)
        ratios = {name: round(ratio, 2) for name, ratio in result["bounded_relative_to"].items()}
        print(f"{case}: bounded relative to {ratios}", flush=True)
    return results


def describe_environment() -> dict[str, object]:
    """What the numbers depend on."""
    model = platform.processor()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        lines = [line for line in cpu_info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    return {
        "torch": torch.__version__,
        "peft": peft.__version__,
        "python": platform.python_version(),
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "rank": RANK,
        "omega": OMEGA,
    }


def print_table(results: list[dict[str, object]]) -> None:
    """Markdown table of the CPU times, the floor beside each."""
    names = ["three products", "frozen layer", "LoRA of PEFT", "naive sine", "naive sine, one product", "bounded"]
    against = ["three products", "LoRA of PEFT", "naive sine"]
    head = [*names, *(f"bounded / {name}" for name in against), "kept / LoRA"]
    print("| type | in × out | tokens | " + " | ".join(head) + " |")
    print("|" + "---|" * (3 + len(head)))
    for result in [result for result in results if "skipped" not in result]:
        label = f"| {result['dtype']} | {result['num_in']} × {result['num_out']} | {result['tokens']} |"
        variants, ratios = result["variants"], result["bounded_relative_to"]
        times = [f"{variants[name]['cpu_ms']['median']:.1f}" for name in names]
        kept = variants["bounded"]["saved_bytes"] / variants["LoRA of PEFT"]["saved_bytes"]
        print(f"{label} " + " | ".join([*times, *(f"{ratios[name]:.2f}" for name in against), f"{kept:.2f}"]) + " |")
    skipped = [f"{r['num_in']} × {r['num_out']} × {r['tokens']} {r['dtype']}" for r in results if "skipped" in r]
    if skipped:
        print(f"\nNot measured within the time limit: {', '.join(skipped)}.")


def main() -> None:
    """Measure, print a table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="768 × 3072, 256 and 1024 tokens, float32 only")
    parser.add_argument("--limit-s", type=float, default=10.0, help="seconds of turns per case")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="only this type")
    parser.add_argument("--total-s", type=float, default=1800.0, help="time limit of the whole run in seconds")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "adapters_cpu.json")
    options = parser.parse_args()
    if options.quick:
        cases = [Case(768, 3072, tokens, "float32") for tokens in (256, 1024)]
    else:
        cases = [Case(*shape, tokens, dtype) for dtype in DTYPES for tokens in TOKENS for shape in SHAPES]
    if options.dtype:
        cases = [case for case in cases if case.dtype == options.dtype]
    results = run(cases, options.limit_s, options.total_s)
    results.sort(key=lambda case: (list(DTYPES).index(str(case["dtype"])), case["num_in"], case["tokens"]))
    print_table(results)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = options.output.with_suffix(".tmp")
    unfinished.write_text(json.dumps({"environment": describe_environment(), "cases": results}, indent=1) + "\n")
    unfinished.replace(options.output)


if __name__ == "__main__":
    main()
