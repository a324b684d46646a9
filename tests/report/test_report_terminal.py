"""The same tables on the command line."""

import io

import pytest
from rich.console import Console
from rich.table import Table
from sample_records import comparison, failed_run, image_run, language_run

from stable_forgetting.report import render_table


def shown(tables: list[Table], width: int = 200) -> str:
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


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_no_number_is_cut_at_any_width(width):
    """What a wide terminal shows is shown in a narrow one, in several tables."""
    wide = shown(render_table([*comparison(), image_run()]), width=400).split()
    narrow = shown(render_table([*comparison(), image_run()]), width=width)
    assert "…" not in narrow
    assert max(map(len, narrow.splitlines())) <= width
    numbers = [word for word in wide if word[0].isdigit()]
    assert len(numbers) > 20
    assert sorted(word for word in narrow.split() if word[0].isdigit()) == sorted(numbers)


def test_each_problem_has_a_table_and_a_failed_run_its_reason():
    assert len(render_table([*comparison(), image_run()])) == 2
    assert "The gradient norm is infinite" in shown(render_table([failed_run()]))


def test_markup_in_names_is_shown_and_not_obeyed():
    record = language_run("gd-sine").model_copy(update={"name": "[bold]x[/bold]"})
    assert "[bold]x[/bold]" in shown(render_table([record]))
