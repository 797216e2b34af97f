"""Trivium: the Transformer of *Attention Is All You Need*, written from scratch for the Hugging Face ecosystem.

Importing the package registers its classes with transformers' Auto classes and pipelines (`trivium.auto`).
"""

from trivium.auto import register
from trivium.configuration import TriviumConfig, preset_config
from trivium.modeling import (
    TriviumDecoderForSequenceClassification,
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

__all__ = [
    "TriviumConfig",
    "TriviumDecoderForSequenceClassification",
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

register()
