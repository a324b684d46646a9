"""What is kept is used again, and only for the same inputs: finished runs, values of models, retain logs."""

import gzip
import json
import logging
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from data_paths import shared_data
from stable_forgetting.errors import DataError, NotFiniteError, RunDirectoryError
from stable_forgetting.progress import SilentProgress
from stable_forgetting.runs import likelihoods, pipeline, prepare, run, scoring
from stable_forgetting.runs.check import check_config
from stable_forgetting.runs.files import local_files


@pytest.fixture
def own_files(problem, tmp_path):
    """A copy of the problem's files, to be changed."""
    folder = tmp_path / "files"
    shutil.copytree(problem.folder, folder)
    settings = json.loads(json.dumps(problem.settings).replace(str(problem.folder), str(folder)))
    return type(problem)(folder, settings)


def test_a_finished_run_is_given_back_without_a_look_at_its_inputs(own_files, tmp_path, monkeypatch):
    config = own_files.config()
    record = run(config, tmp_path / "run")
    monkeypatch.setattr(pipeline, "prepare", None)
    assert run(config, tmp_path / "run", resume=True) == record


def test_a_finished_run_is_given_back_if_files_were_written_again_and_refused_if_they_changed(own_files, tmp_path):
    config = own_files.config()
    record = run(config, tmp_path / "run")
    rows = own_files.folder / "forget.jsonl"
    rows.write_text(rows.read_text())
    assert run(config, tmp_path / "run", resume=True) == record
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(RunDirectoryError, match="other inputs \\(changed: forget\\)"):
        run(config, tmp_path / "run", resume=True)


def test_files_behind_links_and_images_in_tables_are_looked_at(problem, tmp_path):
    real, linked = tmp_path / "real", tmp_path / "images"
    real.mkdir()
    linked.mkdir()
    (real / "a.png").write_bytes(b"1")
    (linked / "crab").symlink_to(real)
    assert str(linked / "crab" / "a.png") in local_files(problem.config(retain_model=str(linked)))
    table = problem.config()
    assert local_files(table.model_copy(update={"task": "image"})) is None
    capitals = problem.config(data__forget__path=str(tmp_path / "images.CSV"))
    others = {name: {"path": str(linked)} for name in ("source", "retain", "holdout")}
    data = capitals.data.model_copy(
        update={name: capitals.data.forget.model_copy(update=at) for name, at in others.items()}
    )
    assert local_files(capitals.model_copy(update={"task": "image", "data": data})) is None


def test_another_retain_model_in_the_same_place_is_another_input(own_files, tmp_path):
    shutil.copytree(own_files.model, tmp_path / "retain")
    config = own_files.config(retain_model=str(tmp_path / "retain"))
    before = prepare(config, SilentProgress()).inputs()
    weights = tmp_path / "retain" / "model.safetensors"
    values = bytearray(weights.read_bytes())
    values[-2] ^= 1
    weights.write_bytes(values)
    after = prepare(config, SilentProgress()).inputs()
    assert [name for name in before if before[name] != after[name]] == ["retain model"]


def test_a_kill_while_a_model_is_measured_costs_one_set_at_most(problem, tmp_path, monkeypatch):
    config = problem.config(evaluation__generate=False)
    whole = run(config, tmp_path / "whole")
    measured = []
    real = scoring.score_model

    def killed(*given, keep, role, **options):
        def keep_first(scores):
            keep(scores)
            measured.append((role, *scores.sets))
            if role == "unlearned" and len(scores.sets) == 2 and len(measured) < 99:
                measured.extend([None] * 99)
                raise KeyboardInterrupt

        return real(*given, keep=keep_first, role=role, **options)

    monkeypatch.setattr(scoring, "score_model", killed)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run")
    measured.clear()
    measured.extend([None] * 99)
    resumed = run(config, tmp_path / "run", resume=True)
    assert measured[99:] == [("unlearned", "forget", "retain", "holdout")]
    assert resumed.evaluation("unlearned") == whole.evaluation("unlearned")
    assert [path.name for path in (tmp_path / "run" / "per_example").iterdir() if "part" in path.name] == []


def test_targets_come_from_their_own_set_and_nothing_else_does(problem, tmp_path):
    """The twin takes the same rows as holdout set; attacks meet the other one."""
    lines = (problem.folder / "holdout.jsonl").read_text().splitlines(keepends=True)
    for name, part in (("targets", lines[:3]), ("attacked", lines[3:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(part))
    calibrated = {"objective__name": "calibrated", "evaluation__generate": False}
    holdout = {"data__holdout": {"path": str(tmp_path / "attacked.jsonl")}}
    apart = run(
        problem.config(**calibrated, **holdout, data__targets={"path": str(tmp_path / "targets.jsonl")}),
        tmp_path / "apart",
    )
    same = run(problem.config(**calibrated, data__holdout={"path": str(tmp_path / "targets.jsonl")}), tmp_path / "same")
    other = run(problem.config(**calibrated, **holdout), tmp_path / "other")
    losses = [[step.loss for step in record.history] for record in (apart, same, other)]
    assert losses[0] == losses[1] != losses[2]
    auc = [record.evaluation("base").metric("mia_loss_auc").value for record in (apart, other)]
    assert auc[0] == auc[1]
    assert {found.name for found in apart.sets} == {"forget", "retain", "holdout", "targets"}


def test_the_pretrained_model_is_measured_once(problem, tmp_path, monkeypatch):
    config = problem.config(
        objective={"name": "calibrated_labels", "target": {"places": "pretrained"}},
        model__finetune={"epochs": 1, "batch_size": 4},
        evaluation__generate=False,
        training__steps=2,
    )
    first = run(config, tmp_path / "first")
    monkeypatch.setattr(likelihoods, "score_examples", None)
    second = run(config, tmp_path / "second")
    assert [step.loss for step in second.history] == [step.loss for step in first.history]


def test_damaged_likelihoods_are_measured_again(problem, tmp_path, monkeypatch):
    monkeypatch.setenv("STABLE_FORGETTING_CACHE", str(tmp_path))
    models = prepare(problem.config(), SilentProgress())
    sets = {"forget": models.sets.forget}
    how = likelihoods.Measuring(True, 4, models.progress, "its name")

    def measure():
        return likelihoods.reference_likelihoods(lambda: models.loaded, sets, how, model="its hash")["forget"]

    before = measure()
    (kept,) = tmp_path.glob("likelihoods/*.json")
    kept.write_text(kept.read_text()[:100])
    np.testing.assert_array_equal(measure().label_nll, before.label_nll)


@pytest.fixture
def with_log(problem, tmp_path):
    """Config whose retain model is a published log, on the rows that the log is of."""
    logs, rows = shared_data("tofu_logs"), shared_data("tofu")
    name = "Llama-3.2-1B-Instruct_retain99.json.gz"

    def make(limit=None, prompts=None, **changes):
        entries = json.loads(gzip.decompress((logs / name).read_bytes()))
        if prompts is not None:
            for entry in (key for key in entries if key.endswith("_ROUGE")):
                for value in entries[entry]["value_by_index"].values():
                    value["input"] = prompts(value["input"])
        log = tmp_path / "TOFU_EVAL.json"
        log.write_text(json.dumps(entries))
        forget = {"path": str(rows / "forget01_perturbed.json"), "prompt": "question", "limit": limit}
        retain = {"path": str(rows / "retain_perturbed.json"), "prompt": "question"}
        return problem.config(
            data={"forget": forget, "retain": retain},
            model__name=str(shared_data("models/stories260K")),
            retain_log=str(log),
            evaluation__generate=False,
            **changes,
        )

    return make


def test_a_log_of_other_examples_is_refused_before_anything_is_measured(with_log, tmp_path):
    config = with_log(limit=4)
    with pytest.raises(DataError, match=r"different forget examples \(4 and 40\)"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert any("different forget examples" in problem for problem in check_config(config).problems)


def test_a_log_with_other_prompts_is_told_of(with_log, caplog):
    def ours(logged):
        question = logged.split("user\n\n", 1)[1].removesuffix("assistant\n\n")
        return f"Question: {question}\nAnswer:"

    for prompts, told in ((None, 2), (ours, 0)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert check_config(with_log(prompts=prompts)).problems == []
        assert sum("prompts differ" in record.message for record in caplog.records) == told


class Bars:
    """Keeps the bars that were opened: what they say, how much there was to do, and how much was done."""

    def __init__(self):
        self.opened = []

    @contextmanager
    def track(self, description, total, unit):
        bar = {"description": description, "total": total, "unit": unit, "done": 0}
        self.opened.append(bar)
        yield lambda count: bar.update(done=bar["done"] + count)


def test_whatever_models_are_asked_is_shown_to_its_end(problem, tmp_path, monkeypatch):
    monkeypatch.setenv("STABLE_FORGETTING_CACHE", str(tmp_path / "cache"))
    config = problem.config(
        objective={"name": "calibrated_distribution", "target": {"places": "pretrained"}},
        model__finetune={"epochs": 1, "batch_size": 4},
        training__steps=2,
    )
    bars = Bars()
    run(config, tmp_path / "run", progress=bars)
    counts = {bar["description"]: (bar["total"], bar["unit"]) for bar in bars.opened}
    sets = prepare(config, SilentProgress()).sets.by_name
    forget, holdout = (len(sets[name]) for name in ("forget", "holdout"))
    assert counts["pretrained model: likelihood of forget"] == (forget, "answers")
    assert counts["pretrained model: likelihood of holdout"] == (holdout, "answers")
    assert counts["base model: target distributions"] == (forget, "answers")
    assert [bar["done"] for bar in bars.opened] == [bar["total"] for bar in bars.opened]


def test_a_base_model_that_was_made_anew_does_not_go_on_with_the_adapter_of_another(problem, tmp_path, monkeypatch):
    monkeypatch.setenv("STABLE_FORGETTING_CACHE", str(tmp_path / "cache"))
    config = problem.config(model__finetune={"epochs": 3}, training__steps=2)

    def fail(*_, **__):
        raise NotFiniteError("stopped here")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "train", fail)
        with pytest.raises(NotFiniteError):
            run(config, tmp_path / "run")
    for folder in (tmp_path / "cache" / "models").iterdir():  # another version's finetuning ends elsewhere
        weights = load_file(folder / "model.safetensors")
        save_file(
            {name: 1.01 * value for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"}
        )
    with pytest.raises(RunDirectoryError, match="was begun on a base model with other weights"):
        run(config, tmp_path / "run", resume=True)
    assert not (tmp_path / "run" / "adapter").exists()


def test_another_pad_token_gives_other_reference_values_and_a_model_with_it(own_files, tmp_path, monkeypatch):
    """It decides what open-unlearning's protocol hides, and who taught the model first may have had another one."""
    monkeypatch.setenv("STABLE_FORGETTING_CACHE", str(tmp_path / "cache"))
    config = own_files.config(
        evaluation__compat="open-unlearning", evaluation__generate=False, training__steps=1, merge=True,
        model__finetune={"epochs": 1},
    )  # fmt: skip
    first = run(config, tmp_path / "first")
    tokenizer = AutoTokenizer.from_pretrained(own_files.model)
    tokenizer.pad_token = ":"  # in every prompt
    tokenizer.save_pretrained(own_files.model)
    second = run(config, tmp_path / "second")
    monkeypatch.setenv("STABLE_FORGETTING_CACHE", str(tmp_path / "empty"))
    fresh = run(config, tmp_path / "fresh")
    before, after, expected = (found.evaluation("base").metric("forget_nll").value for found in (first, second, fresh))
    assert before != after == expected
    assert AutoTokenizer.from_pretrained(tmp_path / "second" / "merged").pad_token == ":"


def test_a_finished_run_is_given_back_though_its_models_were_deleted(own_files, tmp_path):
    shutil.copytree(own_files.model, tmp_path / "merged")
    config = own_files.config(base_model=str(tmp_path / "merged"))
    record = run(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "merged")
    assert run(config, tmp_path / "run", resume=True) == record
    (own_files.folder / "forget.jsonl").unlink()
    with pytest.raises(DataError):
        run(config, tmp_path / "run", resume=True)


def test_what_a_kill_left_of_a_finetuning_is_cleared_away(problem, tmp_path, monkeypatch):
    monkeypatch.setenv("STABLE_FORGETTING_CACHE", str(tmp_path / "cache"))
    config = problem.config(model__finetune={"epochs": 1})
    prepare(config, SilentProgress()).base()
    (folder,) = (tmp_path / "cache" / "models").iterdir()
    left = folder.with_name(f"{folder.name}.training")
    left.mkdir()
    models = prepare(config, SilentProgress())
    models.base()
    assert not left.exists()
    assert models.seconds["base"] > 0
