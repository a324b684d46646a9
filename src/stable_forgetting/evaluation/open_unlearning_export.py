"""Evaluation logs of the package open-unlearning, written from values of this package.

What the log means by an entry is what is written: the numbers follow ``compat="open-unlearning"``. Entries that the
values do not suffice for are left out. The gradient norm is never written: there it is another quantity.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stable_forgetting.errors import DataError
from stable_forgetting.evaluation.columns import column
from stable_forgetting.evaluation.open_unlearning import ATTACKS, MEMORIZATION, PREFIXES, Entries
from stable_forgetting.evaluation.privacy import membership_auc
from stable_forgetting.evaluation.statistics import Floats
from stable_forgetting.evaluation.suite import check_same_examples, evaluate_scores
from stable_forgetting.evaluation.text import rouge_scores
from stable_forgetting.evaluation.values import Definitions, Likelihood, ModelValues, SetValues
from stable_forgetting.records import write_text

LOG_NAME = "TOFU_EVAL.json"
SUMMARY_NAME = "TOFU_SUMMARY.json"

_THEIRS = Definitions(compat="open-unlearning")

_TRUTH_RATIOS = {
    "forget": ("forget_truth_ratio", "truth_ratio", "forget_truth_ratio_score"),
    "retain": ("retain_Truth_Ratio", "truth_ratio", "truth_ratio_score"),
    "real_authors": ("ra_Truth_Ratio", "answer_truth_ratio", "answer_truth_ratio_score"),
    "world_facts": ("wf_Truth_Ratio", "answer_truth_ratio", "answer_truth_ratio_score"),
}
"""Entry, column by example, and column whose mean is the entry's value, by set."""

_OF_MODELS = {"forget_quality": "forget_quality", "model_utility": "model_utility", "privacy_leakage": "privleak"}
"""Entry of each metric that is no mean over one set."""


def log_entries(values: ModelValues, retain: ModelValues | None = None) -> Entries:
    """The entries of a log.

    Args:
        values: Values of the model.
        retain: Values of the retain model, for the metrics that compare; None leaves these out.

    Returns:
        By entry: ``agg_value`` and ``value_by_index``, sorted by name.

    Raises:
        DataError: The two models were measured on different examples.
    """
    if retain is not None:
        check_same_examples(values.sets, retain.sets)
    entries: Entries = {}
    for name, found in values.sets.items():
        if name in _TRUTH_RATIOS:
            entries |= _set_entries(name, found)
    entries |= _attack_entries(values.sets, retain)
    evaluation = evaluate_scores(values, retain, num_resamples=1, seed=0, definitions=_THEIRS)
    for metric, entry in _OF_MODELS.items():
        measured = evaluation.metric(metric)
        if measured is not None and measured.value is not None:
            entries[entry] = {"agg_value": measured.value}
    return dict(sorted(entries.items()))


def write_log(values: ModelValues, folder: Path, retain: ModelValues | None = None) -> tuple[Path, Path]:
    """Write TOFU_EVAL.json and TOFU_SUMMARY.json, and return their paths; the arguments are those of `log_entries`."""
    entries = log_entries(values, retain)
    summary = {name: entry["agg_value"] for name, entry in entries.items()}
    paths = folder / LOG_NAME, folder / SUMMARY_NAME
    for path, content in zip(paths, (entries, summary), strict=True):
        write_text(path, json.dumps(content, indent=1))
    return paths


def _set_entries(name: str, values: SetValues) -> Entries:
    prefix, entries = PREFIXES[name], {}
    if values.likelihood is not None:
        entries[f"{prefix}_Q_A_Prob"] = _likelihood_entry(values.likelihood)
    if values.paraphrased is not None:
        entries[f"{prefix}_Q_A_PARA_Prob"] = _likelihood_entry(values.paraphrased)
    if values.perturbed is not None and values.num_perturbed is not None:
        ends = np.cumsum(values.num_perturbed)[:-1]
        entries[f"{prefix}_Q_A_PERT_Prob"] = _lists_entry(values.perturbed, ends)
    if values.answers is not None and values.references is not None:
        entries[f"{prefix}_Q_A_ROUGE"] = _rouge_entry(values.references, values.answers)
    entry, ratio, score = _TRUTH_RATIOS[name]
    wanted = [(entry, "score", ratio, score)]
    if name in ("real_authors", "world_facts"):
        wanted.append((f"{prefix}_Q_A_Prob_normalised", "prob", "normalized_probability", "normalized_probability"))
    if name == "forget":
        wanted += [(column_name, "score", column_name, column_name) for column_name in MEMORIZATION]
    for entry, field, by_example, aggregated in wanted:
        found, total = _column(values, by_example), _column(values, aggregated)
        if found is not None and total is not None:
            entries[entry] = _entry(float(total.mean()), ({field: value} for value in found.tolist()))
    return entries


def _attack_entries(sets: Mapping[str, SetValues], retain: ModelValues | None) -> Entries:
    entries: Entries = {}
    for name, entry in {"nll": "mia_loss", **ATTACKS}.items():
        scores = _of_both_sides(sets, name)
        if scores is not None and name != "gradient_norm":
            entries[entry] = _attack_entry(scores)
    own, reference = _of_both_sides(sets, "nll"), None if retain is None else _of_both_sides(retain.sets, "nll")
    if own is not None and reference is not None:
        entries["mia_reference"] = _attack_entry({side: own[side] - reference[side] for side in own})
    return entries


def _of_both_sides(sets: Mapping[str, SetValues], name: str) -> dict[str, Floats] | None:
    """A column of the members and of the others; None if one of them is not known, or not finite."""
    found = {side: _column(sets[side], name) for side in ("forget", "holdout") if side in sets}
    known = {side: scores for side, scores in found.items() if scores is not None and np.isfinite(scores).all()}
    return known if len(known) == 2 else None


def _attack_entry(scores: Mapping[str, Floats]) -> Entries:
    auc = membership_auc(scores["forget"], scores["holdout"])
    sides = {
        side: _entry(float(found.mean()), ({"score": value} for value in found.tolist()))
        for side, found in scores.items()
    }
    return {**sides, "auc": auc, "agg_value": auc}


def _column(values: SetValues, name: str) -> Floats | None:
    """A column, or None if the values do not suffice for it."""
    try:
        return column(values, name, _THEIRS)
    except DataError:
        return None


def _entry(value: float, rows: Iterable[Mapping[str, Any]]) -> Entries:
    return {"agg_value": value, "value_by_index": {str(index): dict(row) for index, row in enumerate(rows)}}


def _likelihood_entry(likelihood: Likelihood) -> Entries:
    pairs = zip(likelihood.probability.tolist(), likelihood.nll.tolist(), strict=True)
    rows = ({"prob": probability, "avg_loss": nll} for probability, nll in pairs)
    return _entry(float(likelihood.probability.mean()), rows)


def _lists_entry(likelihood: Likelihood, ends: Any) -> Entries:
    """Several answers of each example; the value is the mean over examples of their means."""
    probabilities, losses = np.split(likelihood.probability, ends), np.split(likelihood.nll, ends)
    pairs = zip(probabilities, losses, strict=True)
    rows = ({"prob": probability.tolist(), "avg_loss": nll.tolist()} for probability, nll in pairs)
    return _entry(float(np.mean([values.mean() for values in probabilities])), rows)


def _rouge_entry(references: tuple[str, ...], answers: tuple[str, ...]) -> Entries:
    rows = [
        {**rouge_scores(reference, answer), "ground_truth": reference, "generation": answer}
        for reference, answer in zip(references, answers, strict=True)
    ]
    return _entry(float(np.mean([row["rougeL_recall"] for row in rows])), rows)
