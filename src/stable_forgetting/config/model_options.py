"""Options of the models: what is unlearned, how it is taught first, and the adapter."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from stable_forgetting.config.section import Count, NotNegative, Positive, Schedule, Section, Seed, Share, Whole


class AdapterConfig(Section):
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
    """mlp, attention or mlp_and_attention of the model's family, names, a regular expression, or all-linear. None: the
    MLP layers."""
    blocks: list[Annotated[Whole, Field(ge=0)]] | None = None
    """Numbers of the blocks that get adapters, from 0. None: all."""
    seed: Seed = 0
    """Of the random start of A."""


class TeachingAdapterConfig(AdapterConfig):
    """The adapter that a model is taught with: plain LoRA, where nothing else is said."""

    bound: str = "identity"
    """Bounding function; `forget list bounds` shows them."""
    rank: Count = 16
    """Columns of B and rows of A."""
    omega: Positive = 1.0
    """Frequency inside the bound."""
    scale: Positive | None = 1.0
    """Factor of the change, and with another bound the largest change of any weight."""


class FinetuneConfig(Section):
    """How the base model is taught the forget and retain sets, and the retain model the retain set alone."""

    trains: Literal["all", "head", "adapter"] = "all"
    """What is trained: the whole model; the head of an image classifier alone; or adapters (and the head of an image
    classifier), which are merged afterwards."""
    adapter: TeachingAdapterConfig = TeachingAdapterConfig()
    """With `adapter`: which one; plain LoRA by default."""
    epochs: Positive = 8
    """Passes over the set that is taught."""
    learning_rate: Positive = 1e-4
    """Peak of the schedule."""
    batch_size: Count = 16
    """Examples per update."""
    weight_decay: NotNegative = 0.0
    """Of AdamW."""
    warmup_share: Share = 0.1
    """Share of the updates in which the learning rate rises from 0."""
    schedule: Schedule = "cosine"
    """How the learning rate falls afterwards."""
    change_kept: Annotated[Positive, Field(le=1)] = 1.0
    """Share of the change of all weights that is kept in the end. Below 1 the model knows the examples less by heart,
    and keeps more of what it knew (Wortsman et al. 2022, arXiv 2109.01903)."""
    seed: Seed = 0
    """Of the order of the examples."""


class ModelConfig(Section):
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
    image_size: Count | None = None
    """Images: pixels of a side that images are scaled to. None: what the model's image processor says."""
    disk_cache_gib: NotNegative = 8.0
    """Room on disk, in GiB, for the scaled images of a run, and as much for what the blocks below the first adapter
    make of images and texts; what would take more is not kept. 0: nothing is."""
    finetune: list[FinetuneConfig] | None = None
    """If given, `name` is only the pretrained model: base and retain model are made from it by finetuning, and kept.
    One training, or several that follow on each other, such as the head first and then adapters."""

    @field_validator("finetune", mode="before")
    @classmethod
    def _list_of_trainings(cls, given: Any) -> Any:
        if given == []:
            raise ValueError("names no training; give one or several, or null for a model that is used as it is")
        return [given] if isinstance(given, dict | FinetuneConfig) else given
