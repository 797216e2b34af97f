"""All model classes by architecture: encoder-decoder, encoder-only, decoder-only."""

from typing import Any

from transformers import PreTrainedModel

from trivium import (
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

BOTH = [TriviumModel, TriviumForConditionalGeneration]
ENCODER_ONLY = [
    TriviumEncoderModel,
    TriviumForMaskedLM,
    TriviumForSequenceClassification,
    TriviumForTokenClassification,
    TriviumForQuestionAnswering,
]
DECODER_ONLY = [TriviumDecoderModel, TriviumForCausalLM, TriviumDecoderForSequenceClassification]
CLASSES = [*BOTH, *ENCODER_ONLY, *DECODER_ONLY]
WAYS: dict[str, dict[str, Any]] = {"both": {}, "encoder": {"decoder_layers": 0}, "decoder": {"encoder_layers": 0}}


# Fields that set the number of layers, for each class.
LAYERS: dict[type[PreTrainedModel], dict[str, int]] = {
    **{model_class: {} for model_class in BOTH},
    **{model_class: {"decoder_layers": 0} for model_class in ENCODER_ONLY},
    **{model_class: {"encoder_layers": 0} for model_class in DECODER_ONLY},
}


def way_of(model_class: type[PreTrainedModel]) -> dict[str, Any]:
    """Return the layer counts that a class requires."""
    return WAYS["both" if model_class in BOTH else "encoder" if model_class in ENCODER_ONLY else "decoder"]
