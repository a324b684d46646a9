"""Images of plain colours with noise, in an archive and in folders, and a tiny vision transformer for them."""

from pathlib import Path

import numpy as np
from PIL import Image
from transformers import ViTImageProcessorPil

from tiny_models import tiny_image_model

CLASSES = ("apple", "beetle", "crab", "daisy", "eel", "fig")
SUPERCLASSES = ("animals", "plants")
COARSE = (1, 0, 0, 1, 0, 1)
NUM_TRAIN, NUM_TEST = 10, 3
"""Images of each class."""


def make_pixels(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """So many images of each class, in mixed order, and their labels."""
    values = np.random.default_rng(seed)
    labels = values.permutation(np.repeat(np.arange(len(CLASSES)), count))
    colours = np.random.default_rng(7).integers(40, 216, (len(CLASSES), 1, 1, 3))
    noise = values.integers(-30, 31, (len(labels), 8, 8, 3))
    return (colours[labels] + noise).astype(np.uint8), labels


def make_archive(path: Path, *, coarse: bool = True) -> Path:
    """An archive with a training and a test part."""
    arrays = {"class_names": np.array(CLASSES)}
    for seed, (split, count) in enumerate((("train", NUM_TRAIN), ("test", NUM_TEST))):
        arrays[f"x_{split}"], arrays[f"y_{split}"] = make_pixels(count, seed)
        if coarse:
            arrays[f"coarse_{split}"] = np.array(COARSE)[arrays[f"y_{split}"]]
    if coarse:
        arrays["coarse_names"] = np.array(SUPERCLASSES)
    np.savez(path, **arrays)
    return path


def make_folder(folder: Path) -> Path:
    """The training images, one folder per class, without a test part."""
    for number, (pixels, label) in enumerate(zip(*make_pixels(NUM_TRAIN, 0), strict=True)):
        place = folder / CLASSES[label] / f"{number:03}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place)
    return folder


def make_model(folder: Path, num_labels: int = 4, seed: int = 0) -> Path:
    """A model with its image processor; with 4 labels its head does not fit the images."""
    tiny_image_model(seed=seed, num_labels=num_labels).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder)
    return folder
