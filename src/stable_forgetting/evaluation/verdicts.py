"""Sentences that a run says about itself, so that a failed forgetting does not look like a result.

They judge the mean of what was to be forgotten and of what was to be kept, and name every other metric that got clearly
worse; they do not replace the metrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from stable_forgetting.evaluation.metrics import METRICS
from stable_forgetting.intervals import Judgement, difference, estimate_of, excludes_zero, judge_change
from stable_forgetting.records import MetricValue, ModelEvaluation

NOTHING_SHARE = 0.1
"""Less than this share of the way to the retain model (without one: of the way to 0) counts as nothing: so small a
change does not alter what the model answers."""

PARTLY_SHARE = 0.8
"""Less than this share of the way counts as partly forgotten; retain models of other seeds differ by some 10 %. Without
a retain model nobody knows where the way ends, and less than this share of that to 0 is not called forgotten."""

COLLAPSE_SHARE = 0.5
"""Keeping less than this share of the base model's value on the retain set is a collapse, not a side effect."""

KEPT_SHARE = 0.9
"""Keeping less than this share is reported as damage; finetuning with another seed moves it by a few percent."""

OVERSHOOT_RATIO = 1.5
"""Forget NLL this many times the retain model's is overshoot, if that is a clear gap as well: the examples then
stand out by being unlikely, and an attack finds them."""

OVERSHOOT_ACCURACY = 0.1
"""Forget accuracy this far below the retain model's is overshoot, if that is a clear gap as well."""

KNOWN_SHARE = 0.1
"""A base model that is less than this share of the way from chance (language: from 0) to 1 has little to lose: whatever
is done to it, the value stays about the same."""

MOST_NAMES = 5
"""Metrics that a sentence names."""


@dataclass(frozen=True)
class _Question:
    """Which metrics a task is judged by, and how they are called in a sentence."""

    forget: str
    retain: str
    unit: str


_LANGUAGE = _Question("forget_probability", "retain_probability", "probability")
_IMAGE = _Question("forget_accuracy", "retain_accuracy", "accuracy")
_IMAGE_TEST = _Question("forget_accuracy", "retain_test_accuracy", "accuracy")


@dataclass(frozen=True)
class _Finding:
    """A sentence, and the metric whose mark in the tables it explains."""

    sentence: str
    explains: str | None = None


def verdicts(
    base: ModelEvaluation,
    unlearned: ModelEvaluation,
    retain: ModelEvaluation | None = None,
    *,
    num_classes: int | None = None,
) -> list[str]:
    """What happened, in words: forgotten or not, too far or not, and at which cost.

    A difference is called one by the rule that marks it in the tables (`judge_change`), so that no sentence says that
    all is kept where a metric of what is kept is marked as worse; how large it is, is said by the limits above.

    Args:
        base: Metrics before.
        unlearned: Metrics after.
        retain: Metrics of the retain model. None: whether it went too far cannot be judged, and a sentence says so.
        num_classes: Image models: number of classes, by which chance is known.

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
    marks = _marks(base, unlearned, retain)
    overshoot = _overshoot(question, unlearned, retain)
    problems = [
        _forgetting(question, before, after, target, marks, is_beyond=overshoot is not None),
        overshoot,
        _keeping(question, kept_before, kept_after, marks),
    ]
    found = [problem for problem in problems if problem is not None]
    explained = {problem.explains for problem in found}
    worse = [name for name, mark in marks.items() if mark == "worse" and name not in explained]
    if not found:
        how = (
            "but not all of the rest is kept" if any(METRICS[name].keeps for name in worse) else "and the rest is kept"
        )
        found.append(
            _Finding(
                f"Forgotten, {how}: forget {question.unit} {_change(before, after)}{_beside(target)}, "
                f"retained {question.unit} {_change(kept_before, kept_after)}."
            )
        )
    sentences = [entry.sentence for entry in found]
    if worse:
        sentences.append(f"Clearly worse than before{' as well' if explained - {None} else ''}: {_listed(worse)}.")
    sentences += _hardly_known(question, before, kept_before, num_classes)
    if retain is None:
        sentences.append(
            "Without a retain model it cannot be judged whether the model forgot too much or too little; give "
            "retain_model or retain_log."
        )
    return sentences


def _marks(base: ModelEvaluation, unlearned: ModelEvaluation, retain: ModelEvaluation | None) -> dict[str, Judgement]:
    """The mark of every metric in the tables of a run."""
    marks: dict[str, Judgement] = {}
    for metric in unlearned.metrics:
        reference = None if retain is None else estimate_of(retain.metric(metric.name))
        before = estimate_of(base.metric(metric.name))
        marks[metric.name] = judge_change(estimate_of(metric), before, metric.direction, reference)
    return marks


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


def _hardly_known(
    question: _Question, forget: MetricValue, kept: MetricValue, num_classes: int | None
) -> Iterable[str]:
    """That the base model knows too little for forgetting to be seen; texts that it keeps may well be unlikely ones."""
    is_image = question is not _LANGUAGE
    chance = 1 / num_classes if is_image and num_classes is not None else 0.0
    values = [("forget", _value(forget)), *([("retained", _value(kept))] if is_image else [])]
    weak = [
        f"{what} {question.unit} {value:.3f}" for what, value in values if value < chance + KNOWN_SHARE * (1 - chance)
    ]
    if weak:
        beside = f" (chance: {chance:.3f})" if chance else ""
        yield (
            f"The base model hardly knows the data: {' and '.join(weak)} before unlearning{beside}, so forgetting can "
            "hardly be seen. Give a model that was taught them, or have it taught with model.finetune."
        )


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


def _forgetting(
    question: _Question,
    before: MetricValue,
    after: MetricValue,
    target: MetricValue | None,
    marks: Mapping[str, Judgement],
    *,
    is_beyond: bool,
) -> _Finding | None:
    """What is wrong with the forgetting, or None; going too far has a sentence of its own (`is_beyond`)."""
    goal = 0.0 if target is None else _value(target)
    room = _value(before) - goal
    change = f"forget {question.unit} {_change(before, after)}{_beside(target)}"
    if room <= 0 or (target is not None and not _differ(before, target)):
        place = "below" if target is not None and _differ(before, target) else "like"
        return _Finding(
            f"There was nothing to forget: the base model's forget {question.unit} of {_value(before):.3f} is already "
            f"{'0' if target is None else f'{place} the retain model’s {goal:.3f}'}."
        )
    mark, share = marks[question.forget], (_value(before) - _value(after)) / room
    if share < NOTHING_SHARE:
        how = "Almost nothing" if mark == "better" else "Nothing"
        return _Finding(f"{how} was forgotten: {change}.", question.forget)
    if mark in ("unclear", "worse") and not is_beyond:
        how = "not clearly closer to" if mark == "unclear" else "further from"
        return _Finding(
            f"Not clearly forgotten: {change}, which is {how} the retain model than before.", question.forget
        )
    if share < PARTLY_SHARE:
        how, end = ("Less known than before", "0") if target is None else ("Only partly forgotten", "the retain model")
        return _Finding(f"{how}, {share:.0%} of the way to {end}: {change}.", question.forget)
    return None


def _overshoot(question: _Question, unlearned: ModelEvaluation, retain: ModelEvaluation | None) -> _Finding | None:
    """Whether the forget set ended beyond the retain model."""
    if retain is None:
        return None
    name = "forget_nll" if question is _LANGUAGE else question.forget
    after, target = _find(unlearned, name), _find(retain, name)
    if after.value is None or target.value is None or not _differ(after, target):
        return None
    if question is _LANGUAGE:
        is_beyond = after.value > OVERSHOOT_RATIO * target.value
        unit = "NLL per label"
    else:
        is_beyond = after.value < target.value - OVERSHOOT_ACCURACY
        unit = question.unit
    if not is_beyond:
        return None
    values = f"forget {unit} {after.value:.3f}, retain model {target.value:.3f}"
    return _Finding(f"Forgot more than the retain model: {values}.", name)


def _keeping(
    question: _Question, before: MetricValue, after: MetricValue, marks: Mapping[str, Judgement]
) -> _Finding | None:
    """What is wrong with the keeping, or None."""
    change = f"retained {question.unit} {_change(before, after)}"
    if _value(after) >= KEPT_SHARE * _value(before):
        return None
    if marks[question.retain] == "unclear":
        return _Finding(f"Whether the rest is kept is not clear: {change}, which is within the interval.")
    if _value(after) < COLLAPSE_SHARE * _value(before):
        return _Finding(f"The model collapsed: {change}.", question.retain)
    return _Finding(f"The rest was damaged: {change}.", question.retain)


def _differ(first: MetricValue, second: MetricValue) -> bool:
    """Whether the gap between two values is a clear one; without intervals, whether there is one."""
    ours, other = estimate_of(first), estimate_of(second)
    assert ours is not None
    assert other is not None
    gap = difference(ours, other)
    return excludes_zero(gap) if gap.has_interval else gap.value != 0
