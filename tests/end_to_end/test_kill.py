"""Kill -9 in the middle: what is resumed gives the same bits as what was never interrupted."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stable_forgetting.records import finetuning_phase, read_record
from stable_forgetting.runs import run

LONGEST_WAIT_S = 120
STEPS = 60


def kill_when(command: list[object], reached: Callable[[], bool], cache: Path) -> None:
    """Start a command and kill it, without a chance to tidy up, as soon as it has come so far."""
    surroundings = os.environ | {"OMP_NUM_THREADS": "1", "STABLE_FORGETTING_CACHE": str(cache)}
    words = [sys.executable, "-c", "from stable_forgetting.cli.main import main; main()", *map(str, command)]
    process = subprocess.Popen(words, env=surroundings, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + LONGEST_WAIT_S
        while not reached():
            assert process.poll() is None, f"ended before it could be killed: {process.stderr.read().decode()[-2000:]}"
            assert time.monotonic() < deadline, "did not come so far in time"
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL


def complete_checkpoints(folder: Path) -> list[int]:
    return sorted(int(marker.parent.name.rpartition("-")[2]) for marker in folder.glob("checkpoint-*/complete"))


def adapter_bytes(run_dir: Path) -> bytes:
    return (run_dir / "adapter" / "adapter_model.safetensors").read_bytes()


def test_a_killed_unlearning_ends_with_the_same_bits(problem, tmp_path, monkeypatch):
    changes = {"training__steps": STEPS, "training__save_every": 5, "evaluation__generate": False}
    changes |= {"objective__name": "npo", "training__evaluate_every": 10}
    config_path, killed = problem.write(tmp_path / "config.yaml", **changes), tmp_path / "killed"
    checkpoints = killed / "checkpoints"
    command = ["run", config_path, "--out", killed]
    kill_when(command, lambda: len(complete_checkpoints(checkpoints)) >= 2, tmp_path / "cache")
    left = complete_checkpoints(checkpoints)
    assert left[-1] < STEPS
    assert not (killed / "adapter").exists()
    assert not (killed / "record.json").exists()

    config = problem.config(**changes)
    resumed = run(config, killed, resume=True)
    whole = run(config, tmp_path / "whole")
    assert adapter_bytes(killed) == adapter_bytes(tmp_path / "whole")
    assert [step.model_dump() for step in resumed.history] == [step.model_dump() for step in whole.history]
    assert len(resumed.history) == STEPS
    assert resumed.certificate == whole.certificate
    assert read_record(killed) == resumed


def test_a_killed_finetuning_ends_with_the_same_bits(problem, tmp_path, monkeypatch):
    """The base model is taught first; the kill comes while that is going on."""
    changes = {
        "model__finetune": {"epochs": 16, "batch_size": 4, "learning_rate": 0.01},
        "evaluation__generate": False,
        "training__steps": 3,
    }
    config_path, killed = problem.write(tmp_path / "config.yaml", **changes), tmp_path / "killed"
    cache = tmp_path / "cache"
    folders = cache / "models"

    def half_way() -> bool:
        return any(complete_checkpoints(folder) for folder in folders.glob("*.training/training-0"))

    kill_when(["run", config_path, "--out", killed], half_way, cache)
    assert not (killed / "checkpoints").exists()
    working = list(folders.glob("*.training"))
    assert len(working) == 1
    assert not working[0].with_suffix("").exists()

    config = problem.config(**changes)
    monkeypatch.setenv("STABLE_FORGETTING_CACHE", str(cache))
    resumed = run(config, killed, resume=True)
    assert not list(folders.glob("*.training"))
    monkeypatch.setenv("STABLE_FORGETTING_CACHE", str(tmp_path / "another_cache"))
    whole = run(config, tmp_path / "whole")
    assert resumed.models == whole.models
    assert set(whole.models) == {"base", "retain"}
    assert adapter_bytes(killed) == adapter_bytes(tmp_path / "whole")
    assert {finetuning_phase(role) for role in ("base", "retain")} <= set(resumed.timings)


def test_a_run_killed_before_its_first_checkpoint_starts_again(problem, finished, tmp_path):
    """Half a directory, as a kill leaves it: the settings, and a checkpoint without its marker."""
    from stable_forgetting.runs import RunDirectory

    record, whole = finished
    config = problem.config(merge=True, training__evaluate_every=4)
    RunDirectory(tmp_path / "run").claim(config, {})
    half = tmp_path / "run" / "checkpoints" / "checkpoint-4"
    half.mkdir(parents=True)
    (half / "adapter_model.safetensors").write_bytes(b"half")
    again = run(config, tmp_path / "run", resume=True)
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(whole)
    assert again.history == record.history


@pytest.mark.parametrize("name", ["merged", "per_example", "record.json"])
def test_what_a_late_kill_leaves_is_made_good(problem, finished, tmp_path, name):
    """Killed while the merged model, the values or the record were being written."""
    import shutil

    record, whole = finished
    run_dir = Path(shutil.copytree(whole, tmp_path / "run"))
    (run_dir / "record.json").unlink()
    if name == "per_example":
        shutil.rmtree(run_dir / "per_example")
    if name == "merged":
        (run_dir / "merged" / "model.safetensors").write_bytes(b"half")
    again = run(problem.config(merge=True, training__evaluate_every=4), run_dir, resume=True)
    assert adapter_bytes(run_dir) == adapter_bytes(whole)
    assert (run_dir / "merged" / "model.safetensors").read_bytes() == (
        whole / "merged" / "model.safetensors"
    ).read_bytes()
    assert again.certificate == record.certificate
    assert [step.loss for step in again.history] == [step.loss for step in record.history]
