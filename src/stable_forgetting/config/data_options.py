"""Options of the data: where the example sets come from, and how they are read."""

from __future__ import annotations

from stable_forgetting.config.section import Count, Section


class SourceConfig(Section):
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


class DataConfig(Section):
    """The example sets. A set without a path is taken out of `source` by its rule."""

    source: SourceConfig | None = None
    """Common source of the sets that have no path of their own."""
    forget: SourceConfig
    """What is to be forgotten."""
    retain: SourceConfig = SourceConfig()
    """Without path and rule: everything in `source` that no other set takes."""
    retain_evaluation: SourceConfig | None = None
    """Language: retain examples that are measured; they may be among those of `retain`. None: those of `retain`."""
    holdout: SourceConfig | None = None
    """Unseen examples of the forget set's kind: membership attacks and calibrated targets need them."""
    targets: SourceConfig | None = None
    """Unseen examples of the forget set's kind that calibrated targets come from, and that the unseen term keeps. None:
    those of `holdout`, so that membership attacks meet the very examples that targets were made of or that are kept."""
    test: SourceConfig | None = None
    """Language: other text for perplexity. Images: test images of all classes."""
    forgotten_before: SourceConfig | None = None
    """What earlier requests deleted, measured only: whether it stays forgotten."""
    real_authors: SourceConfig | None = None
    """Language: questions about real authors, measured only."""
    world_facts: SourceConfig | None = None
    """Language: questions about the wider world, measured only."""
    max_length: Count = 512
    """Longest example in tokens; longer ones are cut at the end of the answer."""
    chat_template: bool | None = None
    """Whether prompts are put into the tokenizer's chat template. None: if it has one."""
    system_prompt: str | None = None
    """System message before prompts in the chat template, where a row has none of its own. None: what the template
    does without one."""
    date: str = "10 Apr 2025"
    """Date for chat templates that write one into the prompt, as those of Llama 3 do: the same on every day."""
    template: str | None = None
    """Text with `{prompt}` and, at its end, `{answer}`, where no chat template is used. None: `Question:
    {prompt}\\nAnswer: {answer}`."""
    num_classes: Count | None = None
    """Number of classes. None: the largest label + 1."""
