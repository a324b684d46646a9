"""Every option of a run and its default: the one place where they are written.

A config is data only. The run takes it apart and passes plain, named arguments on; no layer, loss or metric sees it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stable_forgetting.config.problems import find_problems

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
    """Rule over the columns, such as `person == "Ada"`, `label in [3, 5]` or, by position, `row >= 320`."""
    limit: Count | None = None
    """At most this many examples, the first ones."""
    prompt: str = "prompt"
    """Column of the prompt."""
    answer: str = "answer"
    """Column of the answer."""
    paraphrased: str = "paraphrased_answer"
    """Column of the right answer in other words, used where a row has it."""
    perturbed: str = "perturbed_answer"
    """Column of wrong answers, a list of texts or one text, used where a row has it."""
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
    """Common source of the sets that have no path of their own."""
    forget: SourceConfig
    """What is to be forgotten."""
    retain: SourceConfig = SourceConfig()
    """Without path and rule: everything in `source` that no other set takes."""
    retain_evaluation: SourceConfig | None = None
    """Retain examples that are measured; they may be among those of `retain`. None: those of `retain`."""
    holdout: SourceConfig | None = None
    """Unseen examples of the forget set's kind: membership attacks and calibrated targets need them."""
    test: SourceConfig | None = None
    """Language: other text for perplexity. Images: test images of all classes."""
    real_authors: SourceConfig | None = None
    """Language: questions about real authors, measured only."""
    world_facts: SourceConfig | None = None
    """Language: questions about the wider world, measured only."""
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
    """Passes over the set that is taught."""
    learning_rate: Positive = 1e-4
    """Peak of the schedule."""
    batch_size: Count = 16
    """Examples per update."""
    weight_decay: NotNegative = 0.0
    """Of AdamW."""
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the updates in which the learning rate rises from 0."""
    schedule: Schedule = "cosine"
    """How the learning rate falls afterwards."""
    seed: int = 0
    """Of the order of the examples."""


class ModelConfig(_Section):
    """The model to be unlearned, and how it is read."""

    name: str
    """Local folder, hub name, `package:NAME` for weights that come with an installed Python package, or
    `builtin:people`, `builtin:digits`."""
    revision: str | None = None
    """Branch, tag or commit of a hub name. None: the default branch."""
    gguf_file: str | None = None
    """Name of the GGUF file in that folder or package."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the frozen weights; the adapter is trained in float32."""
    quantization: Literal["4bit", "8bit"] | None = None
    """Load the linear layers in 4 bits (NF4, scales quantised too) or 8 bits (LLM.int8), with bitsandbytes."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run."""
    finetune: FinetuneConfig | None = None
    """If given, `name` is only the pretrained model: base and retain model are made from it by finetuning, and kept."""


class AdapterConfig(_Section):
    """The bounded adapter."""

    bound: str = "sine"
    """Bounding function; `forget list bounds` shows them."""
    rank: Count = 4
    """Columns of B and rows of A."""
    omega: Positive = 100.0
    """Frequency inside the bound."""
    scale: Positive | None = None
    """Largest change of any weight. None: lora_alpha / rank / sqrt(in_features) with lora_alpha = rank."""
    target_modules: str | list[str] | None = None
    """None: the MLP layers of the model's family."""
    seed: int = 0
    """Of the random start of A."""


class TargetConfig(_Section):
    """Where calibrated forgetting gets the likelihood to stop at."""

    source: Literal["holdout", "pretrained", "number"] = "holdout"
    """Unseen examples, the model before finetuning, or `nll`."""
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
    """Factor of the forget term. 0 leaves it out."""
    retain_weight: NotNegative = 1.0
    """Factor of the retain term. 0 leaves it out."""
    beta: Positive = 0.1
    """Of npo."""
    target: TargetConfig = TargetConfig()
    """Of calibrated."""


class StopRule(_Section):
    """Stop the training when a validation metric has passed a value."""

    metric: str
    """Name of a validation metric, such as forget_nll."""
    above: float | None = None
    """Stop when the metric is greater."""
    below: float | None = None
    """Stop when the metric is smaller."""

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
    """Peak of the schedule."""
    forget_batch_size: Count = 8
    """Forget examples per forward pass."""
    retain_batch_size: Count = 8
    """Retain examples per forward pass."""
    gradient_accumulation: Count = 1
    """Forward passes per update."""
    schedule: Schedule = "cosine"
    """How the learning rate falls after the warmup."""
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the updates in which the learning rate rises from 0."""
    max_grad_norm: NotNegative = 1.0
    """0: gradients are not clipped."""
    weight_decay: NotNegative = 0.0
    """Of AdamW, on the adapter."""
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
    seed: int = 0
    """Of the order of the examples and of dropout."""


class EvaluationConfig(_Section):
    """What is measured at the end, and in validations."""

    batch_size: Count = 16
    """Examples per forward pass."""
    generate: bool = True
    """Language: greedy answers for ROUGE and for the examples in the report."""
    max_new_tokens: Count = 64
    """Longest generated answer in tokens."""
    num_examples: Annotated[int, Field(ge=0)] = 6
    """Examples of each set that are shown in the report."""
    retain_limit: Count | None = None
    """Measure at most this many retain examples, drawn with the seed. None: all."""
    gradient_norm: bool = False
    """Language: measure the gradient of each forget and holdout example, for a membership attack; slow."""
    validation_size: Count = 64
    """Examples of each set in validations during training."""
    num_resamples: Annotated[int, Field(ge=100)] = 1000
    """Bootstrap resamples behind each interval."""
    seed: int = 0
    """Of the subsets and the bootstrap."""


class RunConfig(_Section):
    """Everything that `forget run` needs to know."""

    name: str = "run"
    """Name in the report, and of the default run directory."""
    task: Literal["language", "image"]
    """What kind of model it is."""
    model: ModelConfig
    """The base model."""
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
