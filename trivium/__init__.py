"""Trivium: the Transformer of *Attention Is All You Need*, written from scratch for the Hugging Face ecosystem."""

from trivium import auto
from trivium.configuration import TriviumConfig, preset_config
from trivium.modeling import (
    TriviumDecoderModel,
    TriviumEncoderModel,
    TriviumForCausalLM,
    TriviumForConditionalGeneration,
    TriviumForMaskedLM,
    TriviumForQuestionAnswering,
    TriviumForSequenceClassification,
    TriviumForTokenClassification,
    TriviumModel,
)
from trivium.surgery import join, split
from trivium.tokenization import TriviumTokenizer

auto.register()

__all__ = [
    "TriviumConfig",
    "TriviumDecoderModel",
    "TriviumEncoderModel",
    "TriviumForCausalLM",
    "TriviumForConditionalGeneration",
    "TriviumForMaskedLM",
    "TriviumForQuestionAnswering",
    "TriviumForSequenceClassification",
    "TriviumForTokenClassification",
    "TriviumModel",
    "TriviumTokenizer",
    "join",
    "preset_config",
    "split",
]
