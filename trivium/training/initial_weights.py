"""Change the initial weights of a model before training."""

import torch

from trivium.modeling.attention import MultiHeadAttention
from trivium.modeling.feed_forward import FeedForward
from trivium.modeling.pretrained import TriviumPreTrainedModel


@torch.no_grad()
def zero_output_projections(model: TriviumPreTrainedModel) -> None:
    """Set the output projections of attention and feed-forward networks to zero.

    Each sub-layer then starts as zero, and each pre-norm layer as the identity.
    """
    for module in model.modules():
        if isinstance(module, MultiHeadAttention):
            module.o_proj.weight.zero_()
        elif isinstance(module, FeedForward):
            module.down_proj.weight.zero_()
