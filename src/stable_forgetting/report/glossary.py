"""What each metric means, in one sentence: the report's own words, so that no number stands without a definition."""

from __future__ import annotations

from collections.abc import Collection

from stable_forgetting.records import Direction
from stable_forgetting.report.definition import Definition, MetricGroup
from stable_forgetting.report.glossary_images import IMAGE_DEFINITIONS
from stable_forgetting.report.glossary_language import LANGUAGE_DEFINITIONS

__all__ = [
    "DEFINED_METRICS",
    "DIRECTION_WORDS",
    "GROUP_TITLES",
    "HEADLINES",
    "KEY_COLUMNS",
    "LEADS",
    "TOFU_COLUMNS",
    "Definition",
    "MetricGroup",
    "define",
    "key_columns",
    "report_order",
]

GROUP_TITLES: dict[MetricGroup, str] = {
    "forgetting": "Forgetting",
    "keeping": "Keeping",
    "privacy": "Privacy",
    "other": "Further measurements",
}

DIRECTION_WORDS: dict[Direction, str] = {
    "higher": "higher is better",
    "lower": "lower is better",
    "retain": "closer to the retain model is better",
}

_PLACES = {group: place for place, group in enumerate(GROUP_TITLES)}

_DEFINITIONS = dict(
    sorted((LANGUAGE_DEFINITIONS | IMAGE_DEFINITIONS).items(), key=lambda entry: _PLACES[entry[1].group])
)

DEFINED_METRICS = tuple(_DEFINITIONS)
"""Names of all metrics with a definition, in the order of the report."""

KEY_COLUMNS: dict[str, tuple[str, ...]] = {
    "language": (
        "forget_probability",
        "forget_rouge_l_recall",
        "forget_nll",
        "forget_nll_ks",
        "mia_loss_auc",
        "retain_probability",
        "retain_rouge_l_recall",
        "test_perplexity",
    ),
    "image": (
        "forget_accuracy",
        "forget_test_accuracy",
        "retain_accuracy",
        "retain_test_accuracy",
        "mia_loss_auc",
        "tow",
    ),
}
"""Columns of a comparison, by task."""

TOFU_COLUMNS = (
    "forget_quality",
    "model_utility",
    "forget_truth_ratio",
    "forget_probability",
    "forget_rouge_l_recall",
    "mia_min_k_auc",
    "privacy_leakage",
    "retain_probability",
)
"""Columns of a comparison where forget quality was measured."""


def key_columns(task: str, measured: Collection[str]) -> tuple[str, ...]:
    """Columns of a comparison.

    Args:
        task: language or image.
        measured: Names of all metrics that the runs list.
    """
    return TOFU_COLUMNS if "forget_quality" in measured else KEY_COLUMNS[task]


HEADLINES: dict[str, tuple[str, str, str]] = {
    "language": ("forget_probability", "retain_probability", "mia_loss_auc"),
    "image": ("forget_accuracy", "retain_test_accuracy", "mia_loss_auc"),
}
"""The metrics that the sentences at the top speak of: one of forgetting, one of keeping, one of privacy."""

LEADS: dict[str, tuple[str, ...]] = {
    "language": (
        "forget_quality",
        "forget_probability",
        "forget_nll",
        "model_utility",
        "retain_probability",
        "mia_loss_auc",
    ),
    "image": ("tow", "forget_accuracy", "retain_test_accuracy", "mia_loss_auc"),
}
"""The numbers by which a comparison says who leads, where they were measured. Images have one for all
accuracies together (tug of war). Texts have none: a probability near 0 hides how far beyond the retain model a method
went, which the NLL shows."""


def define(name: str) -> Definition:
    """Definition of a metric; one that the glossary does not know is shown under its own name and says so."""
    unknown = Definition(name, "other", "A metric without a definition in this version of the report.")
    return _DEFINITIONS.get(name, unknown)


def report_order(name: str) -> tuple[int, str]:
    """Sorting key that puts metrics into the order of the glossary and unknown ones last, by name."""
    return (DEFINED_METRICS.index(name), "") if name in _DEFINITIONS else (len(DEFINED_METRICS), name)
