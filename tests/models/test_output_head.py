"""Labels are measured without all logits: equal to the values from all of them, and only where that is allowed."""

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig

from stable_forgetting.models import output_head
from stable_forgetting.models.output_head import HeadPredictions, predictions_at
from stable_forgetting.models.predictions import Predictions

WORDS = 23


@pytest.fixture(autouse=True)
def few_words_at_once(monkeypatch):
    monkeypatch.setattr(output_head, "WORDS_AT_ONCE", 5)  # the last part is shorter


def both(hidden, head, row, labels):
    example = torch.zeros_like(labels)
    rows = torch.arange(len(labels)) if row is None else row
    with torch.inference_mode():
        found = HeadPredictions(hidden, head, row, labels, example, 1)
        return found, Predictions(head(hidden)[rows], labels, example, 1)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equals_all_logits(dtype, shared, bias):
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(6, WORDS, bias=bias).to(dtype)
    hidden = (30 * torch.randn(12, 6, generator=generator)).to(dtype)
    row = torch.randint(0, 12, (40,), generator=generator).sort().values if shared else None
    labels = torch.randint(0, WORDS, (40 if shared else 12,), generator=generator)
    labels[::3] = head(hidden).argmax(-1)[torch.arange(12) if row is None else row][::3]
    found, expected = both(hidden, head, row, labels)
    assert torch.equal(found.correct, expected.correct)
    assert 0 < found.correct.sum() < len(labels)
    torch.testing.assert_close(found.nll, expected.nll)
    assert found.nll.dtype == expected.nll.dtype
    assert found.nll.min() >= 0
    torch.testing.assert_close(found.nll_sum, expected.nll_sum)
    torch.testing.assert_close(found.logits, expected.logits)
    chosen = torch.tensor([3, 0])
    torch.testing.assert_close(found.logits_of(chosen), expected.logits[chosen])
    assert torch.equal(found.num_leading_correct, expected.num_leading_correct)


def test_words_that_are_excluded_and_words_that_are_alike():
    """Of equal logits the first counts, as in `argmax`; a part of the vocabulary may be excluded as a whole."""
    head = torch.nn.Linear(1, WORDS)
    head.weight.data.zero_()
    head.bias.data.fill_(1.0)
    head.bias.data[:10] = -torch.inf
    labels = torch.tensor([10, 11, 22, 3])
    found, expected = both(torch.zeros(4, 1), head, None, labels)
    assert found.correct.tolist() == [True, False, False, False]
    torch.testing.assert_close(found.nll, expected.nll)
    torch.testing.assert_close(found.nll[:3].exp(), torch.full((3,), 13.0))
    assert found.nll[3] == torch.inf


def test_a_value_that_is_no_number_stays_one():
    head, labels = torch.nn.Linear(2, WORDS), torch.tensor([1, 1])
    found, expected = both(torch.tensor([[torch.nan, 0.0], [1.0, 0.0]]), head, None, labels)
    assert found.nll.isnan().tolist() == expected.nll.isnan().tolist() == [True, False]


def causal(config=LlamaConfig, **options):
    torch.manual_seed(0)
    shape = {"vocab_size": WORDS, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "initializer_range": 0.5}
    return AutoModelForCausalLM.from_config(config(**shape, **heads, **options)).eval()


def predicted(model):
    input_ids = torch.arange(3, 15).reshape(2, 6)
    where, row = (torch.tensor([0, 1, 1]), torch.tensor([2, 1, 4])), torch.tensor([0, 0, 1, 2])
    labels, example = torch.tensor([5, 6, 7, 8]), torch.tensor([0, 1, 2, 2])
    return predictions_at(model, {"input_ids": input_ids}, where, row, labels, example, 3)


def test_the_head_computes_nothing_in_the_pass():
    model, sizes = causal(), []
    with torch.inference_mode():
        expected = model(input_ids=torch.arange(3, 15).reshape(2, 6)).logits[[0, 0, 1, 1], [2, 2, 1, 4]]
        linear = F.linear
        forward = model.lm_head.forward
        model.lm_head.forward = lambda hidden: sizes.append(hidden.shape) or linear(hidden, model.lm_head.weight)
        found = predicted(model)
        model.lm_head.forward = forward
        assert sizes == [(1, 0, 16)]
        assert isinstance(found, HeadPredictions)
        torch.testing.assert_close(found.nll, F.cross_entropy(expected, found.labels, reduction="none"))
        torch.testing.assert_close(found.logits, expected)


def hooked(model):
    model.lm_head.register_forward_hook(lambda _, __, logits: 2 * logits)
    return model


def adapted(model):
    config = LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(model, config).eval()


# PEFT 0.21 asks transformers for a property by its old name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "make",
    [lambda: hooked(causal()), lambda: adapted(causal()), lambda: causal(Gemma2Config, final_logit_softcapping=1.0)],
)
def test_heads_that_are_more_than_a_product_run_as_they_are(make):
    model = make()
    with torch.inference_mode():
        found = predicted(model)
        expected = model(input_ids=torch.arange(3, 15).reshape(2, 6)).logits[[0, 0, 1, 1], [2, 2, 1, 4]]
    assert type(found) is Predictions
    torch.testing.assert_close(found.logits, expected)


def test_training_needs_all_logits():
    found = predicted(causal())
    assert type(found) is Predictions
    assert found.logits.requires_grad
