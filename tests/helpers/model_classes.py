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
# Configuration fields that give each class the layers that it requires.
LAYERS: dict[type[PreTrainedModel], dict[str, int]] = {
    **dict.fromkeys(BOTH, WAYS["both"]),
    **dict.fromkeys(ENCODER_ONLY, WAYS["encoder"]),
    **dict.fromkeys(DECODER_ONLY, WAYS["decoder"]),
}
