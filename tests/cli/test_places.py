"""Settings of sets, damaged run directories, and places where nothing can be written."""

import shutil

import pytest

from sample_scores import make_run_values
from stable_forgetting.config import parse_config
from stable_forgetting.errors import ConfigError
from stable_forgetting.records import RunRecord, write_record
from stable_forgetting.runs.environment import environment
from tiny_problem import make_language_problem


@pytest.mark.parametrize(
    ("data", "naming"),
    [
        ({"source": {"split": "train"}, "forget": {"where": "label == 3"}}, "data.source: give a 'path'"),
        ({"forget": {"path": "f.jsonl"}}, "need a 'path' each, or a common 'data.source': retain"),
        (
            {"forget": {"path": "f"}, "retain": {"path": "r"}, "holdout": {"limit": 3}},
            "need a 'path' each, or a common 'data.source': holdout",
        ),
        ({"source": {"path": "all.csv"}, "forget": {"limit": 3}}, "data.forget: give a 'where' rule or a 'split'"),
        (
            {"source": {"path": "all.csv"}, "forget": {"split": "x"}, "test": {}},
            "data.test: give a 'where' rule or a 'split'",
        ),
    ],
)
def test_sets_need_a_source_and_a_rule(language, data, naming):
    with pytest.raises(ConfigError, match=naming):
        parse_config(language.settings | {"data": data})


def test_sets_can_be_taken_by_a_split(forget, images, tmp_path):
    rows = [f"{images.folder}/images/class{label}/{place}.png" for place in range(16) for label in [place % 4]]
    table = "image,label,split\n" + "".join(
        f"{path},{place % 4},{'out' if place % 4 == 3 else 'in'}\n" for place, path in enumerate(rows)
    )
    (tmp_path / "all.csv").write_text(table)
    sets = {"source": {"path": str(tmp_path / "all.csv")}, "forget": {"split": "out"}}
    shown = forget("check", images.write(tmp_path / "c.yaml", data=sets))
    assert shown.code == 0, shown.err


def test_what_is_left_out_of_a_folder_is_said_once(forget, images, tmp_path):
    folder = tmp_path / "pictures"
    shutil.copytree(images.folder / "images", folder)
    (folder / "class0" / "notes.txt").touch()
    data = {
        name: {"path": str(folder), "where": f"label {sign} 3"} for name, sign in (("forget", "=="), ("retain", "<"))
    }
    ended = forget("check", images.write(tmp_path / "config.yaml", data=data))
    assert ended.code == 0, ended.err
    assert " ".join(ended.out.split()).count("a subfolder: 1 (first: 'class0/notes.txt')") == 1


@pytest.mark.parametrize("text", ["a: [", "", "name: x\n", "task: language\nmodel: 3\n"])
def test_merge_of_a_run_with_damaged_settings(forget, tmp_path, text):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(text)
    ended = forget("merge", tmp_path / "run", "--out", tmp_path / "out")
    assert ended.code == 2
    assert ended.err.startswith(f"forget: The settings of the run in '{tmp_path}/run' are damaged: ")
    assert "--base" in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize("command", ["run", "compare", "finetune", "eval", "merge", "report", "demo"])
def test_a_file_in_the_way_of_out(forget, language, tmp_path, command):
    config = language.write(tmp_path / "c.yaml", model__finetune={"epochs": 1})
    (tmp_path / "compare.yaml").write_text(config.read_text() + "methods: {sine: {adapter.bound: sine}}\n")
    (tmp_path / "file").write_text("")
    given = {"compare": tmp_path / "compare.yaml", "demo": "language", "merge": tmp_path, "report": _record(tmp_path)}
    ended = forget(command, given.get(command, config), "--out", tmp_path / "file" / "deep" / "out")
    assert ended.code == 2, ended
    assert f"'{tmp_path}/file' is a file" in ended.err
    assert ended.err.count("\n") == 1


def test_a_file_in_the_way_of_figures_leaves_no_page(forget, tmp_path):
    (tmp_path / "file").write_text("")
    ended = forget("report", _record(tmp_path), "--out", tmp_path / "page.html", "--figures", tmp_path / "file")
    assert ended.code == 2, ended
    assert f"'{tmp_path}/file' is a file. Choose another --figures." in ended.err
    assert not (tmp_path / "page.html").exists()


def _record(folder):
    record = RunRecord(
        name="x",
        task="language",
        status="failed",
        created="2025-01-01T00:00:00+00:00",
        config={},
        given={},
        environment=environment(),
        sets=[],
    )
    write_record(record, folder / "recorded")
    return folder / "recorded"


def test_a_folder_is_no_file_for_metrics(forget, language, tmp_path):
    ended = forget("eval", language.write(tmp_path / "c.yaml"), "--out", tmp_path)
    assert ended.code == 2
    assert "is a folder" in ended.err


def test_a_file_in_the_way_of_an_export(forget, tmp_path):
    run_dir = make_run_values(tmp_path / "run")
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "deep"):
        ended = forget("export", run_dir, "--out", out)
        assert ended.code == 2, ended
        assert f"'{tmp_path}/file' is a file" in ended.err


@pytest.mark.parametrize("file", ["inputs.json", "base_model.json"])
def test_a_damaged_file_of_a_run_is_one_sentence_on_resume(forget, language, tmp_path, file):
    config, out = language.write(tmp_path / "c.yaml", training__steps=1), tmp_path / "run"
    assert forget("run", config, "--out", out).code == 0
    (out / file).write_text("{")
    (out / "record.json").unlink()
    ended = forget("run", config, "--out", out, "--resume")
    assert ended.code == 2, ended
    assert f"'{out}/{file}' of the run is damaged" in ended.err
    assert ended.err.count("\n") == 1


def test_a_damaged_list_of_files_is_made_anew(forget, language, tmp_path):
    config, out = language.write(tmp_path / "c.yaml", training__steps=1), tmp_path / "run"
    assert forget("run", config, "--out", out).code == 0
    (out / "files.json").write_text("{")
    assert forget("run", config, "--out", out, "--resume").code == 0


def test_what_may_not_be_read_is_one_sentence(forget, language, tmp_path, monkeypatch):
    def denied(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    record, config = _record(tmp_path), language.write(tmp_path / "c.yaml")
    with monkeypatch.context() as patched:
        patched.setattr(type(record), "read_text", denied)
        ended = forget("report", record, "--out", tmp_path / "r.html")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "cannot be read: Permission denied" in ended.err
    monkeypatch.setattr("stable_forgetting.data.sources._read_local", denied)
    ended = forget("run", config, "--out", tmp_path / "run")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "no right to read" in ended.err


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\\\b", "..", "", "x" * 201, '"a\\0b"'])
def test_a_name_is_that_of_one_folder(forget, language, tmp_path, name):
    ended = forget("run", language.write(tmp_path / "c.yaml"), "--set", f"name={name}", "--out", tmp_path / "run")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "name" in ended.err
    assert "folder" in ended.err or "string" in ended.err


def test_merge_of_a_run_needs_no_data_where_its_model_was_given(forget, tmp_path):
    (tmp_path / "problem").mkdir()
    problem = make_language_problem(tmp_path / "problem")
    config, out = problem.write(tmp_path / "c.yaml", training__steps=1, model__finetune=None), tmp_path / "run"
    assert forget("run", config, "--out", out).code == 0
    for file in problem.folder.glob("*.jsonl"):
        file.unlink()
    ended = forget("merge", out, "--out", tmp_path / "merged")
    assert ended.code == 0, ended.err
    assert (tmp_path / "merged" / "config.json").is_file()


def test_merge_of_a_finetuned_run_without_its_data_says_what_to_give(forget, tmp_path):
    (tmp_path / "problem").mkdir()
    problem = make_language_problem(tmp_path / "problem")
    finetune = {"epochs": 1, "batch_size": 4, "learning_rate": 1e-3}
    config, out = problem.write(tmp_path / "c.yaml", training__steps=1, model__finetune=finetune), tmp_path / "run"
    assert forget("run", config, "--out", out).code == 0
    for file in problem.folder.glob("*.jsonl"):
        file.unlink()
    ended = forget("merge", out, "--out", tmp_path / "merged")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "give the base model with --base" in ended.err


@pytest.mark.parametrize("size", ["inf", "nan", "0", "-1"])
def test_memory_that_no_gpu_has(forget, language, tmp_path, size):
    ended = forget("check", language.write(tmp_path / "c.yaml"), "--gpu-memory", size)
    assert ended.code == 2, ended
    assert "gpu-memory" in ended.err
