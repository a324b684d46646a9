"""What the template gets: plain records of texts, cells and drawn charts."""

from __future__ import annotations

from dataclasses import dataclass

from stable_forgetting.report.classes import ClassLine
from stable_forgetting.report.gallery import ExampleSet, Grid
from stable_forgetting.report.gaps import GapTable
from stable_forgetting.report.requests import RequestTables
from stable_forgetting.report.tables import ComparisonTable, ResultsTable
from stable_forgetting.report.verdicts import Verdict


@dataclass(frozen=True)
class Figure:
    """A drawn chart."""

    title: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Classes:
    """Accuracy of single classes."""

    sentence: str
    figure: Figure
    lines: tuple[ClassLine, ...]


@dataclass(frozen=True)
class LayerLine:
    """One line of the certificate."""

    layer: str
    rank: str
    scale: str
    entry: str
    share: str
    norm: str
    holds: str


@dataclass(frozen=True)
class Certificate:
    """The bound's guarantee, layer by layer."""

    sentence: str
    figure: Figure | None
    layers: tuple[LayerLine, ...]
    over: str
    """Of which runs the layers are, where there are several; else empty."""


@dataclass(frozen=True)
class Setting:
    """One setting as used."""

    name: str
    value: str
    given: bool
    """Whether it was given or is a default."""


@dataclass(frozen=True)
class MethodPage:
    """Everything about one method."""

    anchor: str
    name: str
    status: str
    facts: tuple[tuple[str, str], ...]
    verdicts: tuple[Verdict, ...]
    results: ResultsTable | None
    classes: Classes | None
    examples: tuple[ExampleSet, ...]
    figures: tuple[Figure, ...]
    certificate: Certificate | None
    settings: tuple[Setting, ...]
    environment: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class GroupPage:
    """Everything about the methods on one problem."""

    anchor: str
    title: str
    facts: tuple[tuple[str, str], ...]
    sets: tuple[tuple[str, str, str, str], ...]
    """Name, source, count and SHA-256 of each example set."""
    gaps: GapTable | None
    comparison: ComparisonTable | None
    grid: Grid | None
    verdicts: tuple[Verdict, ...]
    figures: tuple[Figure, ...]
    methods: tuple[MethodPage, ...]


@dataclass(frozen=True)
class Term:
    """One entry of the glossary."""

    name: str
    label: str
    group: str
    sentence: str
    direction: str


@dataclass(frozen=True)
class PageData:
    """The whole page."""

    title: str
    subtitle: str
    requests: tuple[RequestTables, ...]
    """Methods over several requests, if there are such."""
    groups: tuple[GroupPage, ...]
    glossary: tuple[Term, ...]
