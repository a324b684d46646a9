"""`forget check` and the memory of GPUs."""

import pytest


def words(shown):
    return " ".join(shown.out.split())


def test_without_options_one_gpu_is_meant(forget, language, tmp_path):
    shown = forget("check", language.write(tmp_path / "config.yaml"))
    assert shown.code == 0, shown.err
    assert "1 GPU; on each 3 forget + 3 other examples" in words(shown)
    assert "fit" not in shown.out
    assert "Assumed" not in shown.out


@pytest.mark.parametrize(
    ("gib", "verdict"), [(2, "It fits into 2.00 GiB; at most"), (0.5, "It does not fit into 0.500")]
)
def test_it_says_what_fits(forget, language, tmp_path, gib, verdict):
    shown = forget("check", language.write(tmp_path / "config.yaml"), "--gpu-memory", gib)
    assert shown.code == 0, shown.err
    assert verdict in words(shown)
    if gib < 1:
        assert "at most 0 examples do" in words(shown)


def test_gpus_share_the_batch_and_weights_if_asked(forget, language, tmp_path):
    config = language.write(tmp_path / "config.yaml")
    shared = forget("check", config, "--gpus", 3, "--sharding", "fsdp")
    assert "3 GPUs, weights divided; on each 1 forget + 1 other examples" in words(shared)
    assert "gathered weights" in shared.out
    whole = forget("check", config, "--gpus", 3)
    assert "weights whole" in words(whole)
    assert "gathered weights" not in whole.out


def test_a_config_alone_is_enough(forget, language, tmp_path):
    """No weights and no tokenizer: lengths are `data.max_length`, and precision and batch come from --set."""
    folder = tmp_path / "alone"
    folder.mkdir()
    (folder / "config.json").write_text((language.model / "config.json").read_text())
    config = language.write(tmp_path / "config.yaml", model__name=str(folder), data__max_length=60)
    changes = ("--set", "model.dtype=bfloat16", "--set", "training.forget_batch_size=5")
    shown = forget("check", config, *changes)
    assert shown.code == 0, shown.err
    assert "5 forget + 3 other examples of 60 tokens, 472 labels" in words(shown)
    assert "holds a model's config alone" in words(shown)
    assert "Assumed, as no text was read: each is as long as data.max_length allows" in words(shown)
    assert forget("run", config, "--out", tmp_path / "run").code == 2


def test_a_damaged_config_is_a_problem(forget, language, tmp_path):
    folder = tmp_path / "alone"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llamma"}')
    shown = forget("check", language.write(tmp_path / "config.yaml", model__name=str(folder)))
    assert shown.code == 2
    assert str(folder) in shown.err
    assert "config.json" in shown.err


def test_impossible_numbers_are_refused(forget, language, tmp_path):
    config = language.write(tmp_path / "config.yaml")
    assert forget("check", config, "--gpus", 0).code == 2
    assert forget("check", config, "--gpu-memory", -1).code == 2
