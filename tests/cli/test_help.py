"""Help, version, listings and `forget check`."""

import os
import re
import subprocess
import sys

import pytest
import typer

from stable_forgetting.adapters import BOUNDS, MLP_LAYERS
from stable_forgetting.cli.main import app
from stable_forgetting.evaluation import METRICS
from stable_forgetting.objectives import OBJECTIVES

COMMANDS = {
    "run",
    "compare",
    "demo",
    "check",
    "finetune",
    "eval",
    "report",
    "merge",
    "list",
    "score",
    "export",
    "bench",
}


def click_commands():
    return typer.main.get_command(app).commands


def test_the_commands_are_these():
    assert set(click_commands()) == COMMANDS


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_and_option_has_help(forget, command):
    found = click_commands()[command]
    assert found.help
    assert found.help.rstrip().endswith(".")
    for parameter in found.params:
        assert parameter.help, f"{command}: {parameter.name} has no help"
    shown = forget(command, "--help")
    assert shown.code == 0
    plain = " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", shown.out).split())
    assert " ".join(found.help.split())[:40] in plain


@pytest.mark.parametrize("command", ["tofu", "class-deletion", "run"])
def test_every_benchmark_and_option_has_help(forget, command):
    found = click_commands()["bench"].get_command(None, command)
    assert found.help.rstrip().endswith(".")
    for parameter in found.params:
        assert parameter.help, f"{command}: {parameter.name} has no help"
    shown = forget("bench", command, "--help")
    assert shown.code == 0
    assert f"forget bench {command}" in shown.out


def test_version_is_shown(forget):
    shown = forget("--version")
    assert shown.code == 0
    assert re.fullmatch(r"forget \d+\.\d+\.\d+\S*\n", shown.out)


@pytest.mark.parametrize(
    ("what", "names"),
    [("bounds", BOUNDS), ("objectives", OBJECTIVES), ("metrics", METRICS), ("families", MLP_LAYERS)],
)
def test_listings_show_every_name(forget, what, names):
    shown = forget("list", what)
    assert shown.code == 0
    for name in names:
        assert name in shown.out, name


def test_an_unknown_command_or_listing_is_refused(forget):
    assert forget("lists").code == 2
    assert forget("list", "bonds").code == 2


def test_check_shows_what_a_run_would_do_and_need(forget, language, tmp_path):
    shown = forget("check", language.write(tmp_path / "config.yaml"))
    assert shown.code == 0, shown.err
    for part in ("forget", "retain", "holdout", "trainable parameters", "base weights", "activations", "logits"):
        assert part in shown.out, part
    for text in ("6: ", "layers.0.mlp", "No problems found."):
        assert text in shown.out, text
    assert list(tmp_path.iterdir()) == [tmp_path / "config.yaml"]


def test_check_of_images(forget, images, tmp_path):
    shown = forget("check", images.write(tmp_path / "config.yaml"))
    assert shown.code == 0, shown.err
    assert "No problems found." in shown.out


def test_check_names_all_problems_at_once(forget, language, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    config = language.write(
        tmp_path / "config.yaml",
        adapter__bound="sinus",
        objective__name="npoo",
        training__best_metric="forget_nul",
        training__evaluate_every=2,
        data__forget__path=str(tmp_path / "empty.jsonl"),
        model__name=str(tmp_path / "nothing"),
        retain_model=str(tmp_path / "nobody"),
    )
    shown = forget("check", config)
    assert shown.code == 2
    for text in ("'sinus'", "'npoo'", "'forget_nul'", "empty.jsonl", "nothing'", "nobody'"):
        assert text in shown.err, text


def test_check_says_problems_first_and_guesses_no_memory(forget, language, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    changes = {"adapter__rank": 2, "objective__name": "npoo", "data__forget__path": str(tmp_path / "empty.jsonl")}
    shown = forget("check", language.write(tmp_path / "config.yaml", **changes))
    assert shown.code == 2
    assert [line[: len("forget: ")] for line in shown.err.splitlines()] == ["forget: "] * 2
    known = forget("check", language.write(tmp_path / "config.yaml", objective__name="npo"))
    assert "base weights" in known.out
    unread = forget("check", language.write(tmp_path / "config.yaml", data__forget__path=str(tmp_path / "empty.jsonl")))
    assert unread.code == 2
    assert "trainable parameters" in unread.out
    assert "GiB" not in unread.out, "what examples need that could not be read is not known"


def test_check_counts_the_same_as_the_adapter(forget, language, tmp_path):
    """Rank 2 on three layers of two blocks, 16 and 32 wide: 2 × 2 × 3 × (16 + 32) = 576."""
    shown = forget("check", language.write(tmp_path / "config.yaml"))
    assert re.search(r"trainable parameters\s+│?\s*576\b", shown.out), shown.out


def test_a_terminal_without_some_letters_shows_others_and_no_foreign_lines():
    """In a process of its own: streams and the log are those of the terminal there."""
    surroundings = os.environ | {"PYTHONIOENCODING": "ascii", "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(
        [sys.executable, "-m", "stable_forgetting", "list", "objectives"],
        env=surroundings,
        capture_output=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert b"npo" in ended.stdout
