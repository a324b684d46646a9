"""Where a model's files are, and whether they are ones that may be read."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from stable_forgetting.errors import ModelError

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def resolve_folder(name: str) -> str:
    """The folder or hub name behind a model's name.

    Raises:
        ModelError: A package is not installed, or a local folder has no safetensors weights.
    """
    if name.startswith("package:"):
        package = name.removeprefix("package:")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ModelError(f"The package '{package}' of the model '{name}' is not installed. Install it with pip.")
        return str(spec.submodule_search_locations[0])
    path = Path(name).expanduser()
    if path.is_dir():
        _check_weights(path)
        return str(path)
    if path.is_file():
        raise ModelError(f"The model '{name}' is a file. Give the folder that holds config.json and the weights.")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"No model folder at '{name}'. Give an existing folder or a hub name such as 'org/model'.")
    return name


def _check_weights(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        inside = "an adapter: give its base model" if (folder / "adapter_config.json").is_file() else "no config.json"
        raise ModelError(f"The model folder '{folder}' holds {inside}. Give a folder made by save_pretrained.")
    if any(folder.glob("*.safetensors")) or any(folder.glob("*.gguf")):
        return
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickles:
        raise ModelError(
            f"The model folder '{folder}' holds pickled weights ({pickles[0]}), which can run code when read. "
            "Convert them to safetensors first."
        )
    raise ModelError(f"The model folder '{folder}' holds no *.safetensors weights. Save the model again.")
