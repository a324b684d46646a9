"""A tiny problem, a run on it that all tests may read, and what a run needs around it."""

from pathlib import Path

import pytest
import torch

from stable_forgetting.records import RunRecord
from stable_forgetting.runs import run
from tiny_problem import TinyProblem, make_language_problem


@pytest.fixture(scope="session")
def problem(tmp_path_factory) -> TinyProblem:
    return make_language_problem(tmp_path_factory.mktemp("problem"))


@pytest.fixture(scope="module", autouse=True)
def own_surroundings(tmp_path_factory):
    """A cache that no other module sees, and one thread, so that every run gives the same bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        patch.setenv("STABLE_FORGETTING_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finished(problem, tmp_path_factory, own_surroundings) -> tuple[RunRecord, Path]:
    """A finished run with a merged model; not to be changed."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    config = problem.config(merge=True, training__evaluate_every=4)
    return run(config, run_dir, given=problem.settings), run_dir
