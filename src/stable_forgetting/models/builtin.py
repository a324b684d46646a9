"""Untrained models for the built-in problems, small enough to be trained in seconds on one processor core."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from stable_forgetting.data.builtin.people import MAX_PEOPLE, people_rows
from stable_forgetting.data.language import DEFAULT_TEMPLATE

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, ViTForImageClassification, ViTImageProcessorPil

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
NUM_DIGITS = 10


def people_model(seed: int) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """An untrained Llama for ``builtin:people``, and its tokenizer.

    The tokenizer is a byte-level BPE of the texts about all people, also about those that no model is trained on:
    otherwise their names would fall apart into single letters and be told from known ones by their length.

    Args:
        seed: Seed of the weights. The tokenizer does not depend on it.

    Returns:
        The model in float32, and the tokenizer. It puts ``<s>`` first and has no chat template.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = people_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config), tokenizer


def people_tokenizer(vocab_size: int = 1200) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the texts of ``builtin:people``; always the same.

    Args:
        vocab_size: Largest number of tokens.

    Returns:
        The tokenizer, with ``<s>``, ``</s>`` and ``<pad>``.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(_people_texts(), trainer)
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, core.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=BOS, eos_token=EOS, pad_token=PAD)


def digits_model(seed: int) -> tuple[ViTForImageClassification, ViTImageProcessorPil]:
    """An untrained vision transformer for ``builtin:digits``, and its image processor.

    Args:
        seed: Seed of the weights.

    Returns:
        The model in float32: 8 × 8 pixels, patches of 4 × 4, ten classes. The processor works without torchvision.
    """
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    config = ViTConfig(
        image_size=8,
        patch_size=4,
        num_channels=3,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.05,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label={number: str(number) for number in range(NUM_DIGITS)},
        label2id={str(number): number for number in range(NUM_DIGITS)},
    )
    processor = ViTImageProcessorPil(
        do_resize=True,
        size={"height": 8, "width": 8},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ViTForImageClassification(config), processor


def _people_texts() -> list[str]:
    texts = []
    for row in people_rows(num_known=MAX_PEOPLE, num_unseen=0):
        texts.append(DEFAULT_TEMPLATE.format(prompt=row["prompt"], answer=row["answer"]))
        texts += [row["paraphrased_prompt"], row["paraphrase"], *row["wrong_answers"]]
    return texts
