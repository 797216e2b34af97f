"""The model."""

from trivium.modeling.modeling_trivium import TriviumForConditionalGeneration, TriviumModel
from trivium.modeling.stacks import TriviumDecoder, TriviumEncoder, TriviumPreTrainedModel

__all__ = [
    "TriviumDecoder",
    "TriviumEncoder",
    "TriviumForConditionalGeneration",
    "TriviumModel",
    "TriviumPreTrainedModel",
]
