"""The command `forget`.

Commands import what they need when they run, so that `--help` answers at once.
"""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from stable_forgetting import processes
from stable_forgetting.cli import benchmarks
from stable_forgetting.cli.shown import say
from stable_forgetting.errors import StableForgettingError

INTERRUPTED = 130
"""Exit code of a command that was interrupted, as shells have it: 128 + the number of the signal."""


class _Commands(TyperGroup):
    """The commands, interrupted in a sentence."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            how = "with --resume" if ctx.invoked_subcommand == "run" else "by giving the same command again"
            say(f"Interrupted. Continue {how}.")
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    name="forget",
    cls=_Commands,
    help="Make a language model or an image classifier forget, and show that it has.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

app.add_typer(benchmarks.app, name="bench")

ConfigPath = Annotated[Path, typer.Argument(help="A YAML file; configs/ has examples.", metavar="CONFIG")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", help="Change a setting: training.learning_rate=3e-4.", metavar="A.B=C")
]
OutDir = Annotated[Path | None, typer.Option("--out", help="Directory of the run. Default: runs/NAME.")]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Continue an interrupted run, or measure a finished one with other settings."),
]


@app.command()
def run(config: ConfigPath, changes: Changes = None, out: OutDir = None, resume: Resume = False) -> None:
    """Unlearn as a config says: adapter, evidence and report."""
    from stable_forgetting.cli import commands

    commands.run_config(config, changes or [], out, resume=resume)


@app.command()
def compare(config: ConfigPath, changes: Changes = None, out: OutDir = None) -> None:
    """Run several methods on one problem and report on all of them; what is finished is not run again."""
    from stable_forgetting.cli import commands

    commands.compare(config, changes or [], out)


@app.command()
def demo(
    problem: Annotated[Literal["vision", "language", "all"], typer.Argument(help="Which problem.")] = "all",
    out: Annotated[Path, typer.Option("--out", help="Directory of the runs.")] = Path("runs/demo"),
) -> None:
    """Both built-in problems, from training the models to the report; no download."""
    from stable_forgetting.cli import commands

    commands.demo(problem, out)


@app.command()
def check(
    config: ConfigPath,
    changes: Changes = None,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="Number of GPUs; they share each batch.")] = 1,
    sharding: Annotated[
        Literal["none", "fsdp"], typer.Option("--sharding", help="fsdp: the GPUs share the weights, too.")
    ] = "none",
    gpu_memory: Annotated[
        float | None, typer.Option("--gpu-memory", min=0, help="Say what fits into so much memory.", metavar="GIB")
    ] = None,
) -> None:
    """Find all problems of a config before anything is trained, and say what would be adapted and needed."""
    from stable_forgetting.cli import commands

    commands.check(config, changes or [], gpus=gpus, sharding=sharding, gpu_memory_gib=gpu_memory)


@app.command()
def finetune(
    config: ConfigPath,
    out: Annotated[Path, typer.Option("--out", help="Folder of the finished model.")],
    on: Annotated[
        Literal["all", "retain"],
        typer.Option("--on", help="all: forget and retain set (a base model); retain: a retain model."),
    ] = "all",
    changes: Changes = None,
) -> None:
    """Make a base or a retain model from the config's pretrained model."""
    from stable_forgetting.cli import commands

    commands.finetune(config, changes or [], out, on=on)


@app.command(name="eval")
def evaluate(
    config: ConfigPath,
    model: Annotated[
        str | None, typer.Option("--model", help="Name or folder of the model. Default: the config's.")
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option("--adapter", help="Folder of an adapter that is put on the model.")
    ] = None,
    retain_model: Annotated[
        str | None, typer.Option("--retain-model", help="Name or folder of the retain model to compare with.")
    ] = None,
    changes: Changes = None,
    out: Annotated[Path | None, typer.Option("--out", help="JSON file for the metrics.")] = None,
) -> None:
    """Measure a model, with or without an adapter, on a config's sets."""
    from stable_forgetting.cli import commands

    commands.evaluate(config, changes or [], model=model, adapter=adapter, retain_model=retain_model, out=out)


@app.command()
def report(
    run_dirs: Annotated[list[Path], typer.Argument(help="Run directories.", metavar="DIR...")],
    out: Annotated[
        Path | None, typer.Option("--out", help="The page. Default: report.html in the only or the current directory.")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option("--figures", help="Folder for the page's charts as SVG files. Default: none.")
    ] = None,
) -> None:
    """Make one page of one or several runs."""
    from stable_forgetting.cli import commands

    commands.report(run_dirs, out, figures)


@app.command()
def merge(
    run_dir: Annotated[Path, typer.Argument(help="A run directory, or the folder of an adapter.", metavar="DIR")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the merged model.")],
    base: Annotated[
        str | None, typer.Option("--base", help="Name or folder of the base model. Default: as the run used it.")
    ] = None,
) -> None:
    """Fold an adapter into its base model: plain weights that need no package of ours."""
    from stable_forgetting.cli import commands

    commands.merge(run_dir, out, base)


@app.command()
def score(
    benchmark: Annotated[Literal["tofu"], typer.Argument(help="Whose metrics.")],
    log: Annotated[Path, typer.Option("--log", help="TOFU_EVAL.json (also .gz), or the directory of a run.")],
    retain_log: Annotated[
        Path | None,
        typer.Option("--retain-log", help="The same of the retain model. Default: a run's own retain model."),
    ] = None,
    truth_ratio: Annotated[
        Literal["geometric", "arithmetic"], typer.Option("--truth-ratio", help="How wrong answers are put together.")
    ] = "geometric",
    compat: Annotated[
        Literal["open-unlearning"] | None,
        typer.Option("--compat", help="Reproduce its numbers. Default: a run's own."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON to stdout in place of the table.")] = False,
) -> None:
    """Compute a benchmark's metrics anew from the log of an evaluation, without a model."""
    from stable_forgetting.cli import logs

    logs.score_tofu(log, retain_log, truth_ratio=truth_ratio, compat=compat, as_json=as_json)


@app.command()
def export(
    run_dir: Annotated[Path, typer.Argument(help="Directory of a finished run.", metavar="RUN_DIR")],
    out: Annotated[Path, typer.Option("--out", help="Folder for TOFU_EVAL.json and TOFU_SUMMARY.json.")],
    model: Annotated[
        Literal["base", "unlearned", "retain"], typer.Option("--model", help="Which model.")
    ] = "unlearned",
    kind: Annotated[Literal["open-unlearning"], typer.Option("--format", help="Whose log.")] = "open-unlearning",
    retain_log: Annotated[
        Path | None,
        typer.Option("--retain-log", help="Log or run of the retain model. Default: what the run was compared with."),
    ] = None,
) -> None:
    """Write a run's values as an evaluation log of another package."""
    from stable_forgetting.cli import logs

    logs.export(run_dir, model, out, retain_log)


@app.command(name="list")
def list_names(
    what: Annotated[Literal["bounds", "objectives", "metrics", "families"], typer.Argument(help="What to list.")],
) -> None:
    """Show what can be chosen, with a sentence on each."""
    from stable_forgetting.cli import listings

    listings.show(what)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Show the version and stop.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as version_of

        typer.echo(f"forget {version_of('stable-forgetting')}")
        raise typer.Exit


def main() -> None:
    """Run the command line; a user's mistake is one sentence and exit code 2."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of a package that it could use, at its import
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a letter shows another one
    try:
        app()
    except StableForgettingError as error:
        say(str(error))
        sys.exit(2)
    finally:
        processes.leave()
