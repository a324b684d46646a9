"""Language runs whose lower blocks stay as they are: what these blocks make of texts is kept, and changes no result."""

import pytest

from stable_forgetting.progress import SilentProgress
from stable_forgetting.runs import run
from stable_forgetting.runs.preparation import prepare

UPPER_BLOCK = {"trains": "adapter", "epochs": 2, "learning_rate": 0.01, "adapter": {"blocks": [1], "rank": 2}}


def values(record) -> dict[tuple[str, str], float]:
    return {
        (found.role, metric.name): metric.value
        for found in record.evaluations
        for metric in found.metrics
        if metric.value is not None
    }


@pytest.mark.parametrize("finetune", [None, UPPER_BLOCK])
def test_what_is_kept_changes_no_result(problem, tmp_path, monkeypatch, finetune):
    found, folders = {}, {}
    for gib in (1.0, 0.0):
        monkeypatch.setenv("STABLE_FORGETTING_CACHE", str(tmp_path / f"cache{gib}"))
        config = problem.config(
            model__finetune=finetune,
            model__disk_cache_gib=gib,
            adapter__blocks=[1],
            training__evaluate_every=4,
            evaluation__gradient_norm=True,
        )
        found[gib] = values(run(config, tmp_path / f"run{gib}"))
        kept = tmp_path / f"cache{gib}" / "activations"
        folders[gib] = list(kept.iterdir()) if kept.exists() else []
    assert len(folders[1.0]) == 1  # pretrained, base and unlearned model have the same trunk
    assert not folders[0.0]
    assert found[1.0] == pytest.approx(found[0.0], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(("finetune", "is_shared"), [(UPPER_BLOCK, True), ({"trains": "all", "epochs": 3}, False)])
def test_retain_models_read_what_is_kept_if_their_lower_blocks_are_those_of_the_base_model(
    problem, tmp_path, monkeypatch, finetune, is_shared
):
    monkeypatch.setenv("STABLE_FORGETTING_CACHE", str(tmp_path / "cache"))
    models = prepare(problem.config(model__finetune=finetune, adapter__blocks=[1]), SilentProgress())
    base = models.base().task
    base.collate(models.sets.forget.examples)
    retain = models.retain().task
    assert base.trunk is not None
    assert (retain.trunk is not None) == is_shared
    if is_shared:
        assert retain.trunk._store.folder == base.trunk._store.folder


def test_nothing_is_kept_where_every_block_changes(problem, tmp_path, monkeypatch):
    monkeypatch.setenv("STABLE_FORGETTING_CACHE", str(tmp_path / "cache"))
    run(problem.config(), tmp_path / "run")
    assert not (tmp_path / "cache" / "activations").exists()


def test_texts_that_find_no_room_are_read_by_all_blocks(problem, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("STABLE_FORGETTING_CACHE", str(tmp_path / "cache"))
    run(problem.config(adapter__blocks=[1], model__disk_cache_gib=1e-9), tmp_path / "run")
    assert not (tmp_path / "cache" / "activations").exists()
    assert "tokens take" in caplog.text
