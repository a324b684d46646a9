import pytest

from stable_forgetting.evaluation.metrics import METRICS
from stable_forgetting.evaluation.verdicts import verdicts
from stable_forgetting.records import MetricValue, ModelEvaluation


def model(role, spread=0.02, **values):
    metrics = [
        MetricValue(
            name=name,
            value=value,
            count=40,
            low=value * (1 - spread),
            high=value * (1 + spread),
            direction=METRICS[name].direction,
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
        (language("unlearned", 0.11, 0.95, 2.3), ["Forgotten, and the rest is kept: forget probability fell"]),
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


def test_overshoot_needs_a_clear_gap():
    unlearned = language("unlearned", 0.11, 0.95, 4.0, spread=0.8)
    assert verdicts(BASE, unlearned, RETAIN)[0].startswith("Forgotten")


def test_without_a_retain_model():
    found = verdicts(BASE, language("unlearned", 0.00, 0.95, 15.0))
    assert found[0].startswith("Forgotten")
    assert found[1].startswith("Without a retain model it cannot be judged")
    assert verdicts(BASE, language("unlearned", 0.94, 0.95, 0.06))[0].startswith("Nothing was forgotten")


@pytest.mark.parametrize(("after", "way"), [(0.83, "13%"), (0.48, "49%")])
def test_without_a_retain_model_a_part_of_the_way_is_not_called_forgotten(after, way):
    found = verdicts(BASE, language("unlearned", after, 0.95, 1.0))
    assert found[0].startswith(f"Less known than before, {way} of the way to 0: forget probability fell from 0.950")


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


def test_all_is_kept_only_if_no_mark_says_otherwise():
    """Of the base model's value 97 % are left, but by the narrow intervals the tables mark it as clearly worse."""
    base, unlearned = language("base", 0.95, 0.96, 0.05, 0.005), language("unlearned", 0.11, 0.93, 2.3, 0.005)
    found = verdicts(base, unlearned, RETAIN)
    assert found[0].startswith("Forgotten, but not all of the rest is kept: forget probability fell from 0.950")
    assert found[1:] == ["Clearly worse than before: retain_probability."]


def test_metrics_that_no_sentence_is_about_are_named_if_they_are_marked_as_worse():
    base = model("base", forget_probability=0.95, retain_probability=0.96, forget_nll=0.05, test_perplexity=14.0)
    values = {"retain_probability": 0.95, "forget_nll": 2.3, "test_perplexity": 60.0}
    unlearned = model("unlearned", forget_probability=0.11, **values)
    found = verdicts(base, unlearned, RETAIN)
    assert found[0].startswith("Forgotten, but not all of the rest is kept")
    assert found[1] == "Clearly worse than before: test_perplexity."


def test_a_loss_within_its_interval_is_no_damage():
    base, unlearned = language("base", 0.95, 0.96, 0.05, 0.3), language("unlearned", 0.11, 0.80, 2.3, 0.3)
    found = verdicts(base, unlearned, RETAIN)
    assert found == [
        "Whether the rest is kept is not clear: retained probability fell from 0.960 to 0.800, which is within the "
        "interval."
    ]


def test_a_small_but_clear_change_is_almost_nothing():
    base, unlearned = language("base", 0.95, 0.96, 0.05, 0.001), language("unlearned", 0.92, 0.96, 0.06, 0.001)
    assert verdicts(base, unlearned, RETAIN)[0].startswith("Almost nothing was forgotten")


def test_what_is_not_marked_as_closer_is_not_forgotten():
    base, unlearned = language("base", 0.5, 0.96, 0.7, 0.4), language("unlearned", 0.3, 0.96, 1.2, 0.4)
    found = verdicts(base, unlearned, RETAIN)
    assert found[0].startswith("Not clearly forgotten: forget probability fell from 0.500 to 0.300")


def test_an_image_model_that_hardly_knows_its_classes_is_told_of():
    weak = images("base", 0.14, 0.13)
    found = verdicts(weak, images("unlearned", 0.0, 0.13), num_classes=10)
    assert found[1].startswith(
        "The base model hardly knows the data: forget accuracy 0.140 and retained accuracy 0.130 before unlearning "
        "(chance: 0.100)"
    )
    few = verdicts(images("base", 0.14, 0.9), images("unlearned", 0.0, 0.9), num_classes=10)
    assert "forget accuracy 0.140 before" in few[1]
    known = verdicts(images("base", 0.95, 0.9), images("unlearned", 0.0, 0.9), num_classes=10)
    assert not any("hardly knows" in sentence for sentence in known)


def test_a_language_model_that_hardly_knows_the_forget_answers_is_told_of():
    found = verdicts(language("base", 0.08, 0.05, 2.5), language("unlearned", 0.01, 0.05, 4.6))
    assert found[1].startswith("The base model hardly knows the data: forget probability 0.080 before unlearning, so")
