"""Every option of a run and its default: with `data_options` and `model_options` the one place where they are written.

A config is data only. The run takes it apart and passes plain, named arguments on; no layer, loss or metric sees it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from stable_forgetting.config.data_options import DataConfig
from stable_forgetting.config.model_options import AdapterConfig, ModelConfig
from stable_forgetting.config.problems import find_problems
from stable_forgetting.config.section import (
    Count,
    Finite,
    NotNegative,
    Positive,
    Schedule,
    Section,
    Seed,
    Share,
    Whole,
)

_LONGEST_NAME = 200
"""Bytes: file systems allow 255, and what is written beside a folder has a longer name than it."""

LEAST_TARGET = 1e-3
"""NLL per label in nats that a target has at least: less is of what a model knows by heart, and forgets nothing."""


class TargetConfig(Section):
    """Where calibrated forgetting gets the likelihood to stop at."""

    source: Literal["holdout", "pretrained", "number"] = "holdout"
    """Unseen examples, the model before finetuning, or `nll`."""
    matching: Literal["mean", "quantiles"] = "quantiles"
    """With holdout: one target for all examples or labels, or the holdout's whole distribution by rank."""
    places: Literal["base", "pretrained"] = "base"
    """With holdout and quantiles: which quantile a forget example or label gets. base: that of its rank in the forget
    set under the base model. pretrained: that of its place in the holdout set under the pretrained model."""
    nll: Annotated[Finite, Field(ge=LEAST_TARGET)] | None = None
    """With number: the target in nats per label."""

    @model_validator(mode="after")
    def _number_counts(self) -> TargetConfig:
        if self.nll is not None and self.source != "number":
            raise ValueError(
                f"nll is {self.nll}, but source is '{self.source}', which gives the target; set source to 'number', or "
                "leave nll out"
            )
        return self

    @property
    def needs_pretrained(self) -> bool:
        """Whether targets come from the model before finetuning."""
        is_placed = self.source == "holdout" and self.matching == "quantiles" and self.places == "pretrained"
        return self.source == "pretrained" or is_placed


class ObjectiveConfig(Section):
    """objective = forget_weight × forget term + retain_weight × retain term + unseen_weight × unseen term."""

    name: str = "gradient_difference"
    """ascent, gradient_difference, bounded_ascent, kl, npo, calibrated, calibrated_labels, calibrated_distribution or
    retain_only: a forget term with its usual retain term."""
    retain: str | None = None
    """Another retain term, nll or kl. None: the usual one."""
    forget_weight: NotNegative = 1.0
    """Factor of the forget term. 0 leaves it out."""
    retain_weight: NotNegative = 1.0
    """Factor of the retain term. 0 leaves it out."""
    unseen_weight: NotNegative = 0.0
    """Language: factor of KL(p_ref ‖ p) on the unseen examples that targets come from, which keeps what the model says
    where it has nothing to forget. 0 leaves it out."""
    beta: Positive = 0.1
    """Of npo."""
    limit: Positive | None = None
    """Of bounded_ascent: nats per label at which the ascent ends. None: ln of the number of classes or tokens."""
    target: TargetConfig = TargetConfig()
    """Of calibrated, calibrated_labels and calibrated_distribution."""


class StopRule(Section):
    """Stop the training when a validation metric has passed a value, or has passed it and falls again."""

    metric: str
    """Name of a validation metric, such as forget_nll."""
    above: Finite | None = None
    """Stop when the metric is greater."""
    below: Finite | None = None
    """Stop when the metric is smaller."""
    peak: Finite | None = None
    """Stop when the metric has been greater and is below its best again."""
    patience: Count = 1
    """With peak: this many validations in a row have to be below the best one."""

    @model_validator(mode="after")
    def _one_kind(self) -> StopRule:
        if sum(limit is not None for limit in (self.above, self.below, self.peak)) != 1:
            raise ValueError("give one of 'above', 'below' and 'peak'")
        if self.patience != 1 and self.peak is None:
            raise ValueError("'patience' belongs to 'peak': 'above' and 'below' stop at once")
        return self


class TrainingConfig(Section):
    """The unlearning itself."""

    steps: Count | None = None
    """Number of optimizer updates. None: `epochs`."""
    epochs: Positive = 5
    """Passes over the forget set, also where the objective has no forget term. Not used where `steps` is given; None is
    read as not given."""
    learning_rate: Positive = 1e-3
    """Peak of the schedule."""
    forget_batch_size: Count = 8
    """Forget examples per forward pass."""
    retain_batch_size: Count = 8
    """Retain examples per forward pass."""
    unseen_batch_size: Count = 8
    """With objective.unseen_weight: unseen examples per forward pass."""
    gradient_accumulation: Count = 1
    """Forward passes per update."""
    schedule: Schedule = "cosine"
    """How the learning rate falls after the warmup."""
    warmup_share: Share = 0.1
    """Share of the updates in which the learning rate rises from 0."""
    max_grad_norm: NotNegative = 1.0
    """0: gradients are not clipped."""
    weight_decay: NotNegative = 0.0
    """Of AdamW, on the adapter."""
    max_weight: Positive | None = None
    """After every update the entries of A and B are clipped to this. None: they are not."""
    bf16: bool = False
    """Whether the forward pass runs in bfloat16 where that is safe."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: slower, with less memory."""
    evaluate_every: Count | None = None
    """Steps between validations. None: no validation."""
    save_every: Count = 20
    """Steps between checkpoints: what a kill can cost."""
    best_metric: str | None = None
    """Validation metric by which the best checkpoint is kept. None: the last one."""
    stop: list[StopRule] = Field(default_factory=list)
    """Rules that end the training early."""
    seed: Seed = 0
    """Of the order of the examples and of dropout."""

    @field_validator("epochs", mode="before")
    @classmethod
    def _not_given(cls, value: Any) -> Any:
        return cls.model_fields["epochs"].default if value is None else value

    @model_validator(mode="after")
    def _validates_what_decides(self) -> TrainingConfig:
        deciding = [name for name in ("best_metric", "stop") if getattr(self, name)]
        if deciding and self.evaluate_every is None:
            need = "needs" if len(deciding) == 1 else "need"
            raise ValueError(
                f"{' and '.join(deciding)} {need} evaluate_every, the number of steps between validations: without it "
                "nothing is measured in training"
            )
        return self


class EvaluationConfig(Section):
    """What is measured at the end, and in validations."""

    batch_size: Count = 16
    """Examples per forward pass; language: up to three times as many are answered at once, a token each in a step."""
    generate: bool = True
    """Language: greedy answers for ROUGE and for the examples in the report."""
    max_new_tokens: Count = 64
    """Longest generated answer in tokens."""
    num_examples: Annotated[Whole, Field(ge=0)] = 6
    """Examples of each set that are shown in the report."""
    retain_limit: Count | None = None
    """Measure at most this many retain examples, drawn with the seed. None: all."""
    test_limit: Count | None = None
    """Images: measure at most this many test images of what is kept, drawn with the seed. None: all."""
    gradient_norm: bool = False
    """Language: measure the gradient of each forget and holdout example, for a membership attack; slow."""
    linear_probe: bool = True
    """Images: train a linear probe on the features of forget and retain set, and test it on the test images."""
    validation_size: Count = 64
    """Examples of each set in validations during training."""
    num_resamples: Annotated[Whole, Field(ge=100)] = 1000
    """Bootstrap resamples behind each interval but those of shares."""
    seed: Seed = 0
    """Of the subsets and the bootstrap."""
    compat: Literal["open-unlearning"] | None = None
    """Language: measure as that package does, whose attention mask hides end tokens in prompts where the tokenizer has
    no pad token, and by its definitions. None: this package's definitions."""


def _name_of_a_folder(name: str) -> str:
    """A run's name is that of its folder as well."""
    if name in ("", ".", "..") or any(letter in name for letter in "/\\\0") or len(name.encode()) > _LONGEST_NAME:
        raise ValueError(f"it names the run's folder, too; give one of 1 to {_LONGEST_NAME} bytes without slashes")
    return name


class RunConfig(Section):
    """Everything that `forget run` needs to know."""

    name: Annotated[str, AfterValidator(_name_of_a_folder)] = "run"
    """Name in the report, and of the default run directory."""
    task: Literal["language", "image"]
    """What kind of model it is."""
    model: ModelConfig
    """The base model."""
    base_model: str | None = None
    """Name or folder of the model to be unlearned, such as the merged model of an earlier run; the retain model is
    still made from `model`. None: `model`, or what is made from it by finetuning."""
    pretrained_model: str | None = None
    """Name or folder of the model that the base model was finetuned from, for targets. None: with model.finetune the
    model as configured, else it is not known."""
    retain_model: str | None = None
    """Name or path of a retain model. None: made by finetuning if `model.finetune` is given."""
    retain_log: str | None = None
    """Evaluation log of a retain model (TOFU_EVAL.json of open-unlearning, also .gz) in its place. It has fewer values
    than the model would give, so some metrics are not available."""
    data: DataConfig
    """The example sets."""
    adapter: AdapterConfig = AdapterConfig()
    """What is trained."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """What is minimised."""
    training: TrainingConfig = TrainingConfig()
    """Steps, rates and batches."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """What is measured."""
    merge: bool = False
    """Whether the merged model is written too."""

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        problems = find_problems(self)
        if problems:
            raise ValueError("; ".join(problems))
        return self
