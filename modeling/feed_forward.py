"""Position-wise feed-forward network (paper section 3.3)."""

import torch
from torch import nn
from transformers.activations import ACT2FN

from .configuration_trivium import TriviumConfig


class FeedForward(nn.Module):
    """FFN(x) = max(0, x W_1 + b_1) W_2 + b_2 (equation 2), applied to every position separately.

    W_1 is `up_proj`, W_2 is `down_proj`. With `gated_ffn` the inner layer is activation(x W_gate) * (x W_1) instead
    (Shazeer 2020, "GLU Variants Improve Transformer").
    """

    def __init__(self, config: TriviumConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.d_model, config.ffn_dim, bias=config.ffn_bias)
        self.gate_proj = nn.Linear(config.d_model, config.ffn_dim, bias=config.ffn_bias) if config.gated_ffn else None
        self.down_proj = nn.Linear(config.ffn_dim, config.d_model, bias=config.ffn_bias)
        self.activation = ACT2FN[config.activation_function]
        self.dropout = nn.Dropout(config.activation_dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map (batch, length, d_model) to the same shape."""
        inner = self.up_proj(hidden_states)
        if self.gate_proj is None:
            inner = self.activation(inner)
        else:
            inner = self.activation(self.gate_proj(hidden_states)) * inner
        return self.down_proj(self.dropout(inner))
