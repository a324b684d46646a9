"""One tiny problem of each task, and the command line in this process."""

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import transformers

from stable_forgetting.cli.main import main
from tiny_problem import TinyProblem, make_image_problem, make_language_problem


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def language(tmp_path_factory: pytest.TempPathFactory) -> TinyProblem:
    return make_language_problem(tmp_path_factory.mktemp("language"))


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> TinyProblem:
    return make_image_problem(tmp_path_factory.mktemp("images"))


@pytest.fixture(autouse=True)
def own_surroundings(tmp_path_factory, monkeypatch):
    """A cache and a current directory that no other test sees, one thread, and the settings of the log put back."""
    monkeypatch.setenv("STABLE_FORGETTING_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))
    threads, level = torch.get_num_threads(), transformers.utils.logging.get_verbosity()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    transformers.utils.logging.set_verbosity(level)
    transformers.utils.logging.enable_progress_bar()
    ours = logging.getLogger("stable_forgetting")
    ours.handlers.clear()
    ours.propagate = True


@pytest.fixture
def forget(monkeypatch, capsys) -> Callable[..., Finished]:
    """Run `forget ARGUMENTS` in this process."""

    def call(*arguments: object) -> Finished:
        monkeypatch.setattr(sys, "argv", ["forget", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        captured = capsys.readouterr()
        return Finished(code, captured.out, captured.err)

    return call
