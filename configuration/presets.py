"""Named configurations: the paper's models, BERT, GPT-2 and LLaMA, and small models for a CPU."""

from typing import Any

from trivium.configuration.configuration_trivium import TriviumConfig

PRESETS: dict[str, dict[str, Any]] = {
    # Vaswani et al. 2017, Table 3: these are TriviumConfig's defaults.
    "transformer-base": {},
    "transformer-big": {"d_model": 1024, "num_attention_heads": 16, "ffn_dim": 4096, "dropout": 0.3},
    # Wu et al. 2021 (arXiv 2105.14462), "Transformer-Tiny": sized for a corpus of 29,000 sentences.
    "transformer-tiny": {
        "encoder_layers": 4,
        "decoder_layers": 4,
        "d_model": 128,
        "num_attention_heads": 4,
        "ffn_dim": 256,
        "dropout": 0.3,
        "vocab_size": 10000,
        "max_position_embeddings": 256,
    },
    # Trains in minutes on a CPU; used by `make demo`.
    "transformer-micro": {
        "encoder_layers": 2,
        "decoder_layers": 2,
        "d_model": 128,
        "num_attention_heads": 4,
        "ffn_dim": 512,
        "vocab_size": 1000,
        "max_position_embeddings": 128,
    },
    # Devlin et al. 2018 (arXiv 1810.04805): post-norm like the paper, with normalized embeddings and token types.
    "bert-base": {
        "vocab_size": 30522,
        "d_model": 768,
        "encoder_layers": 12,
        "decoder_layers": 0,
        "num_attention_heads": 12,
        "ffn_dim": 3072,
        "activation_function": "gelu",
        "attention_dropout": 0.1,
        "position_embedding_type": "learned",
        "max_position_embeddings": 512,
        "norm_eps": 1e-12,
        "attention_bias": True,
        "scale_embedding": False,
        "normalize_embedding": True,
        "type_vocab_size": 2,
        "label_smoothing": 0.0,
        "classifier_pooling": "cls",
        "bos_token_id": 101,
        "eos_token_id": 102,
        "decoder_start_token_id": None,
    },
    # Radford et al. 2019, the smallest GPT-2 (124 M parameters): pre-norm, biases in all projections.
    "gpt2": {
        "vocab_size": 50257,
        "d_model": 768,
        "encoder_layers": 0,
        "decoder_layers": 12,
        "num_attention_heads": 12,
        "ffn_dim": 3072,
        "activation_function": "gelu_new",
        "attention_dropout": 0.1,
        "position_embedding_type": "learned",
        "max_position_embeddings": 1024,
        "norm_position": "pre",
        "attention_bias": True,
        "scale_embedding": False,
        "label_smoothing": 0.0,
        "pad_token_id": None,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
        "decoder_start_token_id": None,
    },
    # Touvron et al. 2023 (arXiv 2302.13971) at the size of SmolLM-135M: rotary positions, RMSNorm before every
    # sub-layer, SwiGLU, grouped-query attention, no biases, no dropout.
    "llama-135m": {
        "vocab_size": 49152,
        "d_model": 576,
        "encoder_layers": 0,
        "decoder_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "ffn_dim": 1536,
        "gated_ffn": True,
        "activation_function": "silu",
        "dropout": 0.0,
        "position_embedding_type": "rotary",
        "max_position_embeddings": 2048,
        "norm_type": "rmsnorm",
        "norm_position": "pre",
        "ffn_bias": False,
        "scale_embedding": False,
        "label_smoothing": 0.0,
        "pad_token_id": None,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "decoder_start_token_id": None,
    },
}


def preset_config(name: str, **overrides: Any) -> TriviumConfig:
    """Return the preset `name`, with fields replaced by `overrides`.

    Raises:
        ValueError: No preset has this name; the message lists all presets.
    """
    if name not in PRESETS:
        raise ValueError(f"The preset {name!r} does not exist. Choose one of {', '.join(PRESETS)}.")
    return TriviumConfig(**{**PRESETS[name], **overrides})
