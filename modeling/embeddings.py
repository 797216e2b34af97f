"""Token embeddings (paper section 3.4)."""

import torch
from torch import nn

from .configuration_trivium import TriviumConfig


class TokenEmbedding(nn.Embedding):
    """A vector per token, multiplied by sqrt(d_model), so that it is not drowned by the positional encoding."""

    def __init__(self, vocab_size: int, config: TriviumConfig) -> None:
        super().__init__(vocab_size, config.d_model)
        # By this name PEFT knows that adapters of the embedding are to be scaled, too.
        self.embed_scale = config.d_model**0.5 if config.scale_embedding else 1.0

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embed ids of shape (batch, length) as (batch, length, d_model)."""
        return super().forward(input_ids) * self.embed_scale
