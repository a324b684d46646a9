"""What commands say while and after they work, and tables in terminals of any width."""

import io
import logging
import re
import sys

import pytest
from rich.console import Console
from rich.table import Table

from sample_scores import make_run_values
from stable_forgetting.cli import progress
from stable_forgetting.cli.shown import show_tables
from stable_forgetting.records import RunRecord, write_record
from stable_forgetting.runs.environment import environment

NUMBERS = ("0.123456789", "123,456,789", "1.2e-10")


def shown(width: int) -> str:
    table = Table(title="three models")
    for name in ("model", "forget\nprobability", "parameters", "what it is"):
        table.add_column(name, no_wrap=True)
    for name in ("base-model", "retain-model"):
        table.add_row(name, NUMBERS[0], NUMBERS[1], f"{NUMBERS[2]} and some words that may stand on several lines")
    table.caption = "a caption"
    console = Console(file=io.StringIO(), width=width, color_system=None)
    show_tables(console, [table])
    return console.file.getvalue()


@pytest.mark.parametrize("width", [200, 80, 60, 40, 32])
def test_words_are_whole_in_any_terminal(width):
    text = shown(width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for part in (*NUMBERS, "base-model", "retain-model", "probability", "several", "caption"):
        assert part in text, part


def test_a_row_becomes_a_block_only_where_it_has_to():
    assert re.search(r"base-model +│ +0\.123456789 +│ +123,456,789", shown(80))
    assert re.search(
        r"^model: base-model\n  forget +0\.123456789 *\n  probability *\n  parameters +123,456,789", shown(40), re.M
    )


@pytest.mark.parametrize("what", ["bounds", "objectives", "metrics", "families"])
def test_listings_in_80_columns(forget, monkeypatch, what):
    monkeypatch.setenv("COLUMNS", "200")
    words = set(re.findall(r"[\w.]+", forget("list", what).out))
    monkeypatch.setenv("COLUMNS", "80")
    narrow = forget("list", what).out
    assert "…" not in narrow
    assert words <= set(re.findall(r"[\w.]+", narrow))


def test_brackets_and_colons_in_paths_are_shown_and_not_obeyed(forget, tmp_path):
    """Rich would end at a closing tag that was never opened, leave opening ones out, and draw a picture for `:x:`."""
    write_record(
        RunRecord(
            name="[i]a",
            task="language",
            status="failed",
            created="2026-01-01T00:00:00",
            config={},
            environment=environment(),
        ),
        tmp_path / "run",
    )
    page, figures = tmp_path / "y[" / "b]:x:.html", tmp_path / "[v2]"
    done = forget("report", tmp_path / "run", "--out", page, "--figures", figures)
    assert done.code == 0, done.err
    assert f"{page}" in done.out.replace("\n", "")
    assert f"in {figures}" in done.out.replace("\n", "")
    values = make_run_values(tmp_path / "[" / "b] values")
    exported = forget("export", values, "--out", tmp_path / "[" / "b] log")
    assert exported.code == 0, exported.err
    assert f"Written: {tmp_path / '[' / 'b] log'}" in exported.out.replace("\n", "")
    scored = forget("score", "tofu", "--log", tmp_path / "[" / "b] log" / "TOFU_EVAL.json")
    assert scored.code == 0, scored.err
    gone = forget("report", tmp_path / "[" / "b]:x:")
    assert (gone.code, f"{tmp_path / '[' / 'b]:x:'}" in gone.err) == (2, True)


def test_a_run_and_the_same_again(forget, language, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "WORTH_A_LINE", 0)
    monkeypatch.setenv("COLUMNS", "80")
    config, run_dir = language.write(tmp_path / "c.yaml"), tmp_path / "run"
    first = forget("run", config, "--out", run_dir)
    assert first.code == 0, first.err
    for line in ("unlearning: 8 steps in ", "base model: likelihood of forget: 6 answers in "):
        assert line in first.out, line
    assert "finished before" not in first.out
    again = forget("run", config, "--out", run_dir, "--resume")
    assert re.search(r"Nothing was run: this run of \d{4}-\d\d-\d\d \d\d:\d\d UTC was finished before\.", again.out)
    assert "unlearning" not in again.out.split("finished before")[0]
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler(sys.stderr)])
    measured = forget("run", config, "--out", run_dir, "--resume", "--set", "evaluation.num_examples=1")
    assert " ".join(measured.out.split()).count("measured again, not trained again") == 1
    assert "measured again" not in measured.err, "a root handler of another library shows no note twice"
    assert "Nothing was run" not in measured.out
    assert "<dt>Measured again</dt>" in (run_dir / "report.html").read_text()
    readme = (run_dir / "adapter" / "README.md").read_text()
    for part in (
        "bound sine, rank 2, omega 100",
        "load_adapter",
        f'from_pretrained("{language.model}")',
        "forget merge",
    ):
        assert part in readme, part
    assert "More Information Needed" not in readme
    assert "$" not in readme
