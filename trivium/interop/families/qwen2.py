"""Qwen2 (Yang et al. 2024): LLaMA with biases on the query, key and value projections, but not on the output."""

from dataclasses import replace

from trivium.configuration import TriviumConfig
from trivium.interop.families.mistral import MISTRAL, REQUIREMENTS
from trivium.interop.mapping import Fields


def write(config: TriviumConfig) -> Fields:
    """Use the sliding window, if there is one, in all layers."""
    return {} if config.sliding_window is None else {"use_sliding_window": True, "max_window_layers": 0}


QWEN2 = replace(
    MISTRAL,
    model_type="qwen2",
    classes={"Qwen2ForCausalLM": "TriviumForCausalLM", "Qwen2Model": "TriviumDecoderModel"},
    # Trivium has biases on all four attention projections or on none. Conversion to Trivium sets the output bias to
    # zero. Conversion to Qwen2 requires a zero output bias, and fills the other three biases with zeros if the model
    # has no attention biases.
    requirements={**REQUIREMENTS, "ffn_bias": False},
    import_defaults={"attention_bias": True},
    write=write,
)
