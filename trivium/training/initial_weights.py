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


@torch.no_grad()
def reinitialize_layers(model: TriviumPreTrainedModel, count: int) -> None:
    """Initialize the last layers of each stack anew.

    The last layers of a pre-trained model are the most specialized (Zhang et al. 2021, "Revisiting Few-sample BERT
    Fine-tuning").

    Raises:
        ValueError: A stack has fewer layers.
    """
    new = type(model)(model.config)
    for name in ("encoder", "decoder"):
        stack, fresh = (getattr(each.base_model, name, None) for each in (model, new))
        if stack is None or fresh is None:
            continue
        if count > len(stack.layers):
            raise ValueError(
                f"learning.reinitialized_layers is {count}, but must be at most {len(stack.layers)}, the number of "
                f"{name} layers of the model in init_from."
            )
        stack.layers[-count:].load_state_dict(fresh.layers[-count:].state_dict())
