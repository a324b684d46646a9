"""What is kept is made once, also by runs at the same time."""

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from stable_forgetting.locks import locked
from stable_forgetting.progress import SilentProgress
from stable_forgetting.runs import models
from stable_forgetting.runs.cache import made_once
from stable_forgetting.runs.pipeline import prepare
from tiny_problem import make_language_problem


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STABLE_FORGETTING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_one_at_a_time(tmp_path):
    inside, most, waited = [], [], []

    def work(_):
        with locked(tmp_path / "lock", on_wait=lambda: waited.append(1)):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))
    assert most == [1] * 8
    assert waited


def test_a_lock_is_let_go_when_its_holder_fails(tmp_path):
    with pytest.raises(ValueError, match="broken"), locked(tmp_path / "lock"):
        raise ValueError("broken")
    with locked(tmp_path / "lock", on_wait=pytest.fail):
        pass


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


def test_two_runs_make_the_same_model_once(tmp_path, monkeypatch):
    problem = make_language_problem(tmp_path)
    config = problem.config(model__finetune={"epochs": 1, "learning_rate": 0.01})
    taught, teach = [], models.teach

    def counted(*given, **named):
        taught.append(1)
        time.sleep(0.2)  # long enough for the other one to come here, too
        return teach(*given, **named)

    monkeypatch.setattr(models, "teach", counted)
    runs = [prepare(config, SilentProgress()) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda run: run.base().model.state_dict(), runs))
    assert len(taught) == 1
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
