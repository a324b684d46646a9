import pytest

from stable_forgetting.evaluation.verdicts import verdicts
from stable_forgetting.records import MetricValue, ModelEvaluation


def model(role, spread=0.02, **values):
    metrics = [
        MetricValue(
            name=name, value=value, count=40, low=value * (1 - spread), high=value * (1 + spread), direction="retain"
        )
        for name, value in values.items()
    ]
    return ModelEvaluation(role=role, source="made here", metrics=metrics)


def language(role, forget, retain, nll, spread=0.02):
    return model(role, spread, forget_probability=forget, retain_probability=retain, forget_nll=nll)


BASE = language("base", 0.95, 0.96, 0.05)
RETAIN = language("retain", 0.10, 0.96, 2.4)


@pytest.mark.parametrize(
    ("unlearned", "beginnings"),
    [
        (language("unlearned", 0.94, 0.96, 0.06), ["Nothing was forgotten: forget probability fell from 0.950"]),
        (language("unlearned", 0.97, 0.96, 0.03), ["Nothing was forgotten: forget probability rose"]),
        (language("unlearned", 0.50, 0.95, 0.7), ["Only partly forgotten, 53% of the way"]),
        (language("unlearned", 0.11, 0.96, 2.3), ["Forgotten, and the rest is kept: forget probability fell"]),
        (language("unlearned", 0.11, 0.97, 2.3), ["Forgotten, and the rest is kept: forget probability fell"]),
        (
            language("unlearned", 0.11, 0.95, 2.3),
            ["Forgotten, at the price of 1% of the rest: forget probability"],
        ),
        (
            language("unlearned", 0.11, 0.88, 2.3),
            ["Forgotten, at the price of 8% of the rest: forget probability"],
        ),
        (language("unlearned", 0.00, 0.95, 15.0), ["Forgot more than the retain model: forget NLL per label 15.000"]),
        (language("unlearned", 0.11, 0.70, 2.3), ["The rest was damaged: retained probability fell from 0.960"]),
        (language("unlearned", 0.00, 0.01, 15.0), ["Forgot more than the retain", "The model collapsed: retained"]),
        (language("unlearned", 0.94, 0.20, 0.06), ["Nothing was forgotten", "The model collapsed"]),
    ],
)
def test_language(unlearned, beginnings):
    found = verdicts(BASE, unlearned, RETAIN)
    assert len(found) == len(beginnings)
    for sentence, beginning in zip(found, beginnings, strict=True):
        assert sentence.startswith(beginning)


def test_overshoot_needs_disjoint_intervals():
    unlearned = language("unlearned", 0.11, 0.95, 4.0, spread=0.8)
    assert verdicts(BASE, unlearned, RETAIN)[0].startswith("Forgotten")


def test_without_a_retain_model():
    found = verdicts(BASE, language("unlearned", 0.00, 0.95, 15.0))
    assert found[0].startswith("Forgotten")
    assert found[1].startswith("Without a retain model it cannot be judged")
    assert verdicts(BASE, language("unlearned", 0.94, 0.95, 0.06))[0].startswith("Nothing was forgotten")


def test_nothing_to_forget():
    found = verdicts(BASE, language("unlearned", 0.5, 0.95, 0.6), language("retain", 0.95, 0.95, 0.05))
    assert found[0].startswith("There was nothing to forget: the base model's forget probability of 0.950")
    nothing = language("base", 0.0, 0.9, 9.0)
    assert verdicts(nothing, nothing)[0].endswith("is already 0.")


def images(role, forget, retain, **more):
    return model(role, forget_accuracy=forget, retain_accuracy=retain, **more)


def test_images():
    base, retain = images("base", 0.95, 0.90), images("retain", 0.60, 0.90)
    assert verdicts(base, images("unlearned", 0.60, 0.90), retain)[0].startswith("Forgotten")
    assert verdicts(base, images("unlearned", 0.10, 0.90), retain)[0].startswith("Forgot more than the retain model")
    assert verdicts(base, images("unlearned", 0.60, 0.20), retain)[0].startswith("The model collapsed")


def test_what_stays_did_not_rise():
    kept = verdicts(BASE, language("unlearned", 0.11, 0.9602, 2.3), RETAIN)[0]
    assert kept.endswith("retained probability stayed at 0.960.")


def test_images_are_judged_by_test_images_if_there_are_any():
    base = images("base", 0.95, 0.99, retain_test_accuracy=0.9)
    unlearned = images("unlearned", 0.0, 0.99, retain_test_accuracy=0.3)
    assert verdicts(base, unlearned)[0] == "The model collapsed: retained accuracy fell from 0.900 to 0.300."


def test_missing_values_are_named():
    broken = ModelEvaluation(
        role="unlearned",
        source="made here",
        metrics=[
            MetricValue(name="forget_probability", reason="not finite", direction="retain"),
            MetricValue(name="retain_probability", value=0.9, direction="higher"),
        ],
    )
    assert verdicts(BASE, broken, RETAIN) == [
        "Cannot judge what was forgotten: forget_probability is not available (not finite)."
    ]


def test_a_classifier_that_knows_little_shows_little():
    weak, weak_after = images("base", 0.6, 0.49), images("unlearned", 0.0, 0.49)
    assert verdicts(weak, weak_after, images("retain", 0.0, 0.49)) == [
        "Forgotten, and the rest is kept: forget accuracy fell from 0.600 to 0.000 (retain model 0.000), retained "
        "accuracy stayed at 0.490.",
        "The base model itself has a retained accuracy of 0.490 only, so that little can be seen of what it forgets; "
        "train it longer or on more images first.",
    ]
    strong, strong_after = images("base", 0.6, 0.51), images("unlearned", 0.0, 0.51)
    assert len(verdicts(strong, strong_after, images("retain", 0.0, 0.51))) == 1
