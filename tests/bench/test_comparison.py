"""Comparisons: one method that fails, and folders that hold other runs."""

import pytest
import yaml

from stable_forgetting.bench import Comparison, load_comparison, run_comparison
from stable_forgetting.bench import comparison as module
from stable_forgetting.errors import ConfigError, NotFiniteError, RunDirectoryError
from stable_forgetting.progress import SilentProgress
from stable_forgetting.records import read_record
from stable_forgetting.runs import pipeline
from tiny_problem import make_language_problem

METHODS = {"sine": {"adapter.bound": "sine"}, "tanh": {"adapter.bound": "tanh"}, "identity": {"adapter.rank": 1}}


@pytest.fixture
def problem(tmp_path, monkeypatch):
    monkeypatch.setenv("STABLE_FORGETTING_CACHE", str(tmp_path / "cache"))
    (tmp_path / "problem").mkdir()
    return make_language_problem(tmp_path / "problem")


@pytest.fixture
def broken(monkeypatch):
    """Make the training of one method fail."""
    train = pipeline.train

    def break_it(method, error):
        def train_or_fail(*args, output_dir, **options):
            if output_dir.parent.name == method:
                raise error
            return train(*args, output_dir=output_dir, **options)

        monkeypatch.setattr(pipeline, "train", train_or_fail)

    return break_it


def run_all(comparison, out_dir):
    return list(run_comparison(comparison, out_dir, progress=SilentProgress()))


@pytest.mark.parametrize("error", [NotFiniteError("the loss is infinite"), RuntimeError("out of memory")])
def test_a_method_that_fails_does_not_keep_the_others_from_running(problem, tmp_path, broken, error):
    broken("tanh", error)
    notes = ["No test images.", "For choosing settings."]
    records = run_all(Comparison(problem.changed(training__steps=2), METHODS, notes=notes), tmp_path / "out")
    assert [(record.name, record.status) for record in records] == [
        ("sine", "finished"),
        ("tanh", "failed"),
        ("identity", "finished"),
    ]
    assert str(error) in records[1].error
    assert [read_record(tmp_path / "out" / name).notes for name in METHODS] == [notes] * 3


def test_what_starts_from_a_failed_method_is_left_out(problem, tmp_path, broken):
    broken("tanh", NotFiniteError("the loss is infinite"))
    after = {"identity": "tanh"}
    records = run_all(Comparison(problem.changed(training__steps=2), METHODS, after=after), tmp_path / "out")
    assert [(record.name, record.status) for record in records] == [("sine", "finished"), ("tanh", "failed")]
    assert not (tmp_path / "out/identity").exists()


def test_a_folder_with_other_settings_is_refused_before_anything_runs(problem, tmp_path):
    methods = {"tanh": METHODS["tanh"]}
    run_all(Comparison(problem.changed(training__steps=2), methods), tmp_path / "out")
    before = read_record(tmp_path / "out/tanh")
    with pytest.raises(RunDirectoryError, match=r"training\.steps: 2 there, 3 now"):
        run_all(Comparison(problem.changed(training__steps=3), METHODS), tmp_path / "out")
    assert read_record(tmp_path / "out/tanh") == before
    assert not (tmp_path / "out/sine").exists()


def test_the_failure_of_an_earlier_attempt_is_not_shown_for_this_one(problem, tmp_path, broken, monkeypatch):
    comparison = Comparison(problem.changed(training__steps=2), {"tanh": METHODS["tanh"]})
    broken("tanh", NotFiniteError("the loss is infinite"))
    assert run_all(comparison, tmp_path / "out")[0].status == "failed"

    def fail_early(*_, **__):
        raise NotFiniteError("before any record")

    monkeypatch.setattr(module, "run", fail_early)
    with pytest.raises(NotFiniteError, match="before any record"):
        run_all(comparison, tmp_path / "out")


def test_a_bug_is_not_a_failed_method(problem, tmp_path, broken):
    broken("tanh", KeyError("a bug"))
    with pytest.raises(KeyError, match="a bug"):
        run_all(Comparison(problem.changed(training__steps=2), METHODS), tmp_path / "out")


@pytest.mark.parametrize(
    ("place", "of"), [("adapter.bound", "adapter.bound"), ("adapter", "adapter.bound"), ("name", "name")]
)
def test_a_change_that_methods_undo_is_refused(problem, tmp_path, place, of):
    path = tmp_path / "comparison.yaml"
    path.write_text(yaml.safe_dump({**problem.changed(), "methods": METHODS}, sort_keys=False))
    with pytest.raises(
        ConfigError, match=f"'{place}' cannot be changed for all runs, because the method 'sine' sets '{of}'"
    ):
        load_comparison(path, [(place, "tanh")])
    changed = load_comparison(path, [("training.steps", 3)])
    assert {config.training.steps for config in changed.configs().values()} == {3}


def test_a_wrong_name_in_a_later_method_is_found_before_anything_runs(problem, tmp_path):
    methods = {**METHODS, "typo": {"objective.name": "gradient_diference"}}
    with pytest.raises(ConfigError, match=r"The method 'typo': Unknown objective 'gradient_diference'"):
        run_all(Comparison(problem.changed(training__steps=2), methods), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_section_of_a_method_keeps_the_settings_that_it_does_not_name(problem, tmp_path):
    settings = problem.changed(adapter__rank=3) | {"methods": {1: {"adapter": {"bound": "tanh"}}}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    config = load_comparison(tmp_path / "c.yaml").configs()["1"]
    assert (config.adapter.bound, config.adapter.rank) == ("tanh", 3)
    given = problem.changed(objective__target={"source": "number", "nll": 2.0})
    methods = {"lower": {"objective": {"target": {"nll": 1.0}}}, "other": {"objective.target": {"source": "holdout"}}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(given | {"methods": methods}))
    configs = load_comparison(tmp_path / "c.yaml").configs()
    assert (configs["lower"].objective.target.source, configs["lower"].objective.target.nll) == ("number", 1.0)
    assert (configs["other"].objective.target.source, configs["other"].objective.target.nll) == ("holdout", None)


def test_methods_do_not_change_what_they_share(problem):
    shared = problem.changed(training__steps=2)
    shared["data"]["retain_evaluation"] = shared["data"]["retain"]  # one object, as a YAML alias gives it
    changes = {"data.retain_evaluation.limit": 3}
    configs = Comparison(shared, {"limited": changes, "other": {"adapter.rank": 1}}).configs()
    assert configs["limited"].data.retain_evaluation.limit == 3
    assert configs["limited"].data.retain.limit is None
    assert configs["other"].data.retain_evaluation.limit is None
