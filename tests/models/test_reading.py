"""How language models read: which kinds are refused, and how many positions there are."""

import pytest
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BartConfig,
    BartForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaModel,
    RobertaConfig,
    T5Config,
    T5ForConditionalGeneration,
    XLNetConfig,
    XLNetLMHeadModel,
)

from stable_forgetting.errors import ModelError
from stable_forgetting.models.reading import check_causal, num_positions, stretching_length
from tiny_models import CONFIGS, tiny_language_model

SMALL = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TINY_T5 = {"vocab_size": 20, "d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2}
TINY_BART = {"vocab_size": 20, "d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: BertLMHeadModel(BertConfig(**SMALL)), "BertLMHeadModel reads its texts in both directions"),
        (lambda: BertForMaskedLM(BertConfig(**SMALL)), "BertForMaskedLM reads its texts in both directions"),
        (lambda: XLNetLMHeadModel(XLNetConfig(vocab_size=20, d_model=16, n_layer=1, n_head=2, d_inner=16)), "XLNet"),
        (lambda: AlbertForMaskedLM(AlbertConfig(**SMALL, embedding_size=8)), "AlbertForMaskedLM reads its texts in"),
        (lambda: T5ForConditionalGeneration(T5Config(**TINY_T5)), "is an encoder with a decoder"),
        (lambda: LlamaModel(LlamaConfig(**SMALL)), "LlamaModel has no output head .* AutoModelForCausalLM"),
        (lambda: LlamaForSequenceClassification(LlamaConfig(**SMALL)), "has no output head"),
    ],
)
def test_what_is_no_causal_language_model_is_refused(model, message):
    with pytest.raises(ModelError, match=message):
        check_causal(model())


def test_one_of_several_kinds_of_rotary_positions_may_stretch():
    model = tiny_language_model()
    assert stretching_length(model) is None
    longrope = {"rope_type": "longrope", "original_max_position_embeddings": 12}
    model.config.rope_parameters = {"full_attention": longrope, "sliding_attention": {"rope_type": "default"}}
    assert stretching_length(model) == 12


@pytest.mark.parametrize(
    "model",
    [
        lambda: BertLMHeadModel(BertConfig(**SMALL, is_decoder=True)),
        lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL)),
        lambda: BartForCausalLM(BartConfig(**TINY_BART)),
        *(lambda family=family: tiny_language_model(family) for family in CONFIGS),
    ],
)
def test_causal_language_models_are_taken(model):
    check_causal(model())


def test_places_behind_the_pad_token_are_fewer_than_there_are_embeddings():
    assert num_positions(RobertaConfig(max_position_embeddings=514)) == 512
    assert num_positions(LlamaConfig(max_position_embeddings=64)) == 64
    assert num_positions(T5Config()) is None
