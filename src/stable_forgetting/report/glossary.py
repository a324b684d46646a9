"""What each metric means, in one sentence: the report's own words, so that no number stands without a definition."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from stable_forgetting.records import Direction

MetricGroup = Literal["forgetting", "keeping", "privacy", "other"]

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


@dataclass(frozen=True)
class Definition:
    """How a metric is shown and what it says."""

    label: str
    """Name in the report, a few words."""
    group: MetricGroup
    sentence: str
    """One sentence that says how the number is made."""


_DEFINITIONS: dict[str, Definition] = {
    "forget_probability": Definition(
        "Probability of forget answers",
        "forgetting",
        "Mean over the forget set of exp(−NLL per label token), the likelihood the model gives to the answer it "
        "should forget; from 0 to 1.",
    ),
    "forget_rouge_l_recall": Definition(
        "ROUGE-L recall, forget",
        "forgetting",
        "Mean share of the expected answer's stemmed words that the greedy answer repeats in the same order, on the "
        "forget set; from 0 to 1.",
    ),
    "forget_nll": Definition(
        "NLL per label, forget",
        "forgetting",
        "Mean negative log-likelihood per label of the forget examples, in nats; far above the retain model's "
        "means that the model was damaged rather than made to forget.",
    ),
    "forget_nll_ks": Definition(
        "KS test of forget NLLs (p)",
        "forgetting",
        "p-value of a two-sample Kolmogorov–Smirnov test between this model's and the retain model's NLLs per label "
        "over the forget set; near 1 the test cannot tell them apart, which does not prove that they are equal.",
    ),
    "forget_quality": Definition(
        "Forget quality (p)",
        "forgetting",
        "p-value of a two-sample Kolmogorov–Smirnov test between this model's and the retain model's truth ratios "
        "over the forget set, as TOFU has it; near 1 the test cannot tell them apart, which does not prove them equal.",
    ),
    "forget_truth_ratio": Definition(
        "Truth ratio score, forget",
        "forgetting",
        "Mean of min(R, 1/R) over the forget set, R being the probability of wrong answers over that of the "
        "paraphrased right one; 1 where the model prefers neither.",
    ),
    "holdout_probability": Definition(
        "Probability of holdout answers",
        "forgetting",
        "Mean over the holdout set of exp(−NLL per label token): what the same likelihood is on answers that no model "
        "has seen.",
    ),
    "forget_exact_memorization": Definition(
        "Exact memorisation, forget",
        "forgetting",
        "Mean share of the forget answers' label tokens that are the model's most likely token after the true ones.",
    ),
    "forget_extraction_strength": Definition(
        "Extraction strength, forget",
        "forgetting",
        "Mean share of a forget answer that the model completes without a mistake once the rest before it is given.",
    ),
    "forget_accuracy": Definition(
        "Accuracy, forget images",
        "forgetting",
        "Share of the forget set's training images that the model puts into their true class; the goal is the "
        "retain model's value, which need not be 0.",
    ),
    "forget_test_accuracy": Definition(
        "Accuracy, unseen forget images",
        "forgetting",
        "Share of test images of the forget classes that the model puts into their true class.",
    ),
    "retain_probability": Definition(
        "Probability of retain answers",
        "keeping",
        "Mean over the retain set of exp(−NLL per label token), the likelihood of answers that must stay; from 0 to 1.",
    ),
    "retain_rouge_l_recall": Definition(
        "ROUGE-L recall, retain",
        "keeping",
        "Mean share of the expected answer's stemmed words that the greedy answer repeats in the same order, on the "
        "retain set; from 0 to 1.",
    ),
    "retain_nll": Definition(
        "NLL per label, retain",
        "keeping",
        "Mean negative log-likelihood per label of the retain examples, in nats.",
    ),
    "model_utility": Definition(
        "Model utility",
        "keeping",
        "Harmonic mean of probability, ROUGE-L recall and truth ratio score on retain set, real authors and world "
        "facts, as TOFU has it; from 0 to 1, and 0 as soon as one of the nine is.",
    ),
    "retain_truth_ratio": Definition(
        "Truth ratio score, retain",
        "keeping",
        "Mean of max(0, 1 − R) over the retain set, R being the probability of wrong answers over that of the "
        "paraphrased right one; from 0 to 1.",
    ),
    "real_authors_probability": Definition(
        "Probability, real authors",
        "keeping",
        "Mean share that the right answer has in the probability of all answers to choose from, on questions about "
        "real authors; from 0 to 1.",
    ),
    "real_authors_rouge_l_recall": Definition(
        "ROUGE-L recall, real authors",
        "keeping",
        "Mean share of the expected answer's stemmed words that the greedy answer repeats in the same order, on "
        "questions about real authors; from 0 to 1.",
    ),
    "real_authors_truth_ratio": Definition(
        "Truth ratio score, real authors",
        "keeping",
        "Mean of max(0, 1 − R) on questions about real authors, R being the probability of wrong answers over that of "
        "the right one; from 0 to 1.",
    ),
    "world_facts_probability": Definition(
        "Probability, world facts",
        "keeping",
        "Mean share that the right answer has in the probability of all answers to choose from, on questions about "
        "world facts; from 0 to 1.",
    ),
    "world_facts_rouge_l_recall": Definition(
        "ROUGE-L recall, world facts",
        "keeping",
        "Mean share of the expected answer's stemmed words that the greedy answer repeats in the same order, on "
        "questions about world facts; from 0 to 1.",
    ),
    "world_facts_truth_ratio": Definition(
        "Truth ratio score, world facts",
        "keeping",
        "Mean of max(0, 1 − R) on questions about world facts, R being the probability of wrong answers over that of "
        "the right one; from 0 to 1.",
    ),
    "test_perplexity": Definition(
        "Perplexity, test text",
        "keeping",
        "exp of the mean negative log-likelihood per token on text that belongs to neither set; 1 at the least.",
    ),
    "retain_exact_memorization": Definition(
        "Exact memorisation, retain",
        "keeping",
        "Mean share of the retain answers' label tokens that are the model's most likely token after the true ones.",
    ),
    "retain_extraction_strength": Definition(
        "Extraction strength, retain",
        "keeping",
        "Mean share of a retain answer that the model completes without a mistake once the rest before it is given.",
    ),
    "retain_accuracy": Definition(
        "Accuracy, retain images",
        "keeping",
        "Share of the retain set's training images that the model puts into their true class.",
    ),
    "retain_test_accuracy": Definition(
        "Accuracy, unseen retain images",
        "keeping",
        "Share of test images of the other classes that the model puts into their true class.",
    ),
    "mia_loss_auc": Definition(
        "Membership attack, AUC",
        "privacy",
        "Area under the ROC curve of an attack that takes a low loss as a sign of membership, with the forget set as "
        "members (positive) against unseen examples of the same kind; 0.5 means that the attack learns nothing.",
    ),
    "mia_zlib_auc": Definition(
        "Zlib attack, AUC",
        "privacy",
        "The same for an attack that takes the loss over the compressed length of the answer.",
    ),
    "mia_reference_auc": Definition(
        "Reference attack, AUC",
        "privacy",
        "The same for an attack that takes the loss minus the retain model's; 0.5 for the retain model itself.",
    ),
    "mia_min_k_auc": Definition(
        "Min-K attack, AUC",
        "privacy",
        "The same for an attack that takes the mean loss of the 40 % of the label tokens that are least likely.",
    ),
    "mia_min_k_plus_plus_auc": Definition(
        "Min-K++ attack, AUC",
        "privacy",
        "The same, with each token's log-probability standardised under the model's own next-token distribution.",
    ),
    "mia_gradient_norm_auc": Definition(
        "Gradient attack, AUC",
        "privacy",
        "The same for an attack that takes a small gradient of the example's loss as a sign of membership.",
    ),
    "privacy_leakage": Definition(
        "Privacy leakage, %",
        "privacy",
        "100 (A − A of the retain model) / A of the retain model with A = 1 − AUC of the Min-K attack, as MUSE has it; "
        "−100 means that the forget set is still known, above 0 that it stands out by being unlikely.",
    ),
    "tow": Definition(
        "Tug of war",
        "other",
        "Product of 1 − |gap to the retain model| over the accuracies on forget-train, retain-train and retain-test "
        "images; from 0 to 1, and 1 means that no gap is left.",
    ),
}

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


def define(name: str) -> Definition:
    """Definition of a metric; one that the glossary does not know is shown under its own name and says so."""
    unknown = Definition(name, "other", "A metric without a definition in this version of the report.")
    return _DEFINITIONS.get(name, unknown)


def report_order(name: str) -> tuple[int, str]:
    """Sorting key that puts metrics into the order of the glossary and unknown ones last, by name."""
    return (DEFINED_METRICS.index(name), "") if name in _DEFINITIONS else (len(DEFINED_METRICS), name)
