"""The model."""

from trivium.modeling.modeling_trivium import (
    TriviumDecoder,
    TriviumEncoder,
    TriviumForConditionalGeneration,
    TriviumModel,
    TriviumPreTrainedModel,
)

__all__ = [
    "TriviumDecoder",
    "TriviumEncoder",
    "TriviumForConditionalGeneration",
    "TriviumModel",
    "TriviumPreTrainedModel",
]
