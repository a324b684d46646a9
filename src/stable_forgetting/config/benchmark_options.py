"""Options of the benchmarks, for the command line and for experiment files alike: the one place where they are written.

A list may also be given as one text with commas, as the command line does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from stable_forgetting.config.section import Count, Positive, Section, Seed
from stable_forgetting.config.settings import parse_section, read_yaml
from stable_forgetting.errors import ConfigError, unknown_name


def _listed(given: Any) -> Any:
    if isinstance(given, int | float) and not isinstance(given, bool):
        return [given]
    found = [part.strip() for part in given.split(",") if part.strip()] if isinstance(given, str) else given
    if found in ([], ()):
        raise ValueError("names nothing; give one or several, with commas between them")
    return found


def _names(given: Any) -> Any:
    """Names as text: classes may be named by numbers, which YAML reads as such."""
    listed = _listed(given)
    if not isinstance(listed, list | tuple):
        return listed
    return [str(name) if isinstance(name, int) and not isinstance(name, bool) else name for name in listed]


def _whole_numbers(given: Any) -> Any:
    try:
        return [int(number) for number in _listed(given)] if isinstance(given, str) else _listed(given)
    except ValueError as error:
        raise ValueError("give whole numbers with commas between them, such as 0,1,2") from error


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
Seeds = Annotated[tuple[Seed, ...], BeforeValidator(_whole_numbers)]
Rates = Annotated[tuple[Positive, ...], BeforeValidator(_listed)]


class BenchmarkOptions(Section):
    """What all benchmarks have in common: a model, data, and methods. Each combination of the lists is one run."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    model: str
    """Hub name or folder of the model."""
    data: str
    """Hub name or folder of the data."""
    retain_model: str | None = None
    """A model that never saw the forget set. With it, the given model is the base model, and nothing is finetuned."""
    objectives: Names = ("gradient_difference",)
    """Names, with commas: those of `forget list objectives`, and calibrated_mean, calibrated_pretrained,
    and calibrated_labels and calibrated_distribution with _placed or _pretrained behind them; of texts
    calibrated_distribution_placed_unseen."""
    bounds: Names = ("identity", "sine")
    """Names, with commas: those of `forget list bounds`, and weight_clipping."""
    methods: Names | None = None
    """OBJECTIVE:BOUND or OBJECTIVE:BOUND:RATE, with commas: these in place of all objectives with all bounds."""
    targets: Names = ("mlp",)
    """Which layers get adapters: mlp, attention, mlp_and_attention."""
    learning_rates: Rates | None = None
    """Numbers, with commas. Default: the benchmark's."""
    seeds: Seeds = (0,)
    """Numbers, with commas: of the order of the examples and of the adapter's start."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Change a setting of all runs."""

    @model_validator(mode="after")
    def _methods_or_combinations(self) -> BenchmarkOptions:
        ignored = self.model_fields_set & {"objectives", "bounds"}
        if self.methods is not None and ignored:
            raise ValueError(f"methods names the methods, so {' and '.join(sorted(ignored))} would count for nothing")
        return self


class TofuOptions(BenchmarkOptions):
    """TOFU, from the pretrained model to the table; what is finished is not run again."""

    benchmark: Literal["tofu"] = "tofu"
    data: str = "locuslab/TOFU"
    """Hub name of the data, or a folder with its files."""
    split: str = "forget10"
    """forget01, forget05, forget10, tofu-20, or forget01-validation, forget05-validation, tofu-20-validation."""
    retain_log: str | None = None
    """TOFU_EVAL.json of a retain model, in its place. The model is the base model then."""

    @property
    def title(self) -> str:
        """Name of the default directory."""
        return f"tofu-{self.split}"


_METHODS_OF_IMAGES = (
    "bounded_ascent:identity:3e-3",
    "gradient_difference:sine:2e-4",
    "gradient_difference:identity:3e-4",
)
"""By default for single images, which a model that never saw them recognises, too: no training ends when none is."""


class ClassDeletionOptions(BenchmarkOptions):
    """Delete classes or images from an image classifier; what is finished is not run again."""

    benchmark: Literal["class-deletion"] = "class-deletion"
    objectives: Names = ("gradient_difference",)
    """Names, with commas: those of `forget list objectives`; for classes also calibrated_chance and
    gradient_difference_stopped; calibrated_mean and others that docs/class_deletion.md names."""
    methods: Names | None = (
        "bounded_ascent:identity:3e-3",
        "gradient_difference_stopped:sine:3e-4",
        "gradient_difference_stopped:identity:6e-4",
    )
    """OBJECTIVE:BOUND or OBJECTIVE:BOUND:RATE, with commas. Where objectives or bounds are given, their
    combinations count instead; with learning_rates, these without a rate. For random and images: gradient_difference
    without an end, at 2e-4 and 3e-4."""
    data: str = "cifar100"
    """cifar100, cifar10, a folder CLASS/IMAGE or train/CLASS/IMAGE, an .npz file, or a hub name."""
    forget: Names | None = None
    """Names of classes, with commas; each is deleted on its own."""
    superclass: Names | None = None
    """Names of superclasses, with commas: all classes of each."""
    random: Count | None = None
    """Number of training images, drawn at random; their classes stay."""
    images: str | None = None
    """File with the row numbers of training images, from 0; all of them are forgotten, their classes stay."""
    together: bool = False
    """Delete all that is named in one request."""
    sequence: bool = False
    """Delete one after the other, each from the result before."""
    finetuned: bool = False
    """The model is a classifier of these classes already: it is the base model, and nothing is finetuned."""
    validation: bool = False
    """For choosing settings: a fifth of the training images of each class takes the place of the test images."""

    @model_validator(mode="before")
    @classmethod
    def _default_methods(cls, given: Any) -> Any:
        """The default methods make room for what else says which methods or rates there are."""
        if not isinstance(given, Mapping) or "methods" in given:
            return given
        if given.keys() & {"objectives", "bounds"}:
            return {**given, "methods": None}
        of_images = any(given.get(name) is not None for name in ("random", "images"))
        methods = _METHODS_OF_IMAGES if of_images else cls.model_fields["methods"].default
        if given.get("learning_rates") is not None:
            methods = [method.rpartition(":")[0] for method in methods]
        return {**given, "methods": methods}

    @property
    def names_images(self) -> bool:
        """Whether single images are to be forgotten, whose classes stay."""
        return self.random is not None or self.images is not None

    @property
    def makes_models(self) -> bool:
        """Whether base and retain models are made from the model, so that it is known what they have seen."""
        return not self.finetuned and self.retain_model is None

    @property
    def title(self) -> str:
        """Name of the default directory."""
        return f"class-deletion-{re.sub(r'[^A-Za-z0-9_-]+', '-', Path(self.data).stem)}"

    @model_validator(mode="after")
    def _one_request(self) -> ClassDeletionOptions:
        given = [name for name in ("forget", "superclass", "random", "images") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"give one of forget, superclass, random and images, not {found}")
        if (self.together or self.sequence) and given[0] in ("random", "images"):
            raise ValueError("together and sequence are for several classes: they go with forget or superclass")
        if self.together and self.sequence:
            raise ValueError("give together or sequence, not both")
        if self.validation and not self.makes_models:
            raise ValueError(
                "validation needs images that no model has seen, but a given base model may have seen all; leave out "
                "validation, or finetuned and retain_model"
            )
        return self


BENCHMARKS: dict[str, type[TofuOptions] | type[ClassDeletionOptions]] = {
    "tofu": TofuOptions,
    "class-deletion": ClassDeletionOptions,
}
"""The options of each benchmark by its name."""


def load_experiment(path: Path, changes: Mapping[str, Any]) -> TofuOptions | ClassDeletionOptions:
    """Read the options of an experiment: a YAML file with `benchmark` and options by their names.

    Args:
        path: The file.
        changes: Options that replace the file's; those in `set` are added to the file's.

    Raises:
        ConfigError: The file is missing or no YAML, names no benchmark, or an option is not allowed.
    """
    given = read_yaml(path)
    name = str(given.get("benchmark"))
    if name not in BENCHMARKS:
        raise ConfigError(
            f"The experiment '{path}' has no benchmark to run. {unknown_name('benchmark', name, BENCHMARKS)}"
        )
    merged = {**given, **changes}
    if isinstance(given.get("set"), dict):
        merged["set"] = {**given["set"], **changes.get("set", {})}
    return parse_benchmark(name, merged, source=f"the experiment '{path}'")


def parse_benchmark(
    name: str, given: Mapping[str, Any], *, source: str = "the options"
) -> TofuOptions | ClassDeletionOptions:
    """Check the options of a benchmark and fill in the defaults.

    Raises:
        ConfigError: Names all problems at once.
    """
    return parse_section(BENCHMARKS[name], given, source=source)
