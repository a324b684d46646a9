import numpy as np
import torch
from transformers import AutoImageProcessor, AutoTokenizer

from stable_forgetting.data.language import language_examples
from stable_forgetting.data.sources import load_rows
from stable_forgetting.models.builtin import digits_model, people_model, people_tokenizer


def same_weights(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_seed_decides_the_weights_and_nothing_else_changes():
    state = torch.get_rng_state()
    for make in (people_model, digits_model):
        assert same_weights(make(0)[0], make(0)[0])
        assert not same_weights(make(0)[0], make(1)[0])
    assert torch.equal(state, torch.get_rng_state())


def test_sizes():
    assert 0.4e6 < people_model(0)[0].num_parameters() < 1e6
    assert 0.05e6 < digits_model(0)[0].num_parameters() < 0.3e6


def test_tokenizer_is_the_same_every_time():
    first, second = (people_tokenizer().backend_tokenizer.to_str() for _ in range(2))
    assert first == second


def test_tokenizer_survives_saving(tmp_path):
    tokenizer = people_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "Question: Where was Ada born?\nAnswer: Ada was born in Tarvik."
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    assert tokenizer.chat_template is None


def test_unseen_people_do_not_fall_apart():
    tokenizer = people_tokenizer()
    lengths = {
        split: np.mean(
            [e.num_labels for e in language_examples(load_rows("builtin:people", split=split), tokenizer, name=split)]
        )
        for split in ("known", "unseen")
    }
    assert abs(lengths["known"] - lengths["unseen"]) < 0.5


def test_people_model_takes_its_examples():
    model, tokenizer = people_model(0)
    examples = language_examples(load_rows("builtin:people"), tokenizer, name="all")
    assert max(len(example.input_ids) for example in examples) <= model.config.max_position_embeddings
    assert max(max(example.input_ids) for example in examples) < model.config.vocab_size
    with torch.no_grad():
        logits = model(torch.tensor([examples[0].input_ids])).logits
    assert logits.shape == (1, len(examples[0].input_ids), model.config.vocab_size)


def test_digits_processor_survives_saving_and_keeps_the_ink(tmp_path):
    model, processor = digits_model(0)
    images = [row["image"] for row in load_rows("builtin:digits").first(3)]
    values = processor(images, return_tensors="pt")["pixel_values"]
    expected = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(values, expected)
    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert torch.equal(loaded(images, return_tensors="pt")["pixel_values"], values)
    with torch.no_grad():
        assert model(values).logits.shape == (3, 10)
