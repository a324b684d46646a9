"""What is kept is made once, also by runs at the same time."""

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from stable_forgetting.errors import DataError, RunDirectoryError
from stable_forgetting.progress import SilentProgress
from stable_forgetting.runs import models, run
from stable_forgetting.runs.cache import alone_in, made_once
from stable_forgetting.runs.models import RunModels
from stable_forgetting.runs.preparation import prepare
from tiny_problem import make_language_problem


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STABLE_FORGETTING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("stable_forgetting.runs.cache.SECONDS_BETWEEN_TRIES", 0.02)
    return tmp_path / "cache"


def test_one_at_a_time():
    inside, most = [], []

    def work(_):
        with made_once("name", "a model"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))
    assert most == [1] * 8


def test_what_failed_can_be_made_again(caplog):
    with pytest.raises(ValueError, match="broken"), made_once("name", "a model"):
        raise ValueError("broken")
    with made_once("name", "a model"):
        assert "Another run" not in caplog.text


def test_the_second_run_says_that_it_waits(caplog):
    started, done = threading.Event(), threading.Event()

    def first():
        with made_once("name", "the base model"):
            started.set()
            done.wait(5)

    thread = threading.Thread(target=first)
    thread.start()
    started.wait(5)
    threading.Timer(0.1, done.set).start()
    with caplog.at_level(logging.WARNING), made_once("name", "the base model"):
        assert done.is_set()
    thread.join()
    assert "Another run is making the base model." in caplog.text
    with made_once("other", "the base model"):
        pass


def test_a_cache_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STABLE_FORGETTING_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot be used.*Set STABLE_FORGETTING_CACHE"), made_once("name", "a model"):
        pass


def test_two_runs_make_the_same_model_once(tmp_path, monkeypatch):
    """What makes and reads models is replaced: transformers cannot read two of them in threads of one process."""
    problem = make_language_problem(tmp_path)
    config = problem.config(model__finetune={"epochs": 1, "learning_rate": 0.01})
    runs = [prepare(config, SilentProgress()) for _ in range(2)]
    made = []

    def make(_, folder, *__):
        made.append(folder)
        time.sleep(0.2)  # long enough for the other one to come here, too
        folder.mkdir(parents=True)

    monkeypatch.setattr(RunModels, "_make", make)
    monkeypatch.setattr(models, "load_model", lambda source: replace(runs[0].loaded, source=source.name))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda run: run.base(), runs))
    assert len(made) == 1


def test_one_process_at_a_time_is_at_work_in_a_run_directory(tmp_path):
    config = make_language_problem(tmp_path).config()
    with alone_in(tmp_path / "run"), pytest.raises(RunDirectoryError, match=r"Another process is at work in '.*run'"):
        run(config, tmp_path / "elsewhere" / ".." / "run")
    assert not (tmp_path / "run").exists()
    assert run(config, tmp_path / "run").status == "finished"
