"""What keeping scaled images and the outputs of frozen blocks saves, on a vision transformer with pretrained weights.

    python benchmarks/kept_images.py --model BACKBONE_FOLDER --data cifar100.npz

Side by side in one process, on the same images, in turns: scaling images against reading them; a pass over images, a
training step with adapters on the upper blocks, and a step of the head alone, each from the images and from the kept
outputs. The values agree within rounding, which is checked. Times are CPU seconds, medians over the turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import get_peft_model
from PIL import Image

from stable_forgetting.adapters import BoundedLoraConfig
from stable_forgetting.data.array_store import ArrayStore
from stable_forgetting.data.examples import ExampleSet, ImageExample
from stable_forgetting.data.rows import Rows
from stable_forgetting.data.sources import load_rows
from stable_forgetting.data.vision import Process, image_examples
from stable_forgetting.models.load import LoadedModel, ModelSource, load_model
from stable_forgetting.models.tasks import ImageTask
from stable_forgetting.runs.environment import environment
from stable_forgetting.runs.kept import with_kept_trunk
from stable_forgetting.runs.sets import process_with

Step = Callable[[], Any]


def cpu_seconds(step: Step) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    step()
    return time.process_time() - start


def in_turns(steps: dict[str, Step], turns: int) -> dict[str, float]:
    """Median CPU seconds of each step; every turn does each of them once."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(turns):
        for name, step in steps.items():
            seconds[name].append(cpu_seconds(step))
    return {name: statistics.median(found) for name, found in seconds.items()}


def scaling(loaded: LoadedModel, data: Path, count: int, folder: Path, turns: int) -> dict[str, float]:
    """Making examples of raw images: scaled, or read from where they are kept."""
    rows = load_rows(str(data)).first(count)
    process = process_with(loaded.task)
    image_examples(rows, process, name="retain", store=ArrayStore(folder))
    return in_turns(
        {
            "scaled": lambda: image_examples(rows, process, name="retain"),
            "read": lambda: [
                example.pixel_values.sum()  # reads the pages
                for example in image_examples(rows, process, name="retain", store=ArrayStore(folder))
            ],
        },
        turns,
    )


def files(process: Process, count: int, folder: Path, turns: int) -> dict[str, float]:
    """Making examples of image files, JPEG of 640 × 480: decoded and scaled, or known from before."""
    folder.mkdir()
    values = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(values.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        coarse.resize((640, 480)).save(folder / f"{number:04}.jpg", quality=90)
        os.utime(folder / f"{number:04}.jpg", (1_000, 1_000))
    rows = Rows([{"image": str(path), "label": 0} for path in sorted(folder.iterdir())], "files")

    def examples(kept: Path) -> list[torch.Tensor]:
        store = ArrayStore(kept / "images")
        found = image_examples(rows, process, name="retain", store=store, in_memory=False)
        return [example.pixel_values.sum() for example in found]  # reads the pages

    examples(folder.with_name("kept"))
    new = (folder.with_name(f"new{turn}") for turn in range(turns))
    return in_turns(
        {"decoded": lambda: examples(next(new)), "known": lambda: examples(folder.with_name("kept"))}, turns
    )


def passes(loaded: LoadedModel, kept: LoadedModel, examples: list[ImageExample], turns: int) -> dict[str, float]:
    """A forward pass over the images."""
    tasks = {"from images": loaded.task, "from kept outputs": kept.task}

    def forward(task: Any) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = task.predict(loaded.model, task.collate(examples)).logits
        return logits

    torch.testing.assert_close(forward(kept.task), forward(loaded.task), rtol=1e-3, atol=1e-4)
    return in_turns({name: lambda task=task: forward(task) for name, task in tasks.items()}, turns)


def steps(loaded: LoadedModel, kept: LoadedModel, examples: list[ImageExample], turns: int) -> dict[str, float]:
    """A forward and a backward pass."""
    tasks = {"from images": loaded.task, "from kept outputs": kept.task}

    def step(task: Any) -> None:
        loaded.model.zero_grad()
        task.predict(loaded.model, task.collate(examples)).nll_sum.mean().backward()

    return in_turns({name: lambda task=task: step(task) for name, task in tasks.items()}, turns)


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder or hub name of a ViT, DeiT or DINOv2 model")
    parser.add_argument("--data", type=Path, required=True, help="images in a form that data.source takes")
    parser.add_argument("--image-size", type=int, default=84)
    parser.add_argument("--blocks", type=int, default=6, help="blocks below the first adapter")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "kept_images_cpu.json")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["STABLE_FORGETTING_CACHE"] = scratch
        loaded = load_model(ModelSource(chosen.model, "image", image_size=chosen.image_size, num_classes=100))
        assert isinstance(loaded.task, ImageTask)
        rows = load_rows(str(chosen.data)).first(chosen.images)
        examples: ExampleSet[ImageExample] = image_examples(rows, process_with(loaded.task), name="retain")
        batch = list(examples)
        num_blocks = int(loaded.model.config.num_hidden_layers)
        results: dict[str, dict[str, float]] = {
            "2,000 images": scaling(loaded, chosen.data, 2000, Path(scratch) / "images", chosen.turns),
            "500 files": files(process_with(loaded.task), 500, Path(scratch) / "files", chosen.turns),
        }
        kept = with_kept_trunk(loaded, chosen.blocks, len(batch), 1.0)
        results["pass"] = passes(loaded, kept, batch, chosen.turns)
        loaded.model.requires_grad_(False)
        loaded.model.classifier.requires_grad_(True)
        whole = with_kept_trunk(loaded, num_blocks, len(batch), 1.0)
        results["step, head alone"] = steps(loaded, whole, batch, chosen.turns)
        above = list(range(chosen.blocks, num_blocks))
        adapted = get_peft_model(loaded.model, BoundedLoraConfig(layers_to_transform=above))
        loaded = LoadedModel(adapted, loaded.task, loaded.source)
        results["step, adapters"] = steps(loaded, kept, batch, chosen.turns)
    for name, seconds in results.items():
        first, second = seconds
        print(f"{name}: {first} {seconds[first]:.3f} s, {second} {seconds[second]:.3f} s, "
              f"ratio {seconds[first] / seconds[second]:.2f}")  # fmt: skip
    setting = {name: str(value) for name, value in vars(chosen).items() if name not in ("model", "data", "output")}
    content = {"setting": setting, "cpu_s": results, "environment": environment().model_dump()}
    chosen.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
