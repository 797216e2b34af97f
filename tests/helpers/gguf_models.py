"""Tiny language models with architectures that llama.cpp supports."""

from pathlib import Path
from typing import Any

from tiny import tiny_model

from trivium import TriviumForCausalLM, TriviumTokenizer

LLAMA: dict[str, Any] = {
    "position_embedding_type": "rotary",
    "norm_type": "rmsnorm",
    "norm_position": "pre",
    "gated_ffn": True,
    "activation_function": "silu",
    "scale_embedding": False,
}
GPT2: dict[str, Any] = {
    "position_embedding_type": "learned",
    "norm_position": "pre",
    "activation_function": "gelu_new",
    "scale_embedding": False,
    "attention_bias": True,
}
BIASED = {"attention_bias": True, "ffn_bias": True, "num_key_value_heads": 2, "tie_word_embeddings": False}
LLAMA3_ROPE = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {**LLAMA, "ffn_bias": False},
    "llama-biased": {**LLAMA, **BIASED},
    "llama-linear": {**LLAMA, "rope_parameters": {"rope_type": "linear", "factor": 2.0}},
    "llama-llama3": {**LLAMA, "rope_parameters": {"rope_type": "llama3", **LLAMA3_ROPE}},
    "gpt2": GPT2,
}


def language_model(tokenizer: TriviumTokenizer, **options: Any) -> TriviumForCausalLM:
    """Return a float32 model with a vocabulary three tokens larger than the tokenizer's.

    Its matrices have rows of 64 weights, which GGUF can quantize.
    """
    sizes = {"d_model": 64, "encoder_layers": 0, "vocab_size": len(tokenizer) + 3}
    return tiny_model(TriviumForCausalLM, **{**sizes, **options}).float()


def save(model: TriviumForCausalLM, tokenizer: TriviumTokenizer, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
