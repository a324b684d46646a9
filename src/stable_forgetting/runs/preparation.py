"""What comes before all work on a run: its data and its model."""

from __future__ import annotations

from stable_forgetting.config import RunConfig
from stable_forgetting.models.load import load_model
from stable_forgetting.progress import Progress
from stable_forgetting.runs.check import num_outputs, without_content
from stable_forgetting.runs.kept import first_adapted_block, pixel_store
from stable_forgetting.runs.models import RunModels, configured_source
from stable_forgetting.runs.sets import load_set_rows, make_sets, num_classes


def prepare(config: RunConfig, progress: Progress) -> RunModels:
    """Load the data and the configured model, and check everything that can be checked before training."""
    rows = load_set_rows(config.data)
    classes = num_classes(rows, config.data) if config.task == "image" else None
    loaded = load_model(configured_source(config, classes))
    pixels = pixel_store(loaded.task, rows, config.model.disk_cache_gib)
    sets = make_sets(rows, loaded.task, config.data, classes=num_outputs(loaded, config.data), pixels=pixels)
    frozen = first_adapted_block(without_content(loaded.model, config))
    return RunModels(config, sets, loaded, classes, progress, frozen)
