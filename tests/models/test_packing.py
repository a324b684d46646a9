"""Rows that hold several short texts: what each text gives alone, in fewer rows."""

import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig, Qwen2Config, Qwen3Config

from stable_forgetting.data.examples import LanguageExample
from stable_forgetting.models import tasks
from stable_forgetting.models.packing import best_rows, find_packing, packed_rows, pass_cost
from stable_forgetting.models.tasks import LanguageTask
from stable_forgetting.models.trunk import LANGUAGE_FAMILIES, find_trunk
from tiny_models import CONFIGS, VOCABULARY, FakeTokenizer, tiny_language_model

SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
WITH_POSITIONS = {
    "llama": CONFIGS["llama"],
    "mistral": lambda: MistralConfig(**SMALL, sliding_window=4),
    "qwen2": lambda: Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=5, max_window_layers=1),
    "qwen3": lambda: Qwen3Config(**SMALL),
}
LENGTHS = (3, 14, 5, 20, 2, 8, 4, 11, 20, 2)


def make_model(family, attention="sdpa"):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(WITH_POSITIONS[family](), attn_implementation=attention).eval()


def make_texts(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(1)
    rows = [tuple(torch.randint(1, VOCABULARY, (length,), generator=generator).tolist()) for length in lengths]
    return [LanguageExample(f"q{place}", "a", row, 1 + place % (len(row) - 1)) for place, row in enumerate(rows)]


@pytest.fixture
def reads_rows(monkeypatch):
    """How many rows were read in each pass, as the model sees them."""
    seen = []

    def watch(model):
        model.register_forward_pre_hook(lambda _, __, given: seen.append(len(given["input_ids"])), with_kwargs=True)
        return model

    return watch, seen


def test_every_family_with_kept_trunks_is_tried_here():
    assert set(WITH_POSITIONS) == LANGUAGE_FAMILIES


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", WITH_POSITIONS)
def test_each_text_gives_what_it_gives_alone(family, attention, reads_rows):
    watch, seen = reads_rows
    model, task, texts = watch(make_model(family, attention)), LanguageTask(FakeTokenizer()), make_texts()
    together = task.predict(model, task.collate(texts))
    assert seen[0] < len(texts)
    alone = [task.predict(model, task.collate([text])) for text in texts]
    torch.testing.assert_close(together.logits, torch.cat([found.logits for found in alone]), atol=1e-5, rtol=1e-4)
    assert together.labels.tolist() == [label for found in alone for label in found.labels.tolist()]
    assert together.num_labels.tolist() == [text.num_labels for text in texts]
    assert together.example.tolist() == sorted(together.example.tolist())


def test_a_part_of_a_batch_whose_longest_text_is_not_in_it():
    model, task, texts = make_model("llama"), LanguageTask(FakeTokenizer()), make_texts()
    chosen = torch.tensor([len(text.input_ids) < 12 for text in texts])
    part = {name: values[chosen] for name, values in task.collate(texts).items()}
    alone = [task.predict(model, task.collate([text])) for text, take in zip(texts, chosen, strict=True) if take]
    expected = torch.cat([found.logits for found in alone])
    torch.testing.assert_close(task.predict(model, part).logits, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", WITH_POSITIONS)
def test_gradients_are_those_of_a_padded_batch(family, monkeypatch):
    task, texts = LanguageTask(FakeTokenizer()), make_texts()
    gradients = []
    for find in (find_packing, lambda *_: None):
        monkeypatch.setattr(tasks, "find_packing", find)
        model = make_model(family)
        task.predict(model, task.collate(texts)).nll.sum().backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    packed, padded = gradients
    assert packed.keys() == padded.keys()
    for name in packed:
        torch.testing.assert_close(packed[name], padded[name], atol=1e-5, rtol=1e-4, msg=name)


def test_what_a_trunk_makes_of_texts_is_packed_as_well(tmp_path, reads_rows):
    watch, seen = reads_rows
    model, texts = make_model("llama"), make_texts()
    plain = LanguageTask(FakeTokenizer())
    expected = plain.predict(model, plain.collate(texts))
    with_trunk = plain.with_trunk(find_trunk(model, 1, {}, tmp_path))
    batch = with_trunk.collate(texts)
    found = with_trunk.predict(watch(model), batch)
    assert batch["input_ids"].ndim == 3
    assert seen[0] < len(texts)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", sorted(CONFIGS.keys() - WITH_POSITIONS.keys()))
def test_models_that_may_not_know_positions_read_padded_batches(family):
    assert find_packing(tiny_language_model(family), torch.ones(9, 3)) is None


def test_other_kinds_of_attention_read_padded_batches():
    model, mask = make_model("llama"), torch.tensor([[1, 1, 1], [1, 0, 0], [1, 0, 0]])
    assert find_packing(model, mask) is not None
    model.config._attn_implementation = "flash_attention_2"
    assert find_packing(model, mask) is None


def test_a_batch_that_has_little_padding_stays_as_it_is():
    assert find_packing(make_model("llama"), torch.ones(8, 5)) is None


def test_no_row_is_longer_than_its_room_and_every_text_is_in_one():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        lengths = torch.randint(1, 40, (24,), generator=generator).tolist()
        for room in (max(lengths), 3 * max(lengths)):
            rows = packed_rows(lengths, room)
            filled = sorted(sum(lengths[text] for text in row) for row in rows)
            assert sorted(text for row in rows for text in row) == list(range(24))
            assert filled[-1] <= room
            assert len(rows) == 1 or sum(filled[:2]) > room, "two rows could be one"


def test_long_rows_are_for_wide_models():
    """Attention costs little there, and a single row is filled best."""
    lengths = [10, 7, 7, 7]
    assert len(best_rows(lengths, 1_000_000)) == 1
    assert len(best_rows(lengths, 1)) == 4
    assert pass_cost([[0], [1], [2], [3]], lengths, 10) == pytest.approx(4 * 10 * (1 + 10 / 60))
