"""Mistral (Jiang et al. 2023): LLaMA without biases, and with sliding-window attention."""

from dataclasses import replace

from transformers import PreTrainedConfig

from trivium.interop.families.llama import LLAMA
from trivium.interop.mapping import Fields

# LLaMA's requirements, except that a sliding window is allowed.
REQUIREMENTS = {name: value for name, value in LLAMA.requirements.items() if name != "sliding_window"}


def layer_types(config: PreTrainedConfig) -> list[str]:
    """Return the attention type of each layer; an empty list if the configuration has none."""
    return getattr(config, "layer_types", None) or []


def same_layer_types(config: PreTrainedConfig) -> list[str]:
    """Return attention types that Trivium can represent: every layer has the type of the first layer."""
    return layer_types(config)[:1] * len(layer_types(config))


def read(config: PreTrainedConfig) -> Fields:
    """Ignore a sliding window that no layer uses."""
    unused = layer_types(config) and "sliding_attention" not in layer_types(config)
    return {"sliding_window": None} if unused else {}


MISTRAL = replace(
    LLAMA,
    model_type="mistral",
    classes={"MistralForCausalLM": "TriviumForCausalLM", "MistralModel": "TriviumDecoderModel"},
    fields=(
        *(pair for pair in LLAMA.fields if pair[0] not in ("attention_bias", "mlp_bias")),
        ("sliding_window", "sliding_window"),
    ),
    requirements={**REQUIREMENTS, "attention_bias": False, "ffn_bias": False},
    native_requirements={**LLAMA.native_requirements, "layer_types": same_layer_types},
    read=read,
)
