"""Qwen2 (Yang et al. 2024): LLaMA with biases for queries, keys and values, and none for the output of attention."""

from dataclasses import replace

from trivium.interop.families.llama import LLAMA
from trivium.interop.families.mistral import MISTRAL

QWEN2 = replace(
    MISTRAL,
    model_type="qwen2",
    classes={"Qwen2ForCausalLM": "TriviumForCausalLM", "Qwen2Model": "TriviumDecoderModel"},
    # Ours has all four biases or none: coming in, the fourth is zeros; going out, it must be, or all three become so.
    ours={**LLAMA.ours, "ffn_bias": False},
    incoming={"attention_bias": True},
)
