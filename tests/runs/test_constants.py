"""What forget terms get of each forget example, against a slow twin."""

import numpy as np
import pytest
import torch

from reference import objective_twins as twins
from stable_forgetting.config import TargetConfig
from stable_forgetting.errors import ConfigError
from stable_forgetting.evaluation.likelihood_scores import LikelihoodScores, TokenScores
from stable_forgetting.objectives import build_objective
from stable_forgetting.runs.constants import forget_constants


def scores_of(nlls: list[list[float]], *, with_tokens: bool = True) -> LikelihoodScores:
    """Scores with these NLLs of labels; the other columns are not looked at."""
    flat = np.array([value for own in nlls for value in own], dtype=np.float32)
    lengths = np.array([len(own) for own in nlls])
    tokens = TokenScores(-flat, flat, flat) if with_tokens else None
    return LikelihoodScores(np.array([sum(own) for own in nlls]), *[lengths] * 5, tokens=tokens)


FORGET = [[0.01, 0.3, 0.2], [0.0], [0.05, 0.4]]
HOLDOUT = [[0.0, 7.5], [1.0, 3.0, 0.25]]
PRETRAINED = [[2.0, 3.0, 0.5], [0.0], [4.0, 1.0]]


def constants(target: TargetConfig, **given: LikelihoodScores | None) -> dict[str, torch.Tensor]:
    scores = {"forget": scores_of(FORGET), "holdout": scores_of(HOLDOUT), "pretrained": scores_of(PRETRAINED)} | given
    return forget_constants(build_objective("calibrated_labels"), target=target, **scores)


def test_labels_get_the_quantiles_of_the_holdout_labels():
    found = constants(TargetConfig())
    flat = [value for own in FORGET for value in own]
    expected = twins.quantile_targets(flat, [value for own in HOLDOUT for value in own])
    rows = [expected[:3], [expected[3], 0, 0], [*expected[4:], 0]]
    torch.testing.assert_close(found["label_targets"], torch.tensor(rows), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found["mean_target"], torch.full((3,), sum(expected) / len(expected)))


def test_labels_get_the_quantiles_in_the_order_of_the_pretrained_model():
    forget = {"forget": scores_of(FORGET), "pretrained": scores_of([[2.0, 3.0, 0.5], [0.1], [4.0, 1.0]])}
    found = constants(TargetConfig(order="pretrained"), **forget)
    expected = twins.quantile_targets([2.0, 3.0, 0.5, 0.1, 4.0, 1.0], [value for own in HOLDOUT for value in own])
    assert found["label_targets"][0].tolist() == pytest.approx(expected[:3], abs=1e-5)
    assert found["label_targets"][2, :2].tolist() == pytest.approx(expected[4:], abs=1e-5)
    assert found["label_targets"][2, 0] > found["label_targets"][0, 1]  # the other way round in the base model


def test_labels_get_their_likelihood_under_the_pretrained_model():
    found = constants(TargetConfig(source="pretrained"), holdout=None)
    rows = [[2.0, 3.0, 0.5], [0.0, 0, 0], [4.0, 1.0, 0]]
    torch.testing.assert_close(found["label_targets"], torch.tensor(rows), atol=1e-6, rtol=0)


def test_labels_get_the_same_number():
    found = constants(TargetConfig(source="number", nll=2.5), holdout=None, pretrained=None)
    assert found["label_targets"].tolist() == [[2.5, 2.5, 2.5], [2.5, 0, 0], [2.5, 2.5, 0]]


def test_an_image_has_its_likelihood_as_its_only_label():
    one_label = [[0.5], [0.25]]
    forget, holdout = scores_of(one_label, with_tokens=False), scores_of([[1.0], [3.0]], with_tokens=False)
    found = constants(TargetConfig(), forget=forget, holdout=holdout)
    assert found["label_targets"].tolist() == [[2.5], [1.5]]


def test_values_of_labels_that_were_not_kept_are_refused():
    with pytest.raises(ValueError, match="values of each label were not kept"):
        constants(TargetConfig(), forget=scores_of(FORGET, with_tokens=False))


def test_targets_of_what_is_known_by_heart_are_refused():
    with pytest.raises(ConfigError, match=r"1e-07 nats per label on average; they must be at least 0\.001"):
        constants(TargetConfig(), holdout=scores_of([[0.0, 0.0], [0.0]]))


def test_an_order_needs_numbers():
    with pytest.raises(ConfigError, match="has the likelihood nan under the model that orders the targets"):
        constants(TargetConfig(order="pretrained"), pretrained=scores_of([[2.0, float("nan"), 0.5], [0.0], [4.0, 1.0]]))


def test_targets_need_what_they_come_from():
    with pytest.raises(ConfigError, match="so it needs a holdout set"):
        constants(TargetConfig(), holdout=None)
    for target in (TargetConfig(source="pretrained"), TargetConfig(order="pretrained")):
        with pytest.raises(ConfigError, match=r"need a config with pretrained_model or model\.finetune"):
            constants(target, pretrained=None)
