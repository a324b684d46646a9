"""Configs of models that are too large for the machines of the tests, as their makers publish them."""

from typing import Any

_LLAMA_3: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}

LLAMA_3_8B = _LLAMA_3 | {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32
}  # fmt: skip
LLAMA_3_70B = _LLAMA_3 | {
    "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64
}  # fmt: skip

PEOPLE: dict[str, Any] = {
    "source": {"path": "builtin:people"},
    "forget": {"where": 'person in ["Lotte Quillby", "Bastien Elderfield"]'},
    "retain": {"split": "known"},
}
