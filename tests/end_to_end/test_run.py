"""A whole run: what it leaves, what it says, and that others can use it."""

import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from stable_forgetting.cli.main import main
from stable_forgetting.errors import RunDirectoryError
from stable_forgetting.models.load import model_sha256
from stable_forgetting.records import read_record
from stable_forgetting.runs import pipeline, preparation, run, validation
from tiny_problem import NUM_FORGET, NUM_HOLDOUT, NUM_RETAIN, file_tree, make_image_problem, make_llama


@pytest.fixture
def forget(monkeypatch, capsys):
    """Run `forget ARGUMENTS` in this process; gives back what it printed."""

    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["forget", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code, capsys.readouterr().err
        return capsys.readouterr().out

    yield call
    ours = logging.getLogger("stable_forgetting")
    ours.handlers.clear()
    ours.propagate = True


def logits_of(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(12)[None]).logits


def test_a_run_leaves_everything(finished, problem):
    record, run_dir = finished
    files = {"record.json", "config.yaml", "inputs.json", "files.json", "base_model.json"}
    assert {path.name for path in run_dir.iterdir()} == files | {"adapter", "per_example", "checkpoints", "merged"}
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (run_dir / "adapter" / name).is_file()
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {"checkpoint-4", "checkpoint-8"}
    assert {path.name for path in (run_dir / "per_example").iterdir()} == {"base.json", "unlearned.json"}
    for role, path in record.per_example_paths.items():
        assert json.loads((run_dir / path).read_text()), role
    assert yaml.safe_load((run_dir / "config.yaml").read_text()) == record.config
    for folder in ("adapter", "merged"):
        names = {path.name for path in (run_dir / folder).iterdir()}
        assert not {name for name in names if name.endswith((".bin", ".pt", ".pkl"))}
    assert record.given == problem.settings


def test_the_record_round_trips_and_is_complete(finished):
    record, run_dir = finished
    assert read_record(run_dir) == record
    assert record.status == "finished"
    assert record.error is None
    assert [step.step for step in record.history] == list(range(1, 9))
    assert all(step.loss is not None and step.grad_norm is not None for step in record.history)
    assert [step.step for step in record.history if step.validation] == [4, 8]
    assert {found.name: found.count for found in record.sets} == {
        "forget": NUM_FORGET,
        "retain": NUM_RETAIN,
        "holdout": NUM_HOLDOUT,
    }
    assert {"retain model", "base model", "unlearning", "evaluation", "merging"} <= set(record.timings)
    assert record.environment.versions["torch"] == torch.__version__
    assert record.peak_memory_bytes > 1e6
    assert record.examples


def test_forgetting_goes_the_right_way(finished):
    record, _ = finished
    before, after = (record.evaluation(role).metric("forget_nll").value for role in ("base", "unlearned"))
    assert after > before + 0.05
    assert record.history[-1].forget_term < record.history[0].forget_term


def test_the_certificate_holds(finished):
    record, _ = finished
    assert len(record.certificate) == 6
    assert record.adapter.num_trainable == 576
    for layer in record.certificate:
        assert layer.holds is True
        assert 0 < layer.largest_entry <= layer.entry_limit == layer.scale == record.adapter.scales[layer.layer]
        assert layer.frobenius_norm <= layer.frobenius_limit
    assert record.history[-1].largest_entry == pytest.approx(max(layer.largest_entry for layer in record.certificate))


def test_metrics_are_there_or_say_why_not(finished):
    record, _ = finished
    assert [found.role for found in record.evaluations] == ["base", "unlearned"]
    base, unlearned = record.evaluations
    assert [metric.name for metric in base.metrics] == [metric.name for metric in unlearned.metrics]
    available = {metric.name for metric in unlearned.metrics if metric.value is not None}
    assert {"forget_nll", "retain_nll"} <= available
    missing = [metric for metric in unlearned.metrics if metric.value is None]
    assert missing
    for metric in missing:
        assert metric.reason
    for metric in unlearned.metrics:
        assert (metric.value is None) == (metric.reason is not None), metric.name
        if metric.low is not None:
            assert metric.low <= metric.value <= metric.high, metric.name
    reasons = {metric.name: metric.reason for metric in missing}
    assert "give retain_model" in reasons["forget_nll_ks"]


def test_the_base_model_is_the_one_in_the_record(finished, problem):
    record, _ = finished
    assert record.models == {"base": model_sha256(AutoModelForCausalLM.from_pretrained(problem.model))}


def test_a_second_run_needs_resume_and_then_only_reads(finished, problem, monkeypatch):
    record, run_dir = finished
    config, before = problem.config(merge=True, training__evaluate_every=4), file_tree(run_dir)
    with pytest.raises(RunDirectoryError, match="--resume"):
        run(config, run_dir)
    monkeypatch.setattr(preparation, "load_model", lambda _: pytest.fail("a finished run loaded its model"))
    monkeypatch.setattr(pipeline, "train", lambda *_, **__: pytest.fail("a finished run was trained again"))
    assert run(config, run_dir, resume=True) == record
    assert file_tree(run_dir) == before


def test_a_retain_model_gives_gaps(problem, tmp_path):
    retain = shutil.copytree(problem.model, tmp_path / "retain")
    make_llama(_vocabulary_size(problem), seed=1).save_pretrained(retain)
    record = run(problem.config(retain_model=str(retain), training__steps=2), tmp_path / "run")
    assert [found.role for found in record.evaluations] == ["base", "unlearned", "retain"]
    reasons = [metric.reason for metric in record.evaluation("unlearned").metrics if metric.reason]
    assert reasons == ["needs test texts; give data.test"]
    assert 0 <= record.evaluation("unlearned").metric("forget_nll_ks").value <= 1
    assert set(record.models) == {"base", "retain"}
    assert record.models["base"] != record.models["retain"]
    assert (tmp_path / "run" / "per_example" / "retain.json").is_file()


def _vocabulary_size(problem) -> int:
    return json.loads((problem.model / "config.json").read_text())["vocab_size"]


MERGED_LOGITS = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in sys.argv[2:]:
    AutoTokenizer.from_pretrained(folder)
models = [AutoModelForCausalLM.from_pretrained(folder) for folder in sys.argv[2:]]
assert "stable_forgetting" not in sys.modules and "peft" not in sys.modules
with torch.no_grad():
    torch.save([model(torch.arange(12)[None]).logits for model in models], sys.argv[1])
"""


def test_merged_models_need_nothing_of_ours(finished, problem, forget, tmp_path):
    """The merged model of the run, and the one of `forget merge`, in a process that has no package of ours."""
    _, run_dir = finished
    assert "Merged model" in forget("merge", run_dir, "--out", tmp_path / "whole_run")
    forget("merge", run_dir / "adapter", "--base", problem.model, "--out", tmp_path / "adapter_alone")
    folders = [run_dir / "merged", tmp_path / "whole_run", tmp_path / "adapter_alone"]
    command = [sys.executable, "-c", MERGED_LOGITS, tmp_path / "logits.pt", *folders]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    base = AutoModelForCausalLM.from_pretrained(problem.model)
    before = logits_of(base)
    expected = logits_of(PeftModel.from_pretrained(base, run_dir / "adapter").eval())
    assert (expected - before).abs().max() > 0.01
    for logits in torch.load(tmp_path / "logits.pt"):
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_eval_gives_the_numbers_of_the_record(finished, problem, forget, tmp_path):
    record, run_dir = finished
    config = problem.write(tmp_path / "config.yaml")
    for role, options in (("unlearned", ["--adapter", run_dir / "adapter"]), ("base", [])):
        shown = forget("eval", config, *options, "--out", tmp_path / f"{role}.json")
        found = json.loads((tmp_path / f"{role}.json").read_text())
        assert found["role"] == role
        assert [one["name"] for one in found["metrics"]] == [metric.name for metric in record.evaluation(role).metrics]
        expected = [metric.model_dump() for metric in record.evaluation(role).metrics]
        for one, other in zip(found["metrics"], expected, strict=True):
            assert one.pop("details") == pytest.approx(other.pop("details"))
            assert one == pytest.approx(other)
            assert one["name"] in shown


def test_the_command_writes_a_report(problem, forget, tmp_path):
    config = problem.write(tmp_path / "config.yaml", name="ours", training__steps=2)
    shown = forget("run", config, "--out", tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "ours" in page
    assert "forget_nll" in shown or "forget NLL" in shown or "NLL" in shown
    assert "report.html" in shown.replace("\n", "")
    shown_again = forget("report", tmp_path / "run", "--out", tmp_path / "again.html", "--figures", tmp_path / "charts")
    assert f"Figures: {len([*(tmp_path / 'charts').glob('*.svg')])} in" in shown_again
    assert _without_dates((tmp_path / "again.html").read_text()) == _without_dates(page)
    assert "finished before" not in shown
    assert "finished before" in forget("run", config, "--out", tmp_path / "run", "--resume")


def test_a_comparison_says_what_was_finished(problem, forget, tmp_path):
    config = yaml.safe_load(problem.write(tmp_path / "config.yaml", training__steps=1).read_text())
    path = tmp_path / "compare.yaml"
    for names in (["sine"], ["sine", "tanh"]):
        path.write_text(yaml.safe_dump(config | {"methods": {name: {"adapter.bound": name} for name in names}}))
        shown = forget("compare", path, "--out", tmp_path / "out")
    assert "sine: finished before (" in shown
    assert "tanh: " in shown
    (tmp_path / "out" / "other").mkdir()
    (tmp_path / "out" / "other" / "record.json").write_text("{")
    path.write_text(yaml.safe_dump(config | {"methods": {"tanh": {"adapter.bound": "tanh"}}}))
    shown = " ".join(forget("compare", path, "--out", tmp_path / "out").split())
    assert "sine: finished" not in shown
    assert "other/record.json' is damaged" in shown
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(f">{name}<" in page for name in ("sine", "tanh")), "the page loses no run of the folder"


def _without_dates(page: str) -> str:
    return re.sub(r"\d{4}-\d\d-\d\d[T ][\d:+]*", "", page)


def test_images_go_through_the_same_pipeline(tmp_path):
    problem = make_image_problem(tmp_path)
    record = run(problem.config(), tmp_path / "run")
    assert record.status == "finished"
    assert {found.name: found.count for found in record.sets} == {"forget": 4, "retain": 12}
    assert record.evaluation("unlearned").metric("forget_accuracy").value is not None
    assert record.history[-1].forget_term < record.history[0].forget_term
    assert any("hardly knows the data" in sentence and "(chance: 0.250)" in sentence for sentence in record.verdicts)


def test_a_failed_run_says_so_and_can_be_finished(finished, problem, tmp_path, monkeypatch):
    """The failure comes in the middle of the training, after a checkpoint."""
    whole, _ = finished
    config = problem.config(merge=True, training__evaluate_every=4)
    measure = validation.validation_metrics
    calls = []

    def break_down(*given):
        calls.append(given)
        if len(calls) == 2:
            raise MemoryError("no memory left")
        return measure(*given)

    with monkeypatch.context() as patch:
        patch.setattr(validation, "validation_metrics", break_down)
        with pytest.raises(MemoryError):
            run(config, tmp_path / "run")
    failed = read_record(tmp_path / "run")
    assert failed.status == "failed"
    assert failed.error == "MemoryError: no memory left"
    record = run(config, tmp_path / "run", resume=True)
    assert read_record(tmp_path / "run") == record
    assert record.status == "finished"
    assert record.error is None
    assert [step.loss for step in record.history] == [step.loss for step in whole.history]
    assert record.evaluation("unlearned") == whole.evaluation("unlearned").model_copy(
        update={"source": record.evaluation("unlearned").source}
    )


def test_the_default_directory_is_named_after_the_run(problem, forget, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    forget("run", problem.write(tmp_path / "config.yaml", training__steps=1, name="mine"))
    assert (Path("runs") / "mine" / "record.json").is_file()
