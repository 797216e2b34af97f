"""Token embeddings (paper section 3.4)."""

import torch
from torch import nn

from .configuration_trivium import TriviumConfig


class TokenEmbedding(nn.Embedding):
    """Token embedding, scaled by sqrt(d_model) so that the positional encoding does not dominate it."""

    def __init__(self, vocab_size: int, config: TriviumConfig) -> None:
        super().__init__(vocab_size, config.d_model)
        # PEFT reads this attribute to scale the adapters of an embedding as well.
        self.embed_scale = config.d_model**0.5 if config.scale_embedding else 1.0

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embed ids of shape (batch, length) as (batch, length, d_model)."""
        return super().forward(input_ids) * self.embed_scale
