"""What a model still knows: per-example values, metrics with intervals, and verdicts."""

from stable_forgetting.evaluation.classification import (
    accuracy,
    h_score,
    js_divergence,
    per_class_accuracy,
    tug_of_war,
)
from stable_forgetting.evaluation.generation import greedy_answers
from stable_forgetting.evaluation.likelihood import LikelihoodScores, score_examples
from stable_forgetting.evaluation.metric import Metric
from stable_forgetting.evaluation.metrics import METRICS
from stable_forgetting.evaluation.metrics_validation import VALIDATION_METRICS, VALIDATION_NAMES
from stable_forgetting.evaluation.privacy import membership_auc
from stable_forgetting.evaluation.scores import SET_NAMES, ModelScores, ScoringOptions, SetScores, score_model
from stable_forgetting.evaluation.statistics import Interval, KsResult, bootstrap_interval, ks_test
from stable_forgetting.evaluation.suite import evaluate_scores, gap
from stable_forgetting.evaluation.text import exact_memorization, extraction_strength, rouge_l_recall
from stable_forgetting.evaluation.validation import ValidationData, validation_data, validation_metrics
from stable_forgetting.evaluation.verdicts import verdicts

__all__ = [
    "LikelihoodScores",
    "score_examples",
    "greedy_answers",
    "rouge_l_recall",
    "exact_memorization",
    "extraction_strength",
    "accuracy",
    "per_class_accuracy",
    "tug_of_war",
    "h_score",
    "js_divergence",
    "membership_auc",
    "Interval",
    "KsResult",
    "bootstrap_interval",
    "ks_test",
    "SET_NAMES",
    "ModelScores",
    "SetScores",
    "ScoringOptions",
    "score_model",
    "METRICS",
    "Metric",
    "evaluate_scores",
    "gap",
    "verdicts",
    "VALIDATION_METRICS",
    "VALIDATION_NAMES",
    "ValidationData",
    "validation_data",
    "validation_metrics",
]
