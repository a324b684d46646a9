"""`forget bench`: published benchmarks, each a comparison of methods.

The options of a benchmark are written once, in `config/benchmark_options.py`; the commands are made of them when one is
asked for, so that `forget --help` loads nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

OutDir = Annotated[
    Path | None, typer.Option("--out", help="Directory of the runs. Default: a name in runs/ made of the options.")
]
Changes = Annotated[list[str] | None, typer.Option("--set", help="Change a setting of all runs.", metavar="A.B=C")]


class _Benchmarks(TyperGroup):
    """Besides `run`, one command for each benchmark."""

    def list_commands(self, ctx: Any) -> list[str]:
        from stable_forgetting.config.benchmark_options import BENCHMARKS

        return [*BENCHMARKS, *super().list_commands(ctx)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        from stable_forgetting.config.benchmark_options import BENCHMARKS

        if cmd_name not in BENCHMARKS:
            return super().get_command(ctx, cmd_name)
        single = typer.Typer(add_completion=False)
        single.command(name=cmd_name, help=inspect.getdoc(BENCHMARKS[cmd_name]))(
            _command(cmd_name, BENCHMARKS[cmd_name])
        )
        return typer.main.get_command(single)


app = typer.Typer(
    cls=_Benchmarks, help="Run a published benchmark: models, methods, evaluation and one report.", no_args_is_help=True
)


@app.callback()
def _group() -> None:
    """Keeps `run` a command of its own."""


@app.command()
def run(
    experiment: Annotated[Path, typer.Argument(help="A YAML file; experiments/ has examples.", metavar="FILE")],
    model: Annotated[str | None, typer.Option("--model", help="Another model.")] = None,
    data: Annotated[str | None, typer.Option("--data", help="Other data.")] = None,
    split: Annotated[str | None, typer.Option("--split", help="Another split, of TOFU.")] = None,
    changes: Changes = None,
    out: OutDir = None,
) -> None:
    """Run a declared experiment: a benchmark with its options in a file; what is finished is not run again."""
    from stable_forgetting.cli import commands
    from stable_forgetting.config.benchmark_options import load_experiment

    options = load_experiment(experiment, _given(model=model, data=data, split=split, set=changes))
    name = "-".join(part for part in (options.benchmark, experiment.stem, split) if part)
    commands.run_benchmark(options, out or Path("runs") / name)


def _command(name: str, options: Any) -> Callable[..., None]:
    """A function with one parameter for each option of a benchmark, as typer reads it."""

    def command(out: Path | None, **given: Any) -> None:
        from stable_forgetting.cli import commands
        from stable_forgetting.config.benchmark_options import parse_benchmark

        parsed = parse_benchmark(name, _given(**given))
        commands.run_benchmark(parsed, out or Path("runs") / parsed.title)

    fields = {field: info for field, info in options.model_fields.items() if info.description}
    parameters = [_parameter(field, info) for field, info in fields.items()]
    parameters.append(inspect.Parameter("out", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=OutDir))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _parameter(name: str, info: Any) -> inspect.Parameter:
    """An option is text here, and checked where experiment files are checked; left out, it has its default there."""
    default = ",".join(map(str, info.default)) if isinstance(info.default, tuple) else info.default
    shown = f" Default: {default}." if default and isinstance(default, str) else ""
    option = typer.Option(f"--{name.replace('_', '-')}", help=f"{info.description}{shown}")
    keyword = inspect.Parameter.KEYWORD_ONLY
    if info.is_required():
        return inspect.Parameter(name, keyword, annotation=Annotated[str, option])
    if info.annotation is bool:
        return inspect.Parameter(name, keyword, annotation=Annotated[bool, option], default=False)
    kind = Changes if name == "set" else Annotated[str | None, option]
    return inspect.Parameter(name, keyword, annotation=kind, default=None)


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given; changes of settings by their places."""
    from stable_forgetting.config import parse_change

    found = {name: value for name, value in options.items() if value not in (None, False, [])}
    if "set" in found:
        found["set"] = dict(parse_change(change) for change in found["set"])
    return found
