"""What the template gets: plain records of texts, cells and drawn charts."""

from __future__ import annotations

from dataclasses import dataclass

from stable_forgetting.report.tables import ComparisonTable, ResultsTable
from stable_forgetting.report.verdicts import Verdict


@dataclass(frozen=True)
class Figure:
    """A drawn chart."""

    title: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Example:
    """One example and what each model makes of it."""

    prompt: str
    expected: str
    outputs: tuple[tuple[str, str, bool], ...]
    """Model in words, its output, and whether it is the expected one."""
    image: str | None
    """Address of the image's bytes, inside the page."""


@dataclass(frozen=True)
class ExampleSet:
    """The shown examples of one set."""

    name: str
    examples: tuple[Example, ...]


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
    comparison: ComparisonTable | None
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
    groups: tuple[GroupPage, ...]
    glossary: tuple[Term, ...]
