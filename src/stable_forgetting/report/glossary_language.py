"""Definitions of the metrics of language models, some of which image classifiers have too."""

from __future__ import annotations

from stable_forgetting.report.definition import Definition

LANGUAGE_DEFINITIONS: dict[str, Definition] = {
    "forget_probability": Definition(
        "Probability of forget answers",
        "forgetting",
        "Mean over the forget set of exp(−NLL per label token), the likelihood the model gives to the answer it "
        "should forget; from 0 to 1.",
    ),
    "forgotten_before_probability": Definition(
        "Probability, forgotten before",
        "forgetting",
        "The same for what earlier requests deleted: whether it stays forgotten.",
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
    "model_utility_kept": Definition(
        "Model utility kept",
        "other",
        "Model utility as a share of the base model's: 1 where nothing was lost. The interval is of the share, "
        "over the same questions for both models, and so tighter than those of the two utilities.",
    ),
    "retain_truth_ratio": Definition(
        "Truth ratio score, retain",
        "keeping",
        "Mean of max(0, 1 − R) over the retain set, R being the probability of wrong answers over that of the "
        "paraphrased right one; from 0 to 1.",
    ),
    "retain_utility": Definition(
        "Utility, retain, without ROUGE",
        "keeping",
        "Harmonic mean of probability and truth ratio score of the retain answers, of probability alone where there "
        "are no alternative answers; in validations, where none are generated; from 0 to 1.",
    ),
    "forget_quality_and_utility": Definition(
        "Forget quality and utility",
        "other",
        "(1 + min(1, U / U of the base model)) / 2 where p is above 0.05, else p / 0.1, p being the forget quality and "
        "U the retain utility without ROUGE; in validations, for choosing a checkpoint; from 0 to 1.",
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
}
"""By metric, within a group in the order of the report."""
