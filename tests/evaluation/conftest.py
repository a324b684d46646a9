"""A tiny random language model, a tiny linear image model, and example sets for them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from stable_forgetting.data.examples import ExampleSet, ImageExample, LanguageExample
from stable_forgetting.models.tasks import ImageTask, LanguageTask

END = 2


class NumberTokenizer:
    """Token ids as words, so that decoded text shows exactly which tokens came. The pad token is the end token."""

    pad_token_id = END

    def decode(self, tokens, skip_special_tokens):
        assert skip_special_tokens
        return " ".join(str(token) for token in tokens)


class LinearClassifier(torch.nn.Module):
    """Three classes from a 1 × 2 × 2 image."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, pixel_values):
        return SimpleNamespace(logits=self.linear(pixel_values.flatten(1)))


@pytest.fixture(scope="session")
def language_model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=23,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.5,
        pad_token_id=END,
        eos_token_id=END,
    )
    return LlamaForCausalLM(config).double().eval()


@pytest.fixture
def language_task():
    return LanguageTask(NumberTokenizer())


@pytest.fixture
def make_language_set():
    def make(name="forget", count=7, seed=0, end=END):
        generator = np.random.default_rng(seed)
        examples = []
        for index in range(count):
            num_prompt, num_answer = int(generator.integers(1, 9)), int(generator.integers(1, 8))
            tokens = [int(token) for token in generator.integers(0, 23, size=num_prompt + num_answer)]
            examples.append(
                LanguageExample(
                    prompt=f"{name} {seed} {index}",
                    answer=" ".join(map(str, tokens[num_prompt:])),
                    input_ids=(*tokens, end),
                    num_prompt_tokens=num_prompt,
                    end_token=end,
                )
            )
        return ExampleSet(name, examples)

    return make


@pytest.fixture
def image_model():
    torch.manual_seed(1)
    return LinearClassifier().eval()


@pytest.fixture
def image_task():
    return ImageTask(processor=None)


@pytest.fixture
def make_image_set():
    def make(name="forget", count=9, seed=0):
        generator = np.random.default_rng(seed)
        examples = []
        for _ in range(count):
            pixels = generator.integers(0, 256, size=(2, 2, 3), dtype=np.uint8)
            values = torch.from_numpy(generator.normal(size=(1, 2, 2)).astype(np.float32))
            examples.append(ImageExample(pixels=pixels, label=int(generator.integers(3)), pixel_values=values))
        return ExampleSet(name, examples)

    return make
