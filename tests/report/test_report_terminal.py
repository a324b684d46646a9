"""The same tables on the command line."""

import io

from rich.console import Console
from rich.table import Table
from sample_records import comparison, failed_run, image_run, language_run

from stable_forgetting.report import render_table


def shown(tables: list[Table]) -> str:
    console = Console(file=io.StringIO(), width=200, color_system=None)
    for table in tables:
        console.print(table)
    return console.file.getvalue()


def test_single_run_shows_three_models_gap_and_direction():
    text = shown(render_table([language_run("calibrated-sine")]))
    for part in ("0.946", "0.042 to 0.174", "−0.004", "closer ▲", "not available [1]", "lower is better", "D 0.311"):
        assert part in text
    assert "[1] The retain model is what the test compares with." in text


def test_comparison_shows_methods_references_and_failures():
    text = shown(render_table(comparison()))
    for part in ("Base model", "Retain model", "gd-lora-seed0", "mean of 3 seeds", "± 0.004, 3 seeds"):
        assert part in text
    assert "gd-lora-fast failed: NotFiniteError" in text


def test_each_problem_has_a_table_and_a_failed_run_its_reason():
    assert len(render_table([*comparison(), image_run()])) == 2
    assert "The gradient norm is infinite" in shown(render_table([failed_run()]))


def test_markup_in_names_is_shown_and_not_obeyed():
    record = language_run("gd-sine").model_copy(update={"name": "[bold]x[/bold]"})
    assert "[bold]x[/bold]" in shown(render_table([record]))
