"""Golden values from published logs, and logs written and read again."""

import gzip
import json
from functools import cache

import numpy as np
import pytest

from data_paths import shared_data
from sample_scores import make_scores
from stable_forgetting.errors import DataError
from stable_forgetting.evaluation.columns import column
from stable_forgetting.evaluation.open_unlearning import read_log
from stable_forgetting.evaluation.open_unlearning_export import write_log
from stable_forgetting.evaluation.suite import evaluate_scores
from stable_forgetting.evaluation.text import rouge_scores
from stable_forgetting.evaluation.values import Definitions, values_of

THEIRS = Definitions(compat="open-unlearning")
PAIRS = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
GOLDEN = {
    "forget01": (0.006760732303569208, 0.375, 0.47275, 0.65160, 0.59860),
    "forget05": (1.4275699621532978e-12, 0.370, 0.47251, 0.63432, 0.59910),
    "forget10": (3.9054713571083378e-22, 0.350, 0.47556, 0.62746, 0.59112),
}
ENTRIES = {
    "forget_probability": "forget_Q_A_Prob",
    "retain_probability": "retain_Q_A_Prob",
    "forget_rouge_l_recall": "forget_Q_A_ROUGE",
    "retain_rouge_l_recall": "retain_Q_A_ROUGE",
    "forget_exact_memorization": "exact_memorization",
    "forget_extraction_strength": "extraction_strength",
    "mia_loss_auc": "mia_loss",
    "mia_zlib_auc": "mia_zlib",
    "mia_min_k_auc": "mia_min_k",
    "mia_min_k_plus_plus_auc": "mia_min_k_plus_plus",
    "mia_gradient_norm_auc": "mia_gradnorm",
    "forget_truth_ratio": "forget_truth_ratio",
    "retain_truth_ratio": "retain_Truth_Ratio",
    "real_authors_truth_ratio": "ra_Truth_Ratio",
    "world_facts_truth_ratio": "wf_Truth_Ratio",
    "real_authors_probability": "ra_Q_A_Prob_normalised",
    "world_facts_probability": "wf_Q_A_Prob_normalised",
    "real_authors_rouge_l_recall": "ra_Q_A_ROUGE",
    "world_facts_rouge_l_recall": "wf_Q_A_ROUGE",
    "model_utility": "model_utility",
}
RATIOS = {
    ("forget", "truth_ratio"): "forget_truth_ratio",
    ("retain", "truth_ratio"): "retain_Truth_Ratio",
    ("real_authors", "answer_truth_ratio"): "ra_Truth_Ratio",
    ("world_facts", "answer_truth_ratio"): "wf_Truth_Ratio",
}


def log_path(name):
    infix = "" if name.startswith("retain") else "full_evals_"
    return shared_data("tofu_logs") / f"Llama-3.2-1B-Instruct_{infix}{name}.json.gz"


@cache
def entries(name):
    return json.loads(gzip.decompress(log_path(name).read_bytes()))


@cache
def values(name):
    return read_log(log_path(name), "retain" if name.startswith("retain") else "unlearned")


@cache
def evaluation(name, definitions=THEIRS):
    reference = values(PAIRS[name]) if name in PAIRS else None
    return evaluate_scores(values(name), reference, num_resamples=10, seed=0, definitions=definitions)


@pytest.mark.parametrize("forget", PAIRS)
def test_values_to_hit(forget):
    p, statistic, score, retain_score, retain_utility = GOLDEN[forget]
    found, retain = evaluation(forget), evaluation(PAIRS[forget])
    quality = found.metric("forget_quality")
    assert quality.value == pytest.approx(p, rel=1e-9)
    assert quality.details["D"] == pytest.approx(statistic)
    assert quality.details["log10_p"] == pytest.approx(np.log10(p))
    assert found.metric("forget_truth_ratio").value == pytest.approx(score, abs=5e-6)
    assert retain.metric("forget_truth_ratio").value == pytest.approx(retain_score, abs=5e-6)
    assert found.metric("model_utility").value == pytest.approx(0.5991534707368931, abs=1e-12)
    assert retain.metric("model_utility").value == pytest.approx(retain_utility, abs=5e-6)


def test_arithmetic_aggregation():
    found = evaluation("forget10", Definitions(truth_ratio="arithmetic")).metric("forget_quality")
    assert found.value == pytest.approx(1.4e-20, rel=0.01)


@pytest.mark.parametrize("name", [*PAIRS, *PAIRS.values()])
def test_every_aggregate_of_the_log(name):
    found = evaluation(name)
    for metric, entry in ENTRIES.items():
        assert found.metric(metric).value == pytest.approx(entries(name)[entry]["agg_value"], abs=1e-9), metric
    if name in PAIRS:
        assert found.metric("forget_quality").value == pytest.approx(
            entries(name)["forget_quality"]["agg_value"], rel=1e-9
        )
        leakage = found.metric("privacy_leakage").value
        assert leakage == pytest.approx(entries(name)["privleak"]["agg_value"], abs=1e-9)
        # Their losses of the retain model come from another run of it, which rounds in other places.
        reference = found.metric("mia_reference_auc").value
        assert reference == pytest.approx(entries(name)["mia_reference"]["agg_value"], abs=1e-3)


@pytest.mark.parametrize("name", [*PAIRS, *PAIRS.values()])
def test_every_truth_ratio_of_the_log(name):
    for (set_name, column_name), entry in RATIOS.items():
        expected = [row["score"] for row in entries(name)[entry]["value_by_index"].values()]
        np.testing.assert_allclose(column(values(name).sets[set_name], column_name, THEIRS), expected, rtol=1e-9)


@pytest.mark.parametrize("name", [*PAIRS, *PAIRS.values()])
def test_every_rouge_value_of_the_log(name):
    for entry in ("forget_Q_A_ROUGE", "retain_Q_A_ROUGE", "ra_Q_A_ROUGE", "wf_Q_A_ROUGE"):
        for row in entries(name)[entry]["value_by_index"].values():
            expected = {key: row[key] for key in ("rouge1_recall", "rougeL_f1", "rougeL_recall")}
            assert rouge_scores(row["ground_truth"], row["generation"]) == pytest.approx(expected, abs=1e-12)


def test_their_definitions_are_not_taken_for_ours():
    found = evaluation("forget01", Definitions())
    for name in ("forget_exact_memorization", "mia_min_k_auc", "privacy_leakage", "mia_gradient_norm_auc"):
        assert found.metric(name).value is None
        assert found.metric(name).reason.startswith("needs compat 'open-unlearning'")
    assert found.metric("mia_zlib_auc").value is not None


def test_a_retain_log_of_another_forget_set():
    with pytest.raises(DataError, match="different forget examples \\(40 and 400\\)"):
        evaluate_scores(values("forget01"), values("retain90"), num_resamples=10, seed=0)


def make_log(path, *, shift=0.0, count=3, drop=()):
    generator = np.random.default_rng(0)

    def rows(make):
        return {"agg_value": 0.0, "value_by_index": {str(index): make() for index in range(count)}}

    def one():
        loss = float(generator.uniform(0.1, 3)) + shift
        return {"avg_loss": loss, "prob": float(np.exp(-loss))}

    def several():
        found = [one() for _ in range(2)]
        return {key: [each[key] for each in found] for key in ("avg_loss", "prob")}

    def text():
        return {"ground_truth": "ada lived in paris", "generation": "ada lived in rome"}

    log = {"mia_min_k": {side: rows(lambda: {"score": one()["avg_loss"]}) for side in ("forget", "holdout")}}
    for prefix in ("forget", "retain", "ra", "wf"):
        log |= {f"{prefix}_Q_A_Prob": rows(one), f"{prefix}_Q_A_PERT_Prob": rows(several)}
        log |= {f"{prefix}_Q_A_PARA_Prob": rows(one), f"{prefix}_Q_A_ROUGE": rows(text)}
    log |= {name: rows(lambda: {"score": 0.5}) for name in ("exact_memorization", "extraction_strength")}
    path.write_text(json.dumps({name: entry for name, entry in log.items() if name not in drop}))
    return path


def numbers(found):
    return {metric.name: (metric.value, metric.low, metric.high, metric.reason) for metric in found.metrics}


def test_written_and_read_again(tmp_path):
    own = read_log(make_log(tmp_path / "own.json"))
    retain = read_log(make_log(tmp_path / "retain.json", shift=0.5), "retain")
    log, summary = write_log(own, tmp_path / "out", retain)
    first, second = (
        evaluate_scores(found, retain, num_resamples=50, seed=0, definitions=THEIRS) for found in (own, read_log(log))
    )
    assert numbers(first) == numbers(second)
    totals = json.loads(summary.read_text())
    for metric, entry in {**ENTRIES, "forget_quality": "forget_quality", "privacy_leakage": "privleak"}.items():
        if first.metric(metric) is not None and first.metric(metric).value is not None:
            assert totals[entry] == pytest.approx(first.metric(metric).value), metric


def test_attacks_on_values_that_are_not_finite_are_left_out_of_a_log(tmp_path):
    scores = make_scores("language")
    scores.sets["forget"].likelihood.nll_sum[1] = np.inf
    log, _ = write_log(values_of(scores), tmp_path)
    entries = json.loads(log.read_text())
    assert {"forget_Q_A_Prob", "retain_Q_A_Prob", "mia_min_k"} <= entries.keys()
    assert not {"mia_loss", "mia_zlib"} & entries.keys()


def test_a_log_is_not_written_against_a_retain_model_of_other_examples(tmp_path):
    own, other = values_of(make_scores("language")), values_of(make_scores("language", "retain", count=5))
    with pytest.raises(DataError, match="different forget examples"):
        write_log(own, tmp_path, other)


def test_our_own_values_written_and_read_again(tmp_path):
    own, retain = values_of(make_scores("language")), values_of(make_scores("language", "retain", seed=1, loss=2.0))
    log, _ = write_log(own, tmp_path / "own", retain)
    retain_log, _ = write_log(retain, tmp_path / "retain")
    first, second = (
        numbers(evaluate_scores(model, reference, num_resamples=50, seed=0, definitions=THEIRS))
        for model, reference in ((own, retain), (read_log(log), read_log(retain_log, "retain")))
    )
    lost = {"retain_exact_memorization", "retain_extraction_strength", "test_perplexity", "mia_gradient_norm_auc"}
    lost |= {"forgotten_before_probability", "model_utility_kept"}  # the latter needs a base model
    kept = set(first) - lost
    assert {name: first[name] for name in kept} == {name: second[name] for name in kept}
    assert all(first[name][0] is not None for name in kept)
    assert all(second[name][0] is None for name in lost if name in second)
    assert first["mia_gradient_norm_auc"][0] is None
    assert numbers(evaluate_scores(own, retain, num_resamples=50, seed=0))["mia_gradient_norm_auc"][0] is not None
    written = json.loads(log.read_text())["mia_reference"]
    assert written["agg_value"] == first["mia_reference_auc"][0]
    scores = [row["score"] for row in written["forget"]["value_by_index"].values()]
    np.testing.assert_allclose(
        scores, own.sets["forget"].likelihood.nll - retain.sets["forget"].likelihood.nll, rtol=1e-12
    )


def test_a_missing_part_is_a_reason(tmp_path):
    log = read_log(make_log(tmp_path / "log.json", drop=("ra_Q_A_PERT_Prob", "wf_Q_A_ROUGE")))
    found = evaluate_scores(log, None, num_resamples=10, seed=0)
    assert found.metric("real_authors_truth_ratio").reason == "needs wrong (perturbed) answers beside every right one"
    assert found.metric("model_utility").reason == (
        "needs wrong (perturbed) answers beside every right one (real_authors set)"
    )
    assert found.metric("world_facts_rouge_l_recall").value is None
    assert found.metric("retain_truth_ratio").value is not None


def test_files_that_are_no_such_logs(tmp_path):
    path = tmp_path / "log.json"
    for content, message in (
        ("x", "is not JSON"),
        ("[]", "holds a list"),
        ('{"a": {}}', "has none of the entries"),
        ('{"forget_quality": 0.1}', "is a summary"),
        ('{"forget_Q_A_Prob": {"agg_value": 3}}', "no values per example"),
        ('{"forget_Q_A_Prob": {"value_by_index": {"0": {"avg_loss": null, "prob": 1}}}}', "no number 'avg_loss'"),
    ):
        path.write_text(content)
        with pytest.raises(DataError, match=message):
            read_log(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_log(tmp_path / "none.json")
    whole = gzip.compress(make_log(tmp_path / "whole.json").read_bytes())
    damaged = whole[:60] + bytes(value ^ 255 for value in whole[60:90]) + whole[90:]
    for content in (b"not gzipped", whole[: len(whole) // 2], damaged):
        (tmp_path / "log.json.gz").write_bytes(content)
        with pytest.raises(DataError, match="cannot be read"):
            read_log(tmp_path / "log.json.gz")


def test_entries_of_different_examples(tmp_path):
    path = make_log(tmp_path / "log.json")
    log = json.loads(path.read_text())
    del log["forget_Q_A_PARA_Prob"]["value_by_index"]["2"]
    path.write_text(json.dumps(log))
    with pytest.raises(DataError, match="2 examples in 'forget_Q_A_PARA_Prob' and 3 others in 'forget_Q_A_Prob'"):
        read_log(path)
