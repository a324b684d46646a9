"""`forget bench`: published benchmarks, each a comparison of methods."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stable_forgetting.errors import ConfigError

app = typer.Typer(help="Run a published benchmark: models, methods, evaluation and one report.", no_args_is_help=True)


@app.command()
def tofu(
    model: Annotated[str, typer.Option("--model", help="Hub name or folder of the model.")],
    split: Annotated[str, typer.Option("--split", help="forget01, forget05, forget10 or tofu-20.")] = "forget10",
    data: Annotated[str, typer.Option("--data", help="Hub name or folder of the data.")] = "locuslab/TOFU",
    retain_model: Annotated[
        str | None,
        typer.Option("--retain-model", help="Given: --model is the base model. Else both are finetuned from --model."),
    ] = None,
    retain_log: Annotated[
        str | None, typer.Option("--retain-log", help="TOFU_EVAL.json of a retain model in its place.")
    ] = None,
    objectives: Annotated[str, typer.Option("--objectives", help="Names, with commas.")] = "gradient_difference",
    bounds: Annotated[str, typer.Option("--bounds", help="Names, with commas.")] = "identity,sine",
    seeds: Annotated[str, typer.Option("--seeds", help="Numbers, with commas.")] = "0",
    changes: Annotated[list[str] | None, typer.Option("--set", help="Change a setting.", metavar="A.B=C")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Directory of the runs. Default: runs/tofu-SPLIT.")] = None,
) -> None:
    """TOFU, from the pretrained model to the table; what is finished is not run again."""
    from stable_forgetting.bench import TofuModels, tofu_comparison
    from stable_forgetting.cli import commands
    from stable_forgetting.config import parse_change

    comparison = tofu_comparison(
        TofuModels(model, retain_model, retain_log),
        split,
        data=data,
        objectives=_names("--objectives", objectives),
        bounds=_names("--bounds", bounds),
        seeds=_numbers(seeds),
        changes=[parse_change(change) for change in changes or []],
    )
    commands.run_benchmark(comparison, out or Path("runs") / f"tofu-{split}")


def _names(option: str, text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError(f"{option} is '{text}', which names nothing. Give one or several, with commas between them.")
    return names


def _numbers(text: str) -> list[Any]:
    try:
        return [int(number) for number in _names("--seeds", text)]
    except ValueError as error:
        raise ConfigError(
            f"--seeds is '{text}'. Give whole numbers with commas between them, such as 0,1,2."
        ) from error
