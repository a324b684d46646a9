"""Tables of the command line: what can be chosen, what a check found, the metrics of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from stable_forgetting.records import ModelEvaluation
from stable_forgetting.runs.check import Check
from stable_forgetting.runs.memory import Estimate

_BETTER = {"higher": "higher is better", "lower": "lower is better", "retain": "retain model's value is the target"}


def show(what: str) -> None:
    """Print one of the tables of names."""
    Console().print(LISTINGS[what]())


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
        retain_formula = get_term("retain", retain).formula if retain else "none"
        rows.append((name, get_term("forget", forget).formula, retain_formula, description))
    return _table(("objective", "forget term", "retain term", ""), rows)


def _metrics() -> Table:
    from stable_forgetting.evaluation import METRICS

    rows = (
        (metric.name, ", ".join(metric.tasks), _BETTER[metric.direction], metric.description)
        for metric in METRICS.values()
    )
    return _table(("metric", "task", "direction", ""), rows)


def _families() -> Table:
    from stable_forgetting.adapters import MLP_LAYERS

    rows = ((name, str(layers)) for name, layers in sorted(MLP_LAYERS.items()))
    return _table(("family (model_type)", "MLP layers that get adapters"), rows)


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
    length = " × ".join(str(size) for size in shape.example)
    unit = "pixels" if len(shape.example) > 1 else "tokens"
    yield f"{gpus}; on each {shape.forget_rows} forget + {shape.retain_rows} retain examples of {length} {unit},"
    yield f"{shape.forget_labels + shape.retain_labels} labels. Unlearning only, not finetuning or generation."
    if devices.memory_bytes is not None:
        verdict = "fits" if estimate.total <= devices.memory_bytes else "does not fit"
        yield f"It {verdict} into {_gibibytes(devices.memory_bytes)} GiB; at most {estimate.fitting_rows} examples do."


def _gibibytes(size: int) -> str:
    return f"{size / 2**30:.3f}" if size < 2**30 else f"{size / 2**30:.2f}"


def metric_table(evaluation: ModelEvaluation) -> Table:
    """All metrics of one model; those that are not available stand below with the reason."""
    table = Table(title=evaluation.source, box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("metric", "value", "95 % interval", "n", "better"):
        table.add_column(name, no_wrap=True)
    missing = []
    for metric in evaluation.metrics:
        if metric.value is None:
            missing.append(f"{metric.name}: not available, {metric.reason}")
            continue
        interval = "" if metric.low is None or metric.high is None else f"{metric.low:.4f} to {metric.high:.4f}"
        better = "near retain" if metric.direction == "retain" else metric.direction
        table.add_row(metric.name, f"{metric.value:.4f}", interval, str(metric.count), better)
    table.caption = "\n".join(missing) or None
    return table
