"""Definitions of the metrics that only image classifiers have."""

from __future__ import annotations

from stable_forgetting.report.definition import Definition

IMAGE_DEFINITIONS: dict[str, Definition] = {
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
    "forgotten_before_accuracy": Definition(
        "Accuracy, images forgotten before",
        "forgetting",
        "Share of the training images that earlier requests deleted which the model still puts into their true class.",
    ),
    "forget_js": Definition(
        "JS divergence, forget images",
        "forgetting",
        "Mean Jensen–Shannon divergence in nats between this model's and the retain model's class probabilities for "
        "the forget set's training images; 0 if they are equal, ln 2 = 0.69 at most.",
    ),
    "forget_test_js": Definition(
        "JS divergence, unseen forget images",
        "forgetting",
        "The same for test images of the forget classes.",
    ),
    "probe_forget_test_accuracy": Definition(
        "Linear probe, unseen forget images",
        "forgetting",
        "Share of test images of the forget classes that a linear probe puts into their true class, trained on the "
        "model's frozen features of all training images: what the features still hold though the head may hide it.",
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
    "probe_retain_test_accuracy": Definition(
        "Linear probe, unseen retain images",
        "keeping",
        "Share of test images of the other classes that the same linear probe puts into their true class.",
    ),
    "mia_entropy": Definition(
        "Entropy attack, called members",
        "privacy",
        "Share of the forget set's images that a logistic regression on the entropy of the class probabilities calls "
        "members, trained on retain images as members against unseen retain images; its paper (SSD) wants it low.",
    ),
    "mia_confidence": Definition(
        "Confidence attack, called non-members",
        "privacy",
        "Share of the forget set's images that a support vector machine on the probability of the true class calls "
        "non-members, trained on the same images; its paper (SalUn) wants it high, but any deleted class has 1.",
    ),
    "mia_loss": Definition(
        "Trained loss attack, accuracy",
        "privacy",
        "Share of forget and unseen images, equally many, that a cross-validated logistic regression on the loss tells "
        "apart; 0.5 means that the attack learns nothing.",
    ),
    "tow": Definition(
        "Tug of war",
        "other",
        "Product of 1 − |gap to the retain model| over the accuracies on forget-train, retain-train and retain-test "
        "images; from 0 to 1, and 1 means that no gap is left.",
    ),
    "tow_train": Definition(
        "Tug of war, training images",
        "other",
        "Product of 1 − |gap to the retain model| over the accuracies on forget-train and retain-train images; in "
        "validations, which look at no test images; from 0 to 1.",
    ),
    "h_score": Definition(
        "H score",
        "other",
        "2 D R / (D + R), with D the drop of the accuracy on unseen forget images from the base model's and R the "
        "accuracy on unseen retain images, as GS-LoRA has it; from 0 to 1.",
    ),
}
"""By metric, within a group in the order of the report."""
