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
def few_tokens_at_once(monkeypatch):
    monkeypatch.setattr(output_head, "TOKENS_AT_ONCE", 5)  # the last part is shorter


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


def of_the_model(model):
    return model(input_ids=torch.arange(3, 15).reshape(2, 6)).logits[[0, 0, 1, 1], [2, 2, 1, 4]]


def test_there_are_never_all_logits(monkeypatch):
    model, sizes = causal(), []
    linear = F.linear
    with torch.inference_mode():
        expected = of_the_model(model)
        monkeypatch.setattr(F, "linear", lambda *given: sizes.append(linear(*given).shape) or linear(*given))
        found = predicted(model)
        of_words = [size for size in sizes if size[-1] not in (16, 24, 8)]
        assert of_words == [(1, 0, WORDS), *[(3, 5)] * 4, (3, 3)]
        assert isinstance(found, HeadPredictions)
        torch.testing.assert_close(found.nll, F.cross_entropy(expected, found.labels, reduction="none"))
        torch.testing.assert_close(found.logits, expected)


@pytest.mark.parametrize("under_adapter", [False, True])
def test_values_are_those_of_the_pass(under_adapter):
    """What happens to the weights afterwards changes nothing."""
    model = causal()
    if under_adapter:
        config = LoraConfig(r=2, target_modules=["up_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        model = get_peft_model(model, config).eval()
        model.merge_adapter()
    with torch.inference_mode():
        expected, found = of_the_model(model), predicted(model)
    assert isinstance(found, HeadPredictions)
    model.get_output_embeddings().weight.data.mul_(2)
    torch.testing.assert_close(found.nll, F.cross_entropy(expected, found.labels, reduction="none"))
    assert torch.equal(found.correct, expected.argmax(-1) == found.labels)


def hooked(model):
    model.lm_head.register_forward_hook(lambda _, __, logits: 2 * logits)
    return model


def hooked_before(model):
    model.lm_head.register_forward_pre_hook(lambda _, hidden: (2 * hidden[0],))
    return model


def hooked_as_a_whole(model):
    def change(_, __, output):
        output.logits = 2 * output.logits

    model.register_forward_hook(change)
    return model


def patched(model):
    """As accelerate does for offloaded weights."""
    forward = model.lm_head.forward
    model.lm_head.forward = lambda hidden: 2 * forward(hidden)
    return model


def under_autocast(model):
    """As accelerate does for `bf16`."""
    model.forward = torch.autocast("cpu", dtype=torch.bfloat16)(model.forward)
    return model


def with_a_head_of_its_own(model):
    class Doubled(torch.nn.Linear):
        def forward(self, hidden):
            return 2 * super().forward(hidden)

    model.lm_head.__class__ = Doubled
    return model


def with_a_class_of_its_own(model):
    class Doubled(type(model)):
        def forward(self, **given):
            output = super().forward(**given)
            output.logits = 2 * output.logits
            return output

    model.__class__ = Doubled
    return model


def adapted(model):
    config = LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(model, config).eval()


def capped(_):
    return causal(Gemma2Config, final_logit_softcapping=1.0)


# PEFT 0.21 asks transformers for a property by its old name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "change",
    [hooked, hooked_before, hooked_as_a_whole, patched, under_autocast, with_a_head_of_its_own,
     with_a_class_of_its_own, adapted, capped],
)  # fmt: skip
def test_logits_that_are_more_than_a_product_are_taken_as_they_are(change):
    model = change(causal())
    with torch.inference_mode():
        found, expected = predicted(model), of_the_model(model)
        assert change is capped or not torch.equal(expected, of_the_model(causal()))
    assert type(found) is Predictions
    torch.testing.assert_close(found.logits, expected)


def test_large_logits_do_not_overflow():
    head = torch.nn.Linear(1, WORDS, bias=False)
    head.weight.data = torch.linspace(-1, 1, WORDS)[:, None]
    found, expected = both(torch.tensor([[200.0], [-200.0]]), head, None, torch.tensor([WORDS - 2, 0]))
    torch.testing.assert_close(found.nll, expected.nll, rtol=1e-6, atol=0)


def test_training_needs_all_logits():
    found = predicted(causal())
    assert type(found) is Predictions
    assert found.logits.requires_grad
