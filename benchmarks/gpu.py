"""Time, memory and error of one adapted layer on an NVIDIA card, forward and backward, beside its least possible cost.

    python benchmarks/gpu.py            # all cases that fit into the time limit
    python benchmarks/gpu.py --check    # only say whether there is a card; exit code 2 if there is none

The variants take turns, timed by CUDA events after a warm-up; ratios are medians of the ratios within a turn. Between
the runs of a turn the second-level cache is overwritten, as it would be by the other layers of a model. Memory is the
peak of a forward and backward pass above what the inputs and weights take. Errors are against float64.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from adapters import DTYPES, OMEGA, RANK, SHAPES, Case, describe_environment, make_variants
from stable_forgetting.adapters import LowRankChange, bounded_linear, get_bound, kernels

TOKENS = [4096, 1024, 256, 64, 16384]  # in the order of interest
FLOOR, PEFT_LORA, TORCH_PATH, KERNEL_PATH = "three products", "LoRA of PEFT", "bounded, torch", "bounded, kernels"
WARM_UP, FEWEST_TURNS, MOST_TURNS = 3, 5, 30
NO_DEVICE = 2
FLUSH_BYTES = 256 * 2**20


@contextmanager
def torch_path() -> Iterator[None]:
    """Take the torch code although the kernels could run."""
    original = kernels.available
    kernels.available = lambda device: False
    try:
        yield
    finally:
        kernels.available = original


def without_kernels(step: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with torch_path():
            return step()

    return run


def make_steps(case: Case) -> dict[str, Callable[[], object]]:
    """One forward and backward pass of every variant, all on the card."""
    steps = {name: step for name, (step, _) in make_variants(case, "cuda").items()}
    bounded = steps.pop("bounded")
    return {**steps, TORCH_PATH: without_kernels(bounded), KERNEL_PATH: bounded}


def take_ms(step: Callable[[], object], flush: Tensor) -> float:
    """Milliseconds of one call on the card, with a cold cache."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flush.zero_()
    start.record()
    step()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop)


def peak_bytes(step: Callable[[], object]) -> int:
    """Most memory above the start during one call."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure(case: Case, limit_s: float) -> dict[str, object]:
    """All variants of a case in turns, as many as the limit allows."""
    steps, flush = make_steps(case), torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    peaks = {name: peak_bytes(step) for name, step in steps.items()}
    start, turns = time.perf_counter(), []
    while len(turns) < FEWEST_TURNS or (len(turns) < MOST_TURNS and time.perf_counter() - start < limit_s):
        turns.append({name: take_ms(step, flush) for name, step in steps.items()})
    results = {}
    for name in steps:
        low, middle, high = statistics.quantiles((turn[name] for turn in turns), n=4)
        results[name] = {"ms": {"median": middle, "quartiles": [low, high]}, "peak_bytes": peaks[name]}
    ratios = {
        other: statistics.median(turn[KERNEL_PATH] / turn[other] for turn in turns)
        for other in steps
        if other != KERNEL_PATH
    }
    return {**vars(case), "turns": len(turns), "variants": results, "kernels_relative_to": ratios}


def measure_errors(case: Case) -> dict[str, dict[str, float]]:
    """Relative errors of the output and the gradients of x, A and B against float64, norm over norm."""
    torch.manual_seed(1)
    dtype, rank, scale = DTYPES[case.dtype], RANK, case.num_in**-0.5
    weight = (torch.randn(case.num_out, case.num_in, device="cuda") * scale).to(dtype)
    a = torch.randn(rank, case.num_in, device="cuda") * scale
    b = torch.randn(case.num_out, rank, device="cuda")
    x = torch.randn(case.tokens, case.num_in, device="cuda", dtype=dtype)
    dy = torch.randn(case.tokens, case.num_out, device="cuda", dtype=dtype)

    def naive(x: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
        delta = scale * torch.sin(OMEGA * (b @ a))
        return torch.nn.functional.linear(x, weight + delta.to(weight.dtype))

    def ours(x: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return bounded_linear(x, weight, None, [LowRankChange(a, b, get_bound("sine"), OMEGA, scale)])

    def run(function: Callable[..., Tensor], convert: Callable[[Tensor], Tensor]) -> list[Tensor]:
        leaves = [convert(tensor).detach().requires_grad_() for tensor in (x, a, b)]
        output = function(leaves[0], convert(weight), *leaves[1:])
        return [output.detach(), *torch.autograd.grad(output, leaves, convert(dy))]

    exact = run(naive, Tensor.double)
    found = {"naive sine, one product": run(naive, Tensor.clone), KERNEL_PATH: run(ours, Tensor.clone)}
    with torch_path():
        found[TORCH_PATH] = run(ours, Tensor.clone)
    names = ["output", "x", "lora_a", "lora_b"]
    return {
        variant: {
            name: float((value.double() - want).norm() / want.norm())
            for name, value, want in zip(names, values, exact, strict=True)
        }
        for variant, values in found.items()
    }


def run(cases: list[Case], limit_s: float, total_s: float) -> list[dict[str, object]]:
    """Measure until the time is over; what does not fit into time or memory is left out, with the reason."""
    results: list[dict[str, object]] = []
    start = time.perf_counter()
    for case in cases:
        if time.perf_counter() - start > total_s:
            results.append({**vars(case), "skipped": f"the time limit of {total_s:.0f} s was over"})
            continue
        try:
            result = measure(case, limit_s)
            if case.tokens == 1024:  # float64 products of the largest layer take a second each
                result["relative_errors"] = measure_errors(case)
        except torch.cuda.OutOfMemoryError as error:
            result = {**vars(case), "skipped": f"out of memory: {error}".splitlines()[0]}
        results.append(result)
        torch.cuda.empty_cache()
        ratios = result.get("kernels_relative_to", result.get("skipped"))
        print(f"{case}: kernels relative to {ratios}", flush=True)
        if "relative_errors" in result:
            print(f"    errors {result['relative_errors']}", flush=True)
    return results


def print_table(results: list[dict[str, object]]) -> None:
    """Markdown table: milliseconds, and the two ratios that have targets."""
    measured = [result for result in results if "skipped" not in result]
    if not measured:
        return
    names = list(measured[0]["variants"])
    head = [*names, "speed of the floor kept", "time / LoRA of PEFT", "peak / LoRA of PEFT"]
    print("| type | in × out | tokens | " + " | ".join(head) + " |\n|" + "---|" * (3 + len(head)))
    for result in measured:
        variants, ratios = result["variants"], result["kernels_relative_to"]
        times = [f"{variants[name]['ms']['median']:.3f}" for name in names]
        peak = variants[KERNEL_PATH]["peak_bytes"] / variants[PEFT_LORA]["peak_bytes"]
        ends = [f"{1 / ratios[FLOOR]:.2f}", f"{ratios[PEFT_LORA]:.2f}", f"{peak:.2f}"]
        label = f"| {result['dtype']} | {result['num_in']} × {result['num_out']} | {result['tokens']} |"
        print(label, " | ".join([*times, *ends]), "|")


def describe_card() -> dict[str, object]:
    """The card and the libraries on it, beside what the CPU benchmark writes down."""
    import triton

    properties = torch.cuda.get_device_properties(0)
    return {
        **describe_environment(),
        "card": properties.name,
        "capability": list(torch.cuda.get_device_capability(0)),
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "tf32_in_products": torch.backends.cuda.matmul.allow_tf32,
    }


def main() -> int:
    """Measure, print a table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say whether there is a card that the kernels run on")
    parser.add_argument("--limit-s", type=float, default=2.0, help="seconds of turns per case")
    parser.add_argument("--total-s", type=float, default=170.0, help="no case is begun after so many seconds")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"There is no CUDA device for torch {torch.__version__}: nothing was measured.", file=sys.stderr)
        return NO_DEVICE
    if not kernels.available(torch.device("cuda")):
        print("The kernels cannot run here: they need Triton and an NVIDIA card from Ampere on.", file=sys.stderr)
        return NO_DEVICE
    print(json.dumps(describe_card()))
    if options.check:
        return 0
    cases = [Case(*shape, tokens, dtype) for tokens in TOKENS for dtype in reversed(DTYPES) for shape in SHAPES[::-1]]
    results = run(cases, options.limit_s, options.total_s)
    results.sort(key=lambda case: (str(case["dtype"]), case["num_in"], case["tokens"]))
    print_table(results)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = options.output.with_suffix(".tmp")
    unfinished.write_text(json.dumps({"environment": describe_card(), "cases": results}, indent=1) + "\n")
    unfinished.replace(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
