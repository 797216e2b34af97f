"""Qwen3 (Yang et al. 2025): LLaMA with RMSNorm on the queries and keys of every head."""

from dataclasses import replace

from trivium.configuration import TriviumConfig
from trivium.interop.families.llama import LAYER, LLAMA
from trivium.interop.families.mistral import MISTRAL, REQUIREMENTS
from trivium.interop.families.qwen2 import write as write_window
from trivium.interop.mapping import Fields, Rule


def write(config: TriviumConfig) -> Fields:
    """Set the width of a head, whose default does not depend on the other fields."""
    return {**write_window(config), "head_dim": config.head_dim}


QWEN3 = replace(
    MISTRAL,
    model_type="qwen3",
    classes={"Qwen3ForCausalLM": "TriviumForCausalLM", "Qwen3Model": "TriviumDecoderModel"},
    fields=(*MISTRAL.fields, ("attention_bias", "attention_bias")),
    requirements={**REQUIREMENTS, "ffn_bias": False, "qk_norm": True},
    import_defaults={},
    rules=(
        *LLAMA.rules,
        Rule("layers.{i}.self_attn.q_norm", f"{LAYER}.self_attn.q_norm"),
        Rule("layers.{i}.self_attn.k_norm", f"{LAYER}.self_attn.k_norm"),
    ),
    write=write,
)
