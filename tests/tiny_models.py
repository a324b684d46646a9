"""Tiny random models and examples that many tests use."""

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

from stable_forgetting.data.examples import ExampleSet, ImageExample, LanguageExample

VOCABULARY = 40

CONFIGS = {
    "llama": lambda: LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    ),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=64, embd_pdrop=0, attn_pdrop=0, resid_pdrop=0
    ),
    "gemma2": lambda: Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
        final_logit_softcapping=2.0,
    ),
}


class FakeTokenizer:
    """All that `LanguageTask` needs for collating."""

    pad_token_id = 0


def tiny_language_model(family: str = "llama", seed: int = 0) -> PreTrainedModel:
    """A random causal language model."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(CONFIGS[family]()).eval()


def tiny_image_model(seed: int = 0, num_labels: int = 4) -> PreTrainedModel:
    """A random vision transformer for images of 8 x 8."""
    torch.manual_seed(seed)
    config = ViTConfig(
        image_size=8,
        patch_size=4,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=num_labels,
    )
    return ViTForImageClassification(config).eval()


def language_set(name: str, count: int, seed: int = 0) -> ExampleSet[LanguageExample]:
    """Random token sequences of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for number in range(count):
        length = int(torch.randint(6, 12, (), generator=generator))
        ids = tuple(torch.randint(1, VOCABULARY, (length,), generator=generator).tolist())
        examples.append(LanguageExample(f"{name} {seed} {number}", str(ids), ids, 2 + number % 3))
    return ExampleSet(name, examples)


def image_set(name: str, count: int, seed: int = 0, num_labels: int = 4) -> ExampleSet[ImageExample]:
    """Random images, one class after another."""
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for number in range(count):
        pixels = torch.randint(0, 256, (8, 8, 3), generator=generator, dtype=torch.uint8)
        values = pixels.permute(2, 0, 1).float() / 127.5 - 1
        examples.append(ImageExample(pixels.numpy(), number % num_labels, values))
    return ExampleSet(name, examples)
