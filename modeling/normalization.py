"""Normalization of hidden states (paper section 3.1), with torch's fused kernels."""

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_trivium import TriviumConfig


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias, over the last dimension (Ba et al. 2016)."""

    def __init__(self, config: TriviumConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.d_model))
        self.bias = nn.Parameter(torch.zeros(config.d_model))
        self.eps = config.norm_eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Normalize `hidden_states` of any shape (..., d_model)."""
        return F.layer_norm(hidden_states, self.weight.shape, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """x / sqrt(mean of squares + eps) * weight, over the last dimension (Zhang and Sennrich 2019)."""

    def __init__(self, config: TriviumConfig, width: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width or config.d_model))
        self.eps = config.norm_eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Normalize `hidden_states` of any shape (..., width)."""
        return F.rms_norm(hidden_states, self.weight.shape, self.weight, self.eps)


NORMS: dict[str, type[nn.Module]] = {"layernorm": LayerNorm, "rmsnorm": RMSNorm}
