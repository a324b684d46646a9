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
from stable_forgetting.evaluation.suite import check_same_examples, described, evaluate_scores, gap
from stable_forgetting.evaluation.text import exact_memorization, extraction_strength, rouge_l_recall
from stable_forgetting.evaluation.validation import (
    ValidationData,
    validation_data,
    validation_metrics,
    without_alternatives,
)
from stable_forgetting.evaluation.verdicts import verdicts

__all__ = [
    "METRICS",
    "SET_NAMES",
    "VALIDATION_METRICS",
    "VALIDATION_NAMES",
    "Interval",
    "KsResult",
    "LikelihoodScores",
    "Metric",
    "ModelScores",
    "ScoringOptions",
    "SetScores",
    "ValidationData",
    "accuracy",
    "bootstrap_interval",
    "check_same_examples",
    "described",
    "evaluate_scores",
    "exact_memorization",
    "extraction_strength",
    "gap",
    "greedy_answers",
    "h_score",
    "js_divergence",
    "ks_test",
    "membership_auc",
    "per_class_accuracy",
    "rouge_l_recall",
    "score_examples",
    "score_model",
    "tug_of_war",
    "validation_data",
    "validation_metrics",
    "verdicts",
    "without_alternatives",
]
