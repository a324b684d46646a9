"""What a run is made of: the one place where every option and its default is written.

A config is data only. The run takes it apart and passes plain, named arguments on; no layer, loss or metric sees it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stable_forgetting.errors import ConfigError, unknown_name

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Schedule = Literal["linear", "cosine", "constant_with_warmup"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class SourceConfig(_Section):
    """Where examples come from, and which of them are taken."""

    path: str | None = None
    """File (.jsonl .json .csv .parquet .npz .txt), folder of images, hub name, or `builtin:people`, `builtin:digits`.
    None: the rows of `data.source`."""
    subset: str | None = None
    """Configuration of a hub data set."""
    split: str | None = None
    """Split of a hub data set, or the rows whose column `split` has this value."""
    where: str | None = None
    """Rule over the columns, such as `person == "Ada"` or `label in [3, 5]`."""
    limit: Count | None = None
    """At most this many examples, the first ones."""
    prompt: str = "prompt"
    """Column of the prompt."""
    answer: str = "answer"
    """Column of the answer."""
    text: str = "text"
    """Column of plain text, used where there are no prompt and answer."""
    messages: str = "messages"
    """Column of chat messages, used where there are no prompt and answer."""
    image: str = "image"
    """Column of the image."""
    label: str = "label"
    """Column of the class."""


class DataConfig(_Section):
    """The example sets. A set without a path is taken out of `source` by its rule."""

    source: SourceConfig | None = None
    forget: SourceConfig
    retain: SourceConfig = SourceConfig()
    """Without path and rule: everything in `source` that no other set takes."""
    holdout: SourceConfig | None = None
    """Unseen examples of the forget set's kind: membership attacks and calibrated targets need them."""
    test: SourceConfig | None = None
    """Language: other text for perplexity. Images: test images of all classes."""
    max_length: Count = 512
    """Longest example in tokens; longer ones are cut at the end of the answer."""
    chat_template: bool | None = None
    """Whether prompts are put into the tokenizer's chat template. None: if it has one."""
    template: str | None = None
    """Text with `{prompt}` and, at its end, `{answer}`. None: `Question: {prompt}\\nAnswer: {answer}`."""
    num_classes: Count | None = None
    """Number of classes. None: the largest label + 1."""


class FinetuneConfig(_Section):
    """How the base model is taught the forget and retain sets, and the retain model the retain set alone."""

    epochs: Positive = 8
    learning_rate: Positive = 1e-4
    batch_size: Count = 16
    weight_decay: NotNegative = 0.0
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    schedule: Schedule = "cosine"
    seed: int = 0


class ModelConfig(_Section):
    """The model to be unlearned, and how it is read."""

    name: str
    """Local folder, hub name, `package:NAME` for weights that come with an installed Python package, or
    `builtin:people`, `builtin:digits`."""
    revision: str | None = None
    gguf_file: str | None = None
    """Name of the GGUF file in that folder or package."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    trust_remote_code: bool = False
    """Whether code that comes with the model may run."""
    finetune: FinetuneConfig | None = None
    """If given, `name` is only the pretrained model: base and retain model are made from it by finetuning, and kept."""


class AdapterConfig(_Section):
    """The bounded adapter."""

    bound: str = "sine"
    rank: Count = 4
    omega: Positive = 100.0
    scale: Positive | None = None
    """Largest change of any weight. None: lora_alpha / rank / sqrt(in_features) with lora_alpha = rank."""
    target_modules: str | list[str] | None = None
    """None: the MLP layers of the model's family."""
    seed: int = 0
    """Of the random start of A."""


class TargetConfig(_Section):
    """Where calibrated forgetting gets the likelihood to stop at."""

    source: Literal["holdout", "pretrained", "number"] = "holdout"
    matching: Literal["mean", "quantiles"] = "quantiles"
    """With holdout: one target for all examples, or the holdout's whole distribution by rank."""
    nll: Positive | None = None
    """With number: the target in nats per label."""


class ObjectiveConfig(_Section):
    """objective = forget_weight × forget term + retain_weight × retain term."""

    name: str = "gradient_difference"
    """ascent, gradient_difference, kl, npo or calibrated: a forget term with its usual retain term."""
    retain: str | None = None
    """Another retain term, nll or kl. None: the usual one."""
    forget_weight: NotNegative = 1.0
    retain_weight: NotNegative = 1.0
    beta: Positive = 0.1
    """Of npo."""
    target: TargetConfig = TargetConfig()
    """Of calibrated."""


class StopRule(_Section):
    """Stop the training when a validation metric has passed a value."""

    metric: str
    above: float | None = None
    below: float | None = None

    @model_validator(mode="after")
    def _one_side(self) -> StopRule:
        if (self.above is None) == (self.below is None):
            raise ValueError("give either 'above' or 'below'")
        return self


class TrainingConfig(_Section):
    """The unlearning itself."""

    steps: Count | None = None
    """Number of optimizer updates. None: `epochs`."""
    epochs: Positive = 5
    """Passes over the forget set."""
    learning_rate: Positive = 1e-3
    forget_batch_size: Count = 8
    retain_batch_size: Count = 8
    gradient_accumulation: Count = 1
    schedule: Schedule = "cosine"
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    max_grad_norm: NotNegative = 1.0
    """0: gradients are not clipped."""
    weight_decay: NotNegative = 0.0
    bf16: bool = False
    gradient_checkpointing: bool = False
    evaluate_every: Count | None = None
    """Steps between validations. None: no validation."""
    save_every: Count = 20
    """Steps between checkpoints: what a kill can cost."""
    best_metric: str | None = None
    """Validation metric by which the best checkpoint is kept. None: the last one."""
    stop: list[StopRule] = Field(default_factory=list)
    seed: int = 0


class EvaluationConfig(_Section):
    """What is measured at the end, and in validations."""

    batch_size: Count = 16
    generate: bool = True
    """Language: greedy answers for ROUGE and for the examples in the report."""
    max_new_tokens: Count = 64
    num_examples: Annotated[int, Field(ge=0)] = 6
    """Examples of each set that are shown in the report."""
    retain_limit: Count | None = None
    """Measure at most this many retain examples, drawn with the seed. None: all."""
    validation_size: Count = 64
    """Examples of each set in validations during training."""
    num_resamples: Annotated[int, Field(ge=100)] = 1000
    """Bootstrap resamples behind each interval."""
    seed: int = 0


class RunConfig(_Section):
    """Everything that `forget run` needs to know."""

    name: str = "run"
    task: Literal["language", "image"]
    model: ModelConfig
    retain_model: str | None = None
    """Name or path of a retain model. None: made by finetuning if `model.finetune` is given."""
    data: DataConfig
    adapter: AdapterConfig = AdapterConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    merge: bool = False
    """Whether the merged model is written too."""

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        problems = list(_problems(self))
        if problems:
            raise ValueError("; ".join(problems))
        return self


def _problems(config: RunConfig) -> list[str]:
    data, target = config.data, config.objective.target
    problems = []
    if data.source is None and (data.forget.path is None or data.retain.path is None):
        problems.append("data: forget and retain need a 'path' each, or a common 'data.source'")
    if data.source is not None and data.forget.path is None and data.forget.where is None:
        problems.append("data.forget: give a 'where' rule that says which examples of data.source to forget")
    if config.objective.name == "calibrated":
        if target.source == "number" and target.nll is None:
            problems.append("objective.target: source 'number' needs 'nll', the target in nats per label")
        if target.source == "holdout" and data.holdout is None:
            problems.append("objective.target: source 'holdout' needs data.holdout, unseen examples of the same kind")
        if target.source == "pretrained" and config.model.finetune is None:
            problems.append("objective.target: source 'pretrained' needs model.finetune, else nothing is pretrained")
    if config.objective.forget_weight == 0 and config.objective.retain_weight == 0:
        problems.append("objective: forget_weight and retain_weight are both 0, so there is nothing to train")
    if config.training.best_metric and config.training.evaluate_every is None:
        problems.append("training.best_metric needs training.evaluate_every")
    if config.training.stop and config.training.evaluate_every is None:
        problems.append("training.stop needs training.evaluate_every")
    return problems


def read_yaml(path: Path) -> dict[str, Any]:
    """Read settings from a YAML file.

    Raises:
        ConfigError: The file is missing, no YAML, or holds no settings.
    """
    if not path.is_file():
        raise ConfigError(f"No config file at '{path}'. Give the path of a YAML file; configs/ has examples.")
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = " ".join(str(error).split())
        raise ConfigError(f"The config '{path}' is not valid YAML: {place}. Correct the line named there.") from error
    if not isinstance(given, dict):
        found = "nothing" if given is None else f"a {type(given).__name__}"
        raise ConfigError(f"The config '{path}' holds {found}, not settings. See configs/ for examples.")
    return given


def load_config(path: Path, changes: Sequence[tuple[str, Any]] = ()) -> tuple[RunConfig, dict[str, Any]]:
    """Read a run's config from a YAML file.

    Args:
        path: The file.
        changes: Settings that replace the file's: path such as ``training.learning_rate``, and value.

    Returns:
        The config, and the settings as given.

    Raises:
        ConfigError: The file is missing or no YAML, or settings are not allowed; all problems in one message.
    """
    given = read_yaml(path)
    if "methods" in given:
        raise ConfigError(f"The config '{path}' compares several methods. Use `forget compare {path}`.")
    for place, value in changes:
        apply_change(given, place, value)
    return parse_config(given, source=f"the config '{path}'"), given


def parse_config(given: Mapping[str, Any], *, source: str = "the config") -> RunConfig:
    """Check settings and fill in the defaults.

    Raises:
        ConfigError: Names all problems at once.
    """
    try:
        return RunConfig.model_validate(given)
    except ValidationError as error:
        found = [_describe(problem) for problem in error.errors()]
        count = "is a problem" if len(found) == 1 else f"are {len(found)} problems"
        raise ConfigError(f"There {count} in {source}: {'; '.join(found)}.") from error


def _describe(problem: Mapping[str, Any]) -> str:
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        section = _section_at([str(part) for part in problem["loc"][:-1]])
        return f"{place}: " + unknown_name("setting", str(problem["loc"][-1]), section).rstrip(".")
    message = problem["msg"].removeprefix("Value error, ")
    if not place:
        return str(message)
    if problem["type"] == "missing":
        return f"{place}: this setting is required"
    return f"{place} = {problem['input']!r}: {message[0].lower()}{message[1:]}"


def _section_at(path: Sequence[str]) -> list[str]:
    """Names of the settings in the section that a path leads to."""
    section: type[BaseModel] = RunConfig
    for part in path:
        if part not in section.model_fields:
            continue
        inner = _model_in(section.model_fields[part].annotation)
        section = inner or section
    return list(section.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def parse_change(change: str) -> tuple[str, Any]:
    """Read a change such as ``training.learning_rate=3e-4``; the value is YAML.

    Raises:
        ConfigError: It is not of that form.
    """
    path, equals, text = change.partition("=")
    if not equals or not path.strip():
        raise ConfigError(f"The change '{change}' is not of the form section.setting=value.")
    try:
        return path.strip(), yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"The value of the change '{change}' is not valid YAML. Put it in quotes.") from error


def apply_change(settings: dict[str, Any], path: str, value: Any) -> None:
    """Set one setting, in place; sections that are missing are made.

    Raises:
        ConfigError: The path leads through something that is no section.

    Example:
        >>> settings = {"training": {"epochs": 5}}
        >>> apply_change(settings, "training.learning_rate", 0.1)
        >>> settings
        {'training': {'epochs': 5, 'learning_rate': 0.1}}
    """
    *parents, name = path.split(".")
    section = settings
    for parent in parents:
        inner = section.get(parent)
        if inner is None:
            inner = section[parent] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"The setting '{path}' goes through '{parent}', which is {inner!r} and not a section.")
        section = inner
    section[name] = value
