"""Qwen2 (Yang et al. 2024): LLaMA with biases on the query, key and value projections, but not on the output."""

from dataclasses import replace

from trivium.interop.families.llama import LLAMA
from trivium.interop.families.mistral import MISTRAL

QWEN2 = replace(
    MISTRAL,
    model_type="qwen2",
    classes={"Qwen2ForCausalLM": "TriviumForCausalLM", "Qwen2Model": "TriviumDecoderModel"},
    # Trivium has biases on all four attention projections or on none. Conversion to Trivium fills the output bias with
    # zeros. Conversion to Qwen2 requires an output bias of zero, and fills the other three biases with zeros if the
    # model has none.
    requirements={**LLAMA.requirements, "ffn_bias": False},
    import_defaults={"attention_bias": True},
)
