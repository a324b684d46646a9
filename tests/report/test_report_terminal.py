"""The same tables on the command line."""

import io

import pytest
from rich.console import Console
from sample_records import comparison, failed_run, image_run, language_run

from stable_forgetting.report import render_table
from stable_forgetting.report.blocks import BlockTable


def shown(tables: list[BlockTable], width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    for table in tables:
        console.print(table)
    return console.file.getvalue()


def test_single_run_shows_three_models_and_direction():
    text = shown(render_table([language_run("calibrated-sine")]))
    for part in ("0.946", "near retain", "▲", "lower"):
        assert part in text


def test_comparison_shows_methods_references_and_failures():
    text = shown(render_table(comparison()))
    for part in ("base model", "retain model", "gd-lora-seed0", "(3 seeds)", "±0.004"):
        assert part in text
    assert "gd-lora-fast failed: NotFiniteError" in text


def test_a_comparison_fits_90_columns():
    text = shown(render_table([language_run("calibrated-sine"), language_run("gd-lora")]), width=90)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 90


@pytest.mark.parametrize("width", [80, 60, 40])
@pytest.mark.parametrize("seeds", [1, 3])
def test_numbers_are_never_cut(width, seeds):
    """Method names of the benchmark are long; the numbers of several seeds are as well."""
    runs = []
    for bound in ("gradient_difference-identity-mlp", "calibrated_chance-sine-attention"):
        for seed in range(seeds):
            run = image_run()
            settings = {
                **run.config,
                "name": f"maple_tree-{bound}-seed{seed}",
                "bound": bound,
                "training": {"seed": seed},
            }
            runs.append(run.model_copy(update={"name": settings["name"], "config": settings}))
    spread = "0.985±0.000▲" if seeds > 1 else "0.985▲"
    for records, at_least in ((runs, 2), (runs[:seeds], 1)):
        text = shown(render_table(records), width=width)
        assert text.count(spread) >= at_least
        assert text.count("0.985") == text.count(spread)
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= width


def test_each_problem_has_a_table_and_a_failed_run_its_reason():
    assert len(render_table([*comparison(), image_run()])) == 2
    assert "The gradient norm is infinite" in shown(render_table([failed_run()]))


def test_markup_in_names_is_shown_and_not_obeyed():
    record = language_run("gd-sine").model_copy(update={"name": "[bold]x[/bold]"})
    assert "[bold]x[/bold]" in shown(render_table([record]))
