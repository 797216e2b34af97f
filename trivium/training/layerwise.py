"""Learning rates that fall from the head of a model to its embeddings, for fine-tuning (Clark et al. 2020)."""

import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from trivium.configuration import TriviumConfig


class LayerwiseFactory:
    """Factory for the Trainer's `optimizer_cls_and_kwargs`, which builds the optimizer from the model."""

    def __call__(
        self,
        model: Any,
        optimizer_class: Callable[..., Optimizer],
        layer_decay: float,
        lr: float,
        weight_decay: float,
        **options: Any,
    ) -> Optimizer:
        """Return an optimizer with one learning rate for each depth.

        Args:
            model: The model.
            optimizer_class: Class of the optimizer.
            layer_decay: Factor by which the learning rate falls from one depth to the next.
            lr: Learning rate of the head.
            weight_decay: Weight decay of all parameters but biases and norms, as in the Trainer.
            **options: Further arguments of the optimizer.
        """
        groups: dict[tuple[int, bool], list[nn.Parameter]] = defaultdict(list)
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                groups[depth_of(name, model.config), weight.ndim > 1].append(weight)
        return optimizer_class(
            [  # The head comes first, because the Trainer logs the learning rate of the first group.
                {
                    "params": weights,
                    "lr": lr * layer_decay**depth,
                    "weight_decay": weight_decay if is_matrix else 0.0,
                }
                for (depth, is_matrix), weights in sorted(groups.items(), key=lambda group: group[0])
            ],
            lr=lr,
            **options,
        )


def depth_of(name: str, config: TriviumConfig) -> int:
    """Return the distance of a parameter from the head.

    It is 0 for the head and the final norm, 1 for the last layer, N for the first of N layers, and N + 1 for the
    embeddings.
    """
    stack = re.search(r"(encoder|decoder)\.(embed|layers\.(\d+))", name)
    if stack is None:
        return 0
    layers = config.encoder_layers if stack[1] == "encoder" else config.decoder_layers
    return layers + 1 if stack[3] is None else layers - int(stack[3])
