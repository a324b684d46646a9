import pytest
import torch

from stable_forgetting.errors import NotFiniteError
from stable_forgetting.evaluation.scores import ScoringOptions, score_model
from stable_forgetting.evaluation.suite import evaluate_scores
from stable_forgetting.evaluation.validation import VALIDATION_METRICS, VALIDATION_NAMES, validation_metrics

OPTIONS = ScoringOptions(batch_size=4, generate=False, max_new_tokens=1)


@pytest.mark.parametrize("task_name", ["language", "image"])
def test_equal_to_the_metrics_of_the_end(request, task_name):
    model = request.getfixturevalue(f"{task_name}_model")
    task = request.getfixturevalue(f"{task_name}_task")
    make_set = request.getfixturevalue(f"make_{task_name}_set")
    sets = {"forget": make_set("forget", seed=1), "retain": make_set("retain", seed=2)}
    found = validation_metrics(model, task, sets["forget"], sets["retain"], 4)
    assert set(found) == set(VALIDATION_NAMES[task_name]) <= set(VALIDATION_METRICS)
    scores = score_model(model, task, sets, role="base", source="x", options=OPTIONS)
    evaluation = evaluate_scores(scores, None, num_resamples=100, seed=0)
    compared = 0
    for name, value in found.items():
        metric = evaluation.metric(name)
        if metric is not None:
            assert metric.value == pytest.approx(value)
            compared += 1
    assert compared == 4


def test_not_finite(image_model, image_task, make_image_set):
    weight = image_model.linear.weight.detach().clone()
    with torch.no_grad():
        image_model.linear.weight.fill_(float("nan"))
    with pytest.raises(NotFiniteError, match=r"9 of 9 forget examples is not finite .first: 0"):
        validation_metrics(image_model, image_task, make_image_set(), make_image_set(), 4)
    with torch.no_grad():
        image_model.linear.weight.copy_(weight)
