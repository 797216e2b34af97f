"""Trivium models: encoder-decoder, encoder-only and decoder-only, with their heads."""

from trivium.modeling.modeling_trivium import TriviumForConditionalGeneration, TriviumModel
from trivium.modeling.modeling_trivium_decoder import (
    TriviumDecoderForSequenceClassification,
    TriviumDecoderModel,
    TriviumForCausalLM,
)
from trivium.modeling.modeling_trivium_encoder import (
    TriviumEncoderModel,
    TriviumForMaskedLM,
    TriviumForQuestionAnswering,
    TriviumForSequenceClassification,
    TriviumForTokenClassification,
)
from trivium.modeling.pretrained import TriviumPreTrainedModel
from trivium.modeling.stacks import TriviumDecoder, TriviumEncoder

__all__ = [
    "TriviumDecoder",
    "TriviumDecoderForSequenceClassification",
    "TriviumDecoderModel",
    "TriviumEncoder",
    "TriviumEncoderModel",
    "TriviumForCausalLM",
    "TriviumForConditionalGeneration",
    "TriviumForMaskedLM",
    "TriviumForQuestionAnswering",
    "TriviumForSequenceClassification",
    "TriviumForTokenClassification",
    "TriviumModel",
    "TriviumPreTrainedModel",
]
