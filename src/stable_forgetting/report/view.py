"""Summary to page data: every text, cell and chart of the page, so that the template only arranges them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Literal

from stable_forgetting.config import flat_settings
from stable_forgetting.records import LayerCertificate, RunRecord
from stable_forgetting.report import wording
from stable_forgetting.report.charts import draw_bars, draw_panel, draw_scatter
from stable_forgetting.report.class_chart import draw_classes
from stable_forgetting.report.classes import charted_classes, class_lines, class_rows, class_sentence
from stable_forgetting.report.gallery import example_grid, example_sets
from stable_forgetting.report.gaps import gap_table
from stable_forgetting.report.glossary import GROUP_TITLES, define
from stable_forgetting.report.page_data import (
    Certificate,
    Classes,
    Figure,
    GroupPage,
    LayerLine,
    MethodPage,
    PageData,
    Setting,
    Term,
)
from stable_forgetting.report.rate_charts import draw_plane, draw_rates
from stable_forgetting.report.rates import RatePanel, rate_panels, rate_plane
from stable_forgetting.report.replicates import unusual_protocol
from stable_forgetting.report.requests import Requests, find_requests, request_name, request_tables
from stable_forgetting.report.series import (
    Panel,
    certificate_bars,
    comparison_panels,
    forget_retain_scatter,
    method_panels,
)
from stable_forgetting.report.summary import ROLES, GroupSummary, MethodSummary, Summary
from stable_forgetting.report.tables import comparison_table, results_table
from stable_forgetting.report.verdicts import (
    certificate_verdict,
    closest_layers,
    entry_share,
    group_verdicts,
    method_verdicts,
)

_PLANE_CAPTION = (
    "Each line is one method through its learning rates, mean over the seeds: the larger the point, the higher the "
    "rate. Faint points are single runs."
)
_STAR = " The retain model (star) is the place to reach."
_RATES_CAPTION = "over the seeds; faint points are single runs. A flat line is a method that forgives a wrong rate."


def build_page(summary: Summary) -> PageData:
    """Turn a summary into the data of its page."""
    anchors = {id(group): f"g{place}" for place, group in enumerate(summary.groups, start=1)}
    several = len(summary.groups) > 1
    requests = find_requests(summary.groups)
    return PageData(
        title=_title(summary, requests),
        subtitle="What was forgotten, what was kept, and how each number was made",
        requests=tuple(
            request_tables(
                found, anchors, f"r{place}", "All requests" if len(requests) == 1 else f"All requests, {found.model}"
            )
            for place, found in enumerate(requests, start=1)
        ),
        groups=tuple(_group_page(group, anchors[id(group)], among_others=several) for group in summary.groups),
        glossary=tuple(_glossary(summary)),
    )


def _title(summary: Summary, requests: Sequence[Requests]) -> str:
    num_methods = sum(len(group.methods) for group in summary.groups)
    if num_methods == 1:
        return summary.groups[0].methods[0].name
    if len(requests) == 1 and len(requests[0].groups) == len(summary.groups):
        methods = wording.plural(len(requests[0].rows), "method")
        return f"Comparison of {methods} on {wording.plural(len(summary.groups), 'request')}"
    return f"Comparison of {wording.plural(num_methods, 'method')}"


def _group_page(group: GroupSummary, anchor: str, *, among_others: bool) -> GroupPage:
    task = {"language": "Language model", "image": "Image classifier"}[group.task]
    if among_others and group.task == "image":
        task = f"{task}, {request_name(group)}"
    several = len(group.methods) > 1
    anchors = {method.name: f"{anchor}-m{place}" for place, method in enumerate(group.methods, start=1)}
    grid = example_grid(group, anchors)
    methods = [_method_page(method, anchors[method.name], with_examples=grid is None) for method in group.methods]
    return GroupPage(
        anchor=anchor,
        title=f"{task}: {wording.plural(len(group.methods), 'method')} on one problem" if several else task,
        facts=tuple(_group_facts(group)),
        sets=tuple((entry.name, entry.source, f"{entry.count:,}", entry.sha256) for entry in group.sets),
        gaps=gap_table(group, anchors, anchor) if several else None,
        comparison=comparison_table(group, anchors, anchor) if several else None,
        grid=grid,
        verdicts=tuple(group_verdicts(group)) if several else (),
        figures=tuple(_group_figures(group, anchor)) if several else (),
        methods=tuple(methods),
    )


def _group_facts(group: GroupSummary) -> Iterable[tuple[str, str]]:
    yield "Base model", _base_words(group)
    if protocol := unusual_protocol(group.methods[0].records[0]):
        yield "Measured with", protocol
    notes = {note: None for method in group.methods for record in method.records for note in record.notes}
    if notes:
        yield "Notes", " ".join(notes)


def _base_words(group: GroupSummary) -> str:
    if group.num_bases > 1:
        return f"{group.num_bases} models, those that earlier runs left: each method goes on from its own, seed by seed"
    return group.base_identity or "unknown: no run got far enough to record it"


def _group_figures(group: GroupSummary, anchor: str) -> Iterable[Figure]:
    plane = rate_plane(group)
    scatter = None if plane is not None else forget_retain_scatter(group)
    if plane is not None:
        star = _STAR if any(role == "retain" for role, _, _ in plane.references) else ""
        yield Figure("Forgetting against keeping", f"{_PLANE_CAPTION}{star}", draw_plane(plane, f"{anchor}-plane"))
    for rates in rate_panels(group):
        title = f"{rates.label} by learning rate"
        yield Figure(title, _rates_caption(rates), draw_rates(rates, f"{anchor}-{rates.key}"))
    if scatter is not None:
        star = _STAR if any(point.role == "retain" for point in scatter.points) else ""
        caption = f"Each method with its 95 % intervals.{star}"
        yield Figure("Forgetting against keeping", caption, draw_scatter(scatter, f"{anchor}-scatter"))
    yield from (_figure(panel, f"{anchor}-{panel.key}") for panel in comparison_panels(group))


def _rates_caption(panel: RatePanel) -> str:
    zeros = f" Not drawn, because a value is 0: {'; '.join(panel.left_out)}." if panel.left_out else ""
    return f"{'Geometric mean' if panel.log else 'Mean'} {_RATES_CAPTION}{zeros}"


def _figure(panel: Panel, prefix: str) -> Figure:
    return Figure(panel.title, panel.caption, draw_panel(panel, prefix))


def _method_page(method: MethodSummary, anchor: str, *, with_examples: bool) -> MethodPage:
    first = method.records[0]
    return MethodPage(
        anchor=anchor,
        name=method.name,
        status=method.status,
        facts=tuple(_facts(method)),
        verdicts=tuple(method_verdicts(method)),
        results=results_table(method, anchor) if method.rows else None,
        classes=_classes(method, anchor),
        examples=tuple(example_sets(first)) if with_examples else (),
        figures=tuple(_figure(panel, f"{anchor}-{panel.key}") for panel in method_panels(method)),
        certificate=_certificate(method, anchor),
        settings=tuple(_settings(first)),
        environment=tuple(_environment(first)),
    )


def _facts(method: MethodSummary) -> Iterable[tuple[str, str]]:
    first = method.records[0]
    if len(method.records) > 1:
        yield "Runs", ", ".join(record.name for record in method.records)
    yield "Created", first.created
    if (again := first.measured_again) is not None:
        yield "Measured again", f"{again.created}, {again.device}, commit {again.commit or 'not recorded'}"
    adapter = first.adapter
    if adapter is not None:
        yield "Adapter", f"{adapter.bound}, rank {adapter.rank}, omega {wording.number(adapter.omega)}"
        share = adapter.num_trainable / adapter.num_base if adapter.num_base else 0.0
        yield "Trained", f"{adapter.num_trainable:,} of {adapter.num_base:,} parameters ({share:.2%})"
    if first.history:
        steps, kept = first.history[-1].step, first.kept_step
        yield "Steps", f"{steps:,}" if kept in (None, steps) else f"{steps:,}, the adapter is that of step {kept:,}"
    if first.timings:
        yield "Time", ", ".join(f"{phase} {wording.seconds(value)}" for phase, value in first.timings.items())
    if first.peak_memory_bytes is not None:
        yield "Peak memory", wording.memory(first.peak_memory_bytes)
    for role in ROLES:
        evaluation = first.evaluation(role)
        if evaluation is not None:
            yield wording.ROLE_WORDS[role], evaluation.source


def _classes(method: MethodSummary, anchor: str) -> Classes | None:
    rows = class_rows(method)
    if not rows:
        return None
    shown = charted_classes(rows)
    which = ""
    if len(shown) < len(rows):
        deleted, drawn = (sum(row.deleted for row in part) for part in (rows, shown))
        which = f" Shown are {drawn} of {deleted} deleted classes and the {len(shown) - drawn} most changed others."
    star = "; the star is the retain model" if any(row.retain for row in shown) else ""
    caption = f"From the base to the unlearned model, with 95 % intervals{star}.{which}"
    figure = Figure("Change of accuracy by class", caption, draw_classes(shown, f"{anchor}-classes"))
    return Classes(class_sentence(rows), figure, tuple(class_lines(rows)))


def _certificate(method: MethodSummary, anchor: str) -> Certificate | None:
    layers = [layer for record in method.records for layer in record.certificate]
    if not layers:
        return None
    closest = closest_layers(layers)
    num_runs = sum(bool(record.certificate) for record in method.records)
    over = "" if num_runs == 1 else f", the closest over {wording.plural(num_runs, 'run')}"
    bars = certificate_bars(closest)
    figure = None
    if bars:
        shown = "" if len(bars) == len(closest) else f" The {len(bars)} closest of {len(closest)} are shown."
        caption = f"Largest entry of each layer's change as a share of its limit{over}.{shown}"
        figure = Figure("Distance to the bound", caption, draw_bars(bars, f"{anchor}-bound"))
    return Certificate(certificate_verdict(layers).sentence, figure, tuple(map(_layer_line, closest)), over)


def _layer_line(layer: LayerCertificate) -> LayerLine:
    def against(value: float, limit: float | None) -> str:
        return f"{wording.precise(value)} of {'no limit' if limit is None else wording.precise(limit)}"

    return LayerLine(
        layer=layer.layer,
        rank=str(layer.rank),
        scale=wording.precise(layer.scale),
        entry=against(layer.largest_entry, layer.entry_limit),
        share="no limit" if layer.entry_limit is None else f"{entry_share(layer):.1%}",
        norm=against(layer.frobenius_norm, layer.frobenius_limit),
        holds={True: "holds", False: "does not hold", None: "nothing to hold"}[layer.holds],
    )


def _settings(record: RunRecord) -> Iterable[Setting]:
    given = flat_settings(record.given)
    for name, value in flat_settings(record.config).items():
        yield Setting(name, value if isinstance(value, str) else json.dumps(value, default=str), name in given)


def _environment(record: RunRecord) -> Sequence[tuple[str, str]]:
    environment = record.environment
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
    models = [(f"{wording.ROLE_WORDS[role]} identity", record.models[role]) for role in ROLES if role in record.models]
    return [
        ("Device", environment.device),
        ("Platform", environment.platform),
        ("Threads", str(environment.num_threads)),
        ("Versions", versions),
        ("Commit", environment.commit or "not recorded"),
        *models,
    ]


def _glossary(summary: Summary) -> Iterable[Term]:
    rows = {row.name: row for group in summary.groups for method in group.methods for row in method.rows}
    columns: dict[str, Literal[""]] = {column: "" for group in summary.groups for column in group.columns}
    for name in {**rows, **columns}:
        definition = define(name)
        direction = wording.direction(rows[name].direction) if name in rows else "not measured here"
        yield Term(name, definition.label, GROUP_TITLES[definition.group], definition.sentence, direction)
