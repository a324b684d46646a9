"""The sentences at the top of the page: what happened, in plain words, and no more than the numbers carry."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from stable_forgetting.intervals import excludes_zero
from stable_forgetting.records import LayerCertificate
from stable_forgetting.report.glossary import DIRECTION_WORDS, GROUP_TITLES, HEADLINES, LEADS, define
from stable_forgetting.report.summary import Cell, GroupSummary, MethodSummary, MetricRow
from stable_forgetting.report.wording import NOT_AVAILABLE, number, plural, precise, signed

Tone = Literal["good", "bad", "neutral"]

_MOST_METHODS = 6
"""Methods that a sentence names; the table has all."""


@dataclass(frozen=True)
class Verdict:
    """One sentence; the tone is good or bad only where a difference is larger than its interval."""

    topic: str
    sentence: str
    tone: Tone = "neutral"


def method_verdicts(method: MethodSummary) -> list[Verdict]:
    """What one method did: its end, choice, forgetting, keeping, privacy, the bound, and what the run says itself."""
    task = method.records[0].task
    verdicts = [*_ending(method), *_choice(method)]
    for metric in HEADLINES[task]:
        row = method.row(metric)
        if row is not None:
            verdicts.append(_headline(row))
    certified = [layer for record in method.records for layer in record.certificate]
    if certified:
        verdicts.append(certificate_verdict(certified))
    return [*verdicts, *_notes(method)]


def _notes(method: MethodSummary) -> Iterable[Verdict]:
    """What the runs say; a sentence that not all of them say begins with the names of those that do."""
    said = [(record.name, sentence) for record in method.records for sentence in record.verdicts]
    yield from (Verdict("The run notes", sentence) for sentence in _with_names(said, len(method.records)))


def _with_names(said: Iterable[tuple[str, str]], num_runs: int) -> Iterable[str]:
    """Sentences of runs, each once; one that not all of them say begins with the names of those that do."""
    names: dict[str, list[str]] = {}
    for name, sentence in said:
        names.setdefault(sentence, []).append(name)
    for sentence, those in names.items():
        yield sentence if len(those) == num_runs else f"{', '.join(those)}: {sentence}"


def _choice(method: MethodSummary) -> Iterable[Verdict]:
    """That the checkpoint was chosen by examples on which the method is then measured."""
    choice = method.records[0].choice
    if choice is not None:
        steps = dict.fromkeys(f"{record.kept_step:,}" for record in method.records if record.kept_step is not None)
        kept = f" The adapter is that of step {' and '.join(steps)}." if steps else ""
        names = " and ".join(define(metric).label for metric in choice.metrics)
        counts = " and ".join(f"{count:,} {name}" for name, count in choice.counts.items())
        yield Verdict(
            "Checkpoint",
            f"Chosen during training by {names} on {counts} examples that are among those measured here: the values "
            f"are a little better than on others.{kept}",
        )


def group_verdicts(group: GroupSummary) -> list[Verdict]:
    """What a comparison shows: who leads by which number, and what failed."""
    verdicts = [_leading(group, metric) for metric in LEADS[group.task] if metric in group.leaders]
    failed = [method.name for method in group.methods if method.status == "failed"]
    if failed:
        have = "run has" if len(failed) == 1 else "runs have"
        verdicts.append(Verdict("Failed", f"{len(failed)} {have} no result: {', '.join(failed)}.", "bad"))
    return verdicts


def certificate_verdict(layers: Sequence[LayerCertificate]) -> Verdict:
    """The bound's guarantee in one sentence."""
    largest = max(layers, key=lambda layer: layer.largest_entry)
    bounded = [layer for layer in layers if layer.entry_limit is not None]
    count = len({layer.layer for layer in layers})
    if not bounded:
        sentence = (
            "This adapter has no bound, so nothing is guaranteed: the largest change of any weight is "
            f"{number(largest.largest_entry)} (layer {largest.layer})."
        )
        return Verdict("Bound", sentence)
    broken = list(dict.fromkeys(layer.layer for layer in layers if layer.holds is False))
    if broken:
        return Verdict("Bound", f"The bound does not hold in {plural(len(broken), 'layer')}: {broken[0]}.", "bad")
    closest = max(bounded, key=entry_share)
    which = f"{plural(count, 'adapted layer')}{' of all runs' if count < len(layers) else ''}"
    sentence = (
        f"Every weight's change is within its limit in all {which}. The closest entry "
        f"reaches {entry_share(closest):.1%} of its limit: {precise(closest.largest_entry)} of "
        f"{precise(closest.entry_limit or 0.0)} in layer {closest.layer}."
    )
    return Verdict("Bound", sentence, "good" if all(layer.holds for layer in layers) else "neutral")


def closest_layers(layers: Iterable[LayerCertificate]) -> list[LayerCertificate]:
    """Each layer once, as the run left it that came closest to its limits; without limits, that changed it most."""
    runs_of: dict[str, list[LayerCertificate]] = {}
    for layer in layers:
        runs_of.setdefault(layer.layer, []).append(layer)
    return [max(found, key=_closeness) for found in runs_of.values()]


def _closeness(layer: LayerCertificate) -> tuple[bool, float, float]:
    """One whose bound does not hold comes first, also where that is for its norm."""
    return layer.holds is False, entry_share(layer), layer.largest_entry


def entry_share(layer: LayerCertificate) -> float:
    """Largest entry as a share of its limit; 0 for a layer without a limit."""
    return layer.largest_entry / layer.entry_limit if layer.entry_limit else 0.0


def _ending(method: MethodSummary) -> Iterable[Verdict]:
    if method.status == "failed":
        yield Verdict("Failed", f"The run failed: {method.note or 'no error was recorded'}", "bad")
    stopped = [record for record in method.records if record.status == "stopped"]
    reasons = [(record.name, record.stopped or "The reason was not recorded.") for record in stopped]
    yield from (Verdict("Stopped early", reason) for reason in _with_names(reasons, len(method.records)))


def _headline(row: MetricRow) -> Verdict:
    definition = define(row.name)
    topic = GROUP_TITLES[definition.group]
    if row.unlearned.estimate is None:
        return Verdict(topic, f"{definition.label}: {NOT_AVAILABLE}. {row.unlearned.reason}")
    values = f"{definition.label}: {number(row.unlearned.estimate.value)}"
    compared = [
        f"{number(cell.estimate.value)} {words}"
        for cell, words in ((row.base, "before"), (row.retain, "for the retain model"))
        if cell.estimate is not None
    ]
    against = f" against {' and '.join(compared)}" if compared else ""
    sentence = f"{values}{against}. {_change_sentence(row)}"
    return Verdict(topic, sentence, _tone(row))


def _tone(row: MetricRow) -> Tone:
    """Good only if, where the retain model is the goal, no clear gap to it is left."""
    if row.change == "worse":
        return "bad"
    gap_remains = row.direction == "retain" and row.gap.estimate is not None and excludes_zero(row.gap.estimate)
    return "good" if row.change == "better" and not gap_remains else "neutral"


def _change_sentence(row: MetricRow) -> str:
    if row.change == "not judged":
        return f"Whether that is better is not judged: {_missing_for_judgement(row)}."
    if row.direction == "retain":
        moved = {
            "better": "It came closer to the retain model",
            "worse": "It moved away from the retain model",
            "unclear": "It is not clearly closer to the retain model than before",
        }[row.change]
        return f"{moved}{_gap_clause(row.gap)}."
    if row.change == "unclear":
        return "The change is within its interval: no clear difference."
    return f"That is {row.change} than before, by more than the interval."


def _missing_for_judgement(row: MetricRow) -> str:
    if row.direction == "retain" and row.retain.estimate is None:
        return "there is no retain model's value to compare with"
    return "there is no interval to compare the change with"


def _gap_clause(gap: Cell) -> str:
    if gap.estimate is None or not gap.estimate.has_interval:
        return ""
    return (
        ", and a clear gap to it remains"
        if excludes_zero(gap.estimate)
        else "; the remaining gap is within its interval"
    )


def _leading(group: GroupSummary, metric: str) -> Verdict:
    definition = define(metric)
    topic = "Overall" if metric == "tow" else GROUP_TITLES[definition.group]
    rows = {method.name: row for method in group.methods if (row := method.row(metric)) is not None}
    values = {name: text for name, row in rows.items() if (text := _placed(name, row)) is not None}
    if len(values) < 2:
        return Verdict(topic, f"{definition.label}: fewer than two methods have a value to compare.")
    number_words = f"{definition.label} ({DIRECTION_WORDS[next(iter(rows.values())).direction]})"
    leaders = group.leaders[metric]
    if not leaders:
        return Verdict(topic, f"{number_words}: {_some(values.values())}; {_why_none_leads(rows.values())}.")
    ahead = _some(values[name] for name in leaders)
    behind = _some(text for name, text in values.items() if name not in leaders)
    leads = "leads" if len(leaders) == 1 else "lead, with no clear difference between them"
    return Verdict(topic, f"{number_words}: {ahead} {leads}; behind: {behind}.", "good")


def _placed(name: str, row: MetricRow) -> str | None:
    """A method with the number that its place is given by: the value, or the gap to the retain model beside it."""
    if row.unlearned.estimate is None:
        return None
    gap = row.gap.estimate if row.direction == "retain" else None
    return f"{name} ({number(row.unlearned.estimate.value)}{f', gap {signed(gap.value)}' if gap else ''})"


def _why_none_leads(rows: Iterable[MetricRow]) -> str:
    valued = [row for row in rows if row.unlearned.estimate is not None]
    if any(row.direction == "retain" and row.retain.estimate is None for row in valued):
        return "without a retain model no method is said to lead"
    if not all(row.unlearned.estimate is not None and row.unlearned.estimate.has_interval for row in valued):
        return "without intervals no method is said to lead"
    return "no method leads by more than the interval"


def _some(methods: Iterable[str]) -> str:
    """The first methods, and how many more there are."""
    listed = list(methods)
    more = f" and {len(listed) - _MOST_METHODS} more" if len(listed) > _MOST_METHODS else ""
    return ", ".join(listed[:_MOST_METHODS]) + more
