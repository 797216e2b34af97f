"""Named shapes: the paper's models and small ones for a CPU."""

from typing import Any

from trivium.configuration.configuration_trivium import TriviumConfig

PRESETS: dict[str, dict[str, Any]] = {
    # Vaswani et al. 2017, Table 3: these are TriviumConfig's defaults.
    "transformer-base": {},
    "transformer-big": {"d_model": 1024, "num_attention_heads": 16, "ffn_dim": 4096, "dropout": 0.3},
    # Wu et al. 2021 (arXiv 2105.14462), "Transformer-Tiny": what a corpus of 29,000 sentences can fill.
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
    # Trains in minutes on a CPU; what `make demo` uses.
    "transformer-micro": {
        "encoder_layers": 2,
        "decoder_layers": 2,
        "d_model": 128,
        "num_attention_heads": 4,
        "ffn_dim": 512,
        "vocab_size": 1000,
        "max_position_embeddings": 128,
    },
}


def preset_config(name: str, **overrides: Any) -> TriviumConfig:
    """The configuration called `name`, with single fields replaced by `overrides`.

    Raises:
        ValueError: There is no preset of that name; the message lists those that there are.
    """
    if name not in PRESETS:
        raise ValueError(f"The preset {name!r} does not exist: it must be one of {', '.join(PRESETS)}.")
    return TriviumConfig(**{**PRESETS[name], **overrides})
