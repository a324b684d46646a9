"""Tables of the command line: what can be chosen, what a check found, the metrics of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from stable_forgetting.cli.shown import show_tables
from stable_forgetting.records import ModelEvaluation
from stable_forgetting.runs.check import Check
from stable_forgetting.runs.memory import Estimate

_BETTER = {"higher": "higher is better", "lower": "lower is better", "retain": "retain model's value is the target"}

_FIXED_FROM = 1e-3
"""Smaller values are written with an exponent."""


def show(what: str) -> None:
    """Print one of the tables of names."""
    show_tables(Console(), [LISTINGS[what]()])


def _bounds() -> Table:
    from stable_forgetting.adapters import BOUNDS

    rows = ((bound.name, bound.formula, _limit(bound.limit), bound.description) for bound in BOUNDS.values())
    return _table(("bound", "formula", "largest |value|", ""), rows)


def _limit(limit: float | None) -> str:
    return "none" if limit is None else f"{limit:g}"


def _objectives() -> Table:
    from stable_forgetting.objectives import OBJECTIVES, get_term

    rows = []
    for name, (forget, retain, description) in OBJECTIVES.items():
        forget_formula = get_term("forget", forget).formula if forget else "none"
        retain_formula = get_term("retain", retain).formula if retain else "none"
        rows.append((name, forget_formula, retain_formula, description))
    return _table(("objective", "forget term", "retain term", ""), rows)


def _metrics() -> Table:
    from stable_forgetting.evaluation import METRICS

    rows = (
        (metric.name, ", ".join(metric.tasks), _BETTER[metric.direction], metric.description)
        for metric in METRICS.values()
    )
    return _table(("metric", "task", "direction", ""), rows)


def _families() -> Table:
    from stable_forgetting.adapters import ATTENTION_LAYERS, MLP_LAYERS

    rows = ((name, ", ".join(layers), ", ".join(ATTENTION_LAYERS[name])) for name, layers in sorted(MLP_LAYERS.items()))
    return _table(("family (model_type)", "mlp: get adapters by default", "attention"), rows)


LISTINGS: dict[str, Callable[[], Table]] = {
    "bounds": _bounds,
    "objectives": _objectives,
    "metrics": _metrics,
    "families": _families,
}


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    return table


def check_tables(found: Check) -> list[Table]:
    """What a check found, without the problems."""
    tables = []
    if found.sets:
        tables.append(_table(("set", "examples"), [(name, str(count)) for name, count in found.sets.items()]))
    if found.layers:
        share = found.num_trainable / found.num_base
        table = Table("adapter", "")
        table.add_row("layers", f"{len(found.layers)}: {found.layers[0]} … {found.layers[-1]}")
        table.add_row("trainable parameters", f"{found.num_trainable:,} ({share:.2%} of {found.num_base:,})")
        tables.append(table)
    if found.memory is not None:
        tables.append(_memory_table(found.memory))
    return tables


def _memory_table(estimate: Estimate) -> Table:
    """Estimated memory per GPU by part, for which batch it is, and whether it fits."""
    table = Table("estimated memory per GPU", title_justify="left", caption_justify="left")
    table.add_column("GiB", justify="right")
    for part, size in estimate.parts.items():
        table.add_row(part, _gibibytes(size))
    table.add_section()
    table.add_row("together", _gibibytes(estimate.total))
    table.caption = "\n".join(_about(estimate))
    return table


def _about(estimate: Estimate) -> Iterable[str]:
    shape, devices = estimate.shape, estimate.devices
    gpus = (
        "1 GPU"
        if devices.num == 1
        else f"{devices.num} GPUs, weights {'divided' if devices.divides_weights else 'whole'}"
    )
    if estimate.is_assumed:
        yield "Assumed, as no text was read: each is as long as data.max_length allows, and all of it labels."
    length = " × ".join(str(size) for size in shape.example)
    unit = "pixels" if len(shape.example) > 1 else "tokens"
    yield f"{gpus}; on each {shape.forget_rows} forget + {shape.retain_rows} other examples of {length} {unit},"
    yield f"{shape.forget_labels + shape.retain_labels} labels. Unlearning only, not finetuning or generation."
    if devices.memory_bytes is not None:
        verdict = "fits" if estimate.total <= devices.memory_bytes else "does not fit"
        yield f"It {verdict} into {_gibibytes(devices.memory_bytes)} GiB; at most {estimate.fitting_rows} examples do."


def _gibibytes(size: int) -> str:
    return f"{size / 2**30:.3f}" if size < 2**30 else f"{size / 2**30:.2f}"


def metric_table(evaluation: ModelEvaluation, reference: ModelEvaluation | None = None) -> Table:
    """All metrics of one model; those that are not available stand below with the reason.

    Args:
        evaluation: Metrics of the model.
        reference: Those of the retain model, shown beside them.
    """
    table = Table(title=Text(evaluation.source, style="table.title"), box=None, padding=(0, 1, 0, 0))
    for name in ("metric", "value", "95 % interval", *(["retain"] if reference else []), "n", "better"):
        table.add_column(name)
    notes = []
    for metric in evaluation.metrics:
        if metric.value is None:
            notes.append(f"{metric.name}: not available, {metric.reason}")
            continue
        beside = (
            [] if reference is None else [_number(value.value if (value := reference.metric(metric.name)) else None)]
        )
        no_interval = metric.low is None or metric.high is None
        interval = "" if no_interval else f"{_number(metric.low)} to {_number(metric.high)}"
        table.add_row(metric.name, _number(metric.value), interval, *beside, str(metric.count), metric.direction)
        if "log10_p" in metric.details:
            notes.append(f"{metric.name}: D {metric.details['D']:.3f}, log10 p {metric.details['log10_p']:.3f}")
    table.caption = Text("\n".join(notes), style="table.caption") if notes else None
    table.caption_justify = "left"
    return table


def _number(value: float | None) -> str:
    """Four decimals, or an exponent where a small p-value would read 0.0000."""
    if value is None:
        return ""
    return f"{value:.4f}" if value == 0 or abs(value) >= _FIXED_FROM else f"{value:.2e}"
