"""Mistral (Jiang et al. 2023): LLaMA without biases; sliding-window attention is not supported."""

from dataclasses import replace

from transformers import PreTrainedConfig

from trivium.interop.families.llama import LLAMA
from trivium.interop.mapping import Fields


def read(config: PreTrainedConfig) -> Fields:
    """Ignore a sliding window that covers the maximum length, or that no layer uses."""
    window, layers = config.sliding_window, getattr(config, "layer_types", None)
    unused = window is not None and (
        window >= config.max_position_embeddings or (layers and "sliding_attention" not in layers)
    )
    return {"sliding_window": None} if unused else {}


MISTRAL = replace(
    LLAMA,
    model_type="mistral",
    classes={"MistralForCausalLM": "TriviumForCausalLM", "MistralModel": "TriviumDecoderModel"},
    fields=tuple(pair for pair in LLAMA.fields if pair[0] not in ("attention_bias", "mlp_bias")),
    requirements={**LLAMA.requirements, "attention_bias": False, "ffn_bias": False},
    native_requirements={**LLAMA.native_requirements, "sliding_window": None},
    read=read,
)
