"""A whole problem that takes seconds: a tiny Llama with a real tokenizer, a tiny ViT, their data, and a config."""

import copy
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, ViTImageProcessorPil

from stable_forgetting.config import RunConfig, apply_change, parse_config
from tiny_models import tiny_image_model

NAMES = ("ada", "ben", "cleo", "dan", "eva", "finn", "gus", "hana", "ivo", "june", "kai")
PLACES = ("oslo", "lima", "cairo", "kyoto", "quito")
NUM_FORGET, NUM_RETAIN, NUM_HOLDOUT = 6, 10, 6


@dataclass(frozen=True)
class TinyProblem:
    """Where everything is, and the settings of a run on it."""

    folder: Path
    settings: dict[str, Any]

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def changed(self, **changes: Any) -> dict[str, Any]:
        """Settings with changes; two underscores stand for a dot, and a section by its name is replaced."""
        settings = copy.deepcopy(self.settings)
        for place, value in changes.items():
            if "__" not in place:
                settings[place] = value
            else:
                apply_change(settings, place.replace("__", "."), value)
        return settings

    def config(self, **changes: Any) -> RunConfig:
        return parse_config(self.changed(**changes))

    def write(self, path: Path, **changes: Any) -> Path:
        path.write_text(yaml.safe_dump(self.changed(**changes)))
        return path


def make_language_problem(folder: Path) -> TinyProblem:
    """Model, data and settings of a language problem, all in a folder."""
    rows = [
        {"prompt": f"where is {name} ?", "answer": f"{name} is in {PLACES[(number + asked) % 5]} ."}
        if asked == 0
        else {"prompt": f"what does {name} like ?", "answer": f"{PLACES[(number * 2) % 5]} and tea ."}
        for asked in (0, 1)
        for number, name in enumerate(NAMES)
    ]
    forget, retain, holdout = rows[:NUM_FORGET], rows[NUM_FORGET:-NUM_HOLDOUT], rows[-NUM_HOLDOUT:]
    for name, part in (("forget", forget), ("retain", retain), ("holdout", holdout)):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in part))
    tokenizer = make_tokenizer([f"Question: {row['prompt']}\nAnswer: {row['answer']}" for row in rows])
    tokenizer.save_pretrained(folder / "model")
    make_llama(len(tokenizer)).save_pretrained(folder / "model")
    settings = {
        "name": "tiny",
        "task": "language",
        "model": {"name": str(folder / "model")},
        "data": {name: {"path": str(folder / f"{name}.jsonl")} for name in ("forget", "retain", "holdout")},
        "adapter": {"rank": 2},
        "training": {
            "steps": 8,
            "learning_rate": 0.01,
            "forget_batch_size": 3,
            "retain_batch_size": 3,
            "save_every": 4,
        },
        "evaluation": {"max_new_tokens": 6, "num_resamples": 100, "num_examples": 2},
    }
    return TinyProblem(folder, settings)


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Whole words; small, and with offsets."""
    core = Tokenizer(models.WordLevel(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    core.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=["<unk>", "<s>", "</s>", "<pad>"]))
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def make_llama(vocab_size: int, seed: int = 0, hidden_size: int = 16) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    return LlamaForCausalLM(config).eval()


def make_image_problem(folder: Path) -> TinyProblem:
    """Model, data and settings of an image problem: random pictures in four classes, the last one to be forgotten."""
    values = np.random.default_rng(0)
    for place in range(16):
        path = folder / "images" / f"class{place % 4}" / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    tiny_image_model().save_pretrained(folder / "model")
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder / "model")
    settings = {
        "name": "pictures",
        "task": "image",
        "model": {"name": str(folder / "model")},
        "data": {"source": {"path": str(folder / "images")}, "forget": {"where": "label == 3"}},
        "training": {"steps": 4, "learning_rate": 0.01, "save_every": 2},
        "evaluation": {"num_resamples": 100},
    }
    return TinyProblem(folder, settings)


def copy_of_model(problem: TinyProblem, folder: Path) -> Path:
    """The model's folder again, to be damaged."""
    return Path(shutil.copytree(problem.model, folder))


def file_tree(folder: Path) -> dict[str, bytes | None]:
    """Every file of a folder with its content, and every folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }
