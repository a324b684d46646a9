"""Sentences that a run says about itself, so that a failed forgetting does not look like a result.

They judge the mean of what was to be forgotten and of what was to be kept; they do not replace the metrics.
"""

from __future__ import annotations

from dataclasses import dataclass

from stable_forgetting.records import MetricValue, ModelEvaluation

NOTHING_SHARE = 0.1
"""Less than this share of the way to the retain model (without one: of the way to 0) counts as nothing: so small a
change does not alter what the model answers."""

PARTLY_SHARE = 0.8
"""Less than this share of the way counts as partly forgotten; retain models of other seeds differ by some 10 %."""

COLLAPSE_SHARE = 0.5
"""Keeping less than this share of the base model's value on the retain set is a collapse, not a side effect."""

KEPT_SHARE = 0.9
"""Keeping less than this share is reported as damage; finetuning with another seed moves it by a few percent."""

LEAST_LOSS = 0.005
"""A smaller share of the base model's value on the retain set would be 0 % in a sentence."""

KNOWN_ACCURACY = 0.5
"""A classifier that is wrong more often than right on what is kept knows too little to show what it forgets."""

OVERSHOOT_RATIO = 1.5
"""Forget NLL this many times the retain model's is overshoot, if the intervals are disjoint as well: the examples then
stand out by being unlikely, and an attack finds them."""

OVERSHOOT_ACCURACY = 0.1
"""Forget accuracy this far below the retain model's is overshoot, if the intervals are disjoint as well."""


@dataclass(frozen=True)
class _Question:
    """Which metrics a task is judged by, and how they are called in a sentence."""

    forget: str
    retain: str
    unit: str


_LANGUAGE = _Question("forget_probability", "retain_probability", "probability")
_IMAGE = _Question("forget_accuracy", "retain_accuracy", "accuracy")
_IMAGE_TEST = _Question("forget_accuracy", "retain_test_accuracy", "accuracy")


def verdicts(base: ModelEvaluation, unlearned: ModelEvaluation, retain: ModelEvaluation | None = None) -> list[str]:
    """What happened, in words: forgotten or not, too far or not, and at which cost.

    Args:
        base: Metrics before.
        unlearned: Metrics after.
        retain: Metrics of the retain model. None: whether it went too far cannot be judged, and a sentence says so.

    Returns:
        At least one sentence. The first word of a good outcome is "Forgotten".
    """
    question = _question(base, unlearned)
    needed = [_find(base, question.forget), _find(unlearned, question.forget)]
    needed += [_find(base, question.retain), _find(unlearned, question.retain)]
    if retain is not None:
        needed.append(_find(retain, question.forget))
    blind = [_cannot_judge(metric, question) for metric in needed if metric.value is None]
    if blind:
        return list(dict.fromkeys(blind))
    before, after, kept_before, kept_after = needed[:4]
    target = needed[4] if retain is not None else None
    problems = [
        _forgetting(question, before, after, target),
        _overshoot(question, unlearned, retain),
        _keeping(question, kept_before, kept_after),
    ]
    found = [sentence for sentence in problems if sentence is not None]
    if not found:
        found.append(
            f"Forgotten, {_price(kept_before, kept_after)}: forget {question.unit} {_change(before, after)}"
            f"{_beside(target)}, retained {question.unit} {_change(kept_before, kept_after)}."
        )
    if question is not _LANGUAGE and _value(kept_before) < KNOWN_ACCURACY:
        found.append(
            f"The base model itself has a retained accuracy of {_value(kept_before):.3f} only, so that little "
            "can be seen of what it forgets; train it longer or on more images first."
        )
    if retain is None:
        found.append(
            "Without a retain model it cannot be judged whether the model forgot too much or too little; give "
            "retain_model or retain_log."
        )
    return found


def _question(base: ModelEvaluation, unlearned: ModelEvaluation) -> _Question:
    if base.metric("forget_accuracy") is None:
        return _LANGUAGE
    has_test = all(_find(model, "retain_test_accuracy").value is not None for model in (base, unlearned))
    return _IMAGE_TEST if has_test else _IMAGE


def _find(evaluation: ModelEvaluation, name: str) -> MetricValue:
    found = evaluation.metric(name)
    return found or MetricValue(name=name, reason="it was not measured", direction="retain")


def _cannot_judge(metric: MetricValue, question: _Question) -> str:
    what = "was forgotten" if metric.name == question.forget else "was kept"
    return f"Cannot judge what {what}: {metric.name} is not available ({metric.reason})."


def _value(metric: MetricValue) -> float:
    assert metric.value is not None
    return metric.value


def _change(before: MetricValue, after: MetricValue) -> str:
    first, second = f"{_value(before):.3f}", f"{_value(after):.3f}"
    if first == second:
        return f"stayed at {second}"
    return f"{'fell' if _value(after) < _value(before) else 'rose'} from {first} to {second}"


def _beside(target: MetricValue | None) -> str:
    return "" if target is None else f" (retain model {_value(target):.3f})"


def _forgetting(question: _Question, before: MetricValue, after: MetricValue, target: MetricValue | None) -> str | None:
    """What is wrong with the forgetting, or None."""
    goal = 0.0 if target is None else _value(target)
    room = _value(before) - goal
    change = f"forget {question.unit} {_change(before, after)}{_beside(target)}"
    if room <= 0 or (target is not None and _overlap(before, target)):
        return (
            f"There was nothing to forget: the base model's forget {question.unit} of {_value(before):.3f} is already "
            f"{'0' if target is None else f'like the retain model’s {goal:.3f}'}."
        )
    share = (_value(before) - _value(after)) / room
    if share < NOTHING_SHARE:
        return f"Nothing was forgotten: {change}."
    if target is not None and share < PARTLY_SHARE:
        return f"Only partly forgotten, {share:.0%} of the way to the retain model: {change}."
    return None


def _overshoot(question: _Question, unlearned: ModelEvaluation, retain: ModelEvaluation | None) -> str | None:
    """Whether the forget set ended beyond the retain model."""
    if retain is None:
        return None
    name = "forget_nll" if question is _LANGUAGE else question.forget
    after, target = _find(unlearned, name), _find(retain, name)
    if after.value is None or target.value is None or _overlap(after, target):
        return None
    if question is _LANGUAGE:
        is_beyond = after.value > OVERSHOOT_RATIO * target.value
        unit = "NLL per label"
    else:
        is_beyond = after.value < target.value - OVERSHOOT_ACCURACY
        unit = question.unit
    if not is_beyond:
        return None
    return f"Forgot more than the retain model: forget {unit} {after.value:.3f}, retain model {target.value:.3f}."


def _keeping(question: _Question, before: MetricValue, after: MetricValue) -> str | None:
    """What is wrong with the keeping, or None."""
    change = f"retained {question.unit} {_change(before, after)}"
    if _value(after) < COLLAPSE_SHARE * _value(before):
        return f"The model collapsed: {change}."
    if _value(after) < KEPT_SHARE * _value(before):
        return f"The rest was damaged: {change}."
    return None


def _price(before: MetricValue, after: MetricValue) -> str:
    """What the forgetting took from the rest, in whole percent; a table can call less than that a clear change."""
    lost = 1 - _value(after) / _value(before) if _value(before) > 0 else 0.0
    return "and the rest is kept" if lost < LEAST_LOSS else f"at the price of {lost:.0%} of the rest"


def _overlap(first: MetricValue, second: MetricValue) -> bool:
    """Whether the intervals touch; without an interval the value itself is taken."""
    low, high = _ends(first)
    other_low, other_high = _ends(second)
    return low <= other_high and other_low <= high


def _ends(metric: MetricValue) -> tuple[float, float]:
    value = _value(metric)
    return (value if metric.low is None else metric.low, value if metric.high is None else metric.high)
