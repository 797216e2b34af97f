"""Encoder layer and decoder layer (paper section 3.1, Figure 1)."""

from collections.abc import Callable

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .attention import NO_CONTEXT, AttentionContext, MultiHeadAttention
from .cache import self_attention_cache
from .configuration_trivium import TriviumConfig
from .feed_forward import FeedForward
from .normalization import NORMS


class Residual(nn.Module):
    """Residual connection, dropout and normalization around a sub-layer (sections 3.1 and 5.4).

    Post-norm is the paper's: LayerNorm(x + Dropout(Sublayer(x))). Pre-norm, x + Dropout(Sublayer(LayerNorm(x))), keeps
    the residual path free of normalization, so that deep stacks train without warm-up (Xiong et al. 2020); it needs a
    final norm at the end of the stack.
    """

    def __init__(self, config: TriviumConfig) -> None:
        super().__init__()
        self.norm = NORMS[config.norm_type](config)
        self.norm_first = config.norm_position == "pre"
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_states: torch.Tensor, sublayer: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Apply `sublayer`, which maps (batch, length, d_model) to the same shape, inside the residual connection.

        It must be a function, not a module: accelerate moves every argument with a `to()` method to the device, which
        would load the offloaded weights of a module.
        """
        if self.norm_first:
            return hidden_states + self._drop(sublayer(self.norm(hidden_states)))
        return self.norm(hidden_states + self._drop(sublayer(hidden_states)))

    def _drop(self, states: torch.Tensor) -> torch.Tensor:
        # In generation a step is so short that even calling a disabled dropout module takes a measurable share.
        return self.dropout(states) if self.dropout.training else states


def final_norm(config: TriviumConfig) -> nn.Module | None:
    """Return the final norm of a pre-norm stack; None for post-norm, whose last layer ends with a norm."""
    return NORMS[config.norm_type](config) if config.norm_position == "pre" else None


class EncoderLayer(GradientCheckpointingLayer):
    """Self-attention and feed-forward network (section 3.1)."""

    def __init__(self, config: TriviumConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = MultiHeadAttention(config, layer_idx)
        self.self_attn_residual = Residual(config)
        self.feed_forward = FeedForward(config)
        self.feed_forward_residual = Residual(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        context: AttentionContext = NO_CONTEXT,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Map (batch, source_len, d_model), or (tokens, d_model) if the context has `tokens`, to the same shape."""
        hidden_states = self.self_attn_residual(hidden_states, lambda x: self.self_attn(x, context, **kwargs)[0])
        return self.feed_forward_residual(hidden_states, lambda x: self.feed_forward(x))


class DecoderLayer(GradientCheckpointingLayer):
    """Masked self-attention, cross-attention if there is an encoder, and feed-forward network (section 3.1)."""

    def __init__(self, config: TriviumConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = MultiHeadAttention(config, layer_idx, is_causal=True)
        self.self_attn_residual = Residual(config)
        self.attends_to_encoder = bool(config.is_encoder_decoder)
        if self.attends_to_encoder:
            self.cross_attn = MultiHeadAttention(config, layer_idx)
            self.cross_attn_residual = Residual(config)
        self.feed_forward = FeedForward(config)
        self.feed_forward_residual = Residual(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        context: AttentionContext = NO_CONTEXT,
        memory: torch.Tensor | None = None,
        memory_context: AttentionContext = NO_CONTEXT,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Map (batch, target_len, d_model) to the same shape, attending to the memory, (batch, source_len, d_model).

        Either is (tokens, d_model) if its context has `tokens`. Pass `cache` by keyword: gradient checkpointing in
        transformers finds it by name and drops it, so that recomputation does not append to it twice.
        """
        self_cache = self_attention_cache(cache)
        hidden_states = self.self_attn_residual(
            hidden_states, lambda x: self.self_attn(x, context, cache=self_cache, **kwargs)[0]
        )
        if self.attends_to_encoder:
            hidden_states = self.cross_attn_residual(
                hidden_states,
                lambda x: self.cross_attn(x, context, memory, memory_context, cache=cache, **kwargs)[0],
            )
        return self.feed_forward_residual(hidden_states, lambda x: self.feed_forward(x))
