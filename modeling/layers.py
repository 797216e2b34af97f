"""The two kinds of block (paper section 3.1, Figure 1)."""

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
    """The connection around every sub-layer: x + Dropout(Sublayer(x)), normalised after it ("post") or before ("pre").

    Post is the paper's: LayerNorm(x + Sublayer(x)). Pre leaves the path from bottom to top free of normalisation, so
    that deep stacks train without warm-up (Xiong et al. 2020); the stack then normalises once at its end.
    """

    def __init__(self, config: TriviumConfig) -> None:
        super().__init__()
        self.norm = NORMS[config.norm_type](config)
        self.norm_first = config.norm_position == "pre"
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_states: torch.Tensor, sublayer: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Apply `sublayer`, which keeps the shape (batch, length, d_model), with its connection.

        A function and not a module: among the arguments of modules accelerate moves all that has a `to()`, weights
        that are offloaded as well.
        """
        if self.norm_first:
            return hidden_states + self._drop(sublayer(self.norm(hidden_states)))
        return self.norm(hidden_states + self._drop(sublayer(hidden_states)))

    def _drop(self, states: torch.Tensor) -> torch.Tensor:
        # In generation, where a step is short, even to call what does nothing takes a share of it.
        return self.dropout(states) if self.dropout.training else states


def final_norm(config: TriviumConfig) -> nn.Module:
    """What closes a stack: with pre-norm a normalisation, with post-norm the last block has done it."""
    return NORMS[config.norm_type](config) if config.norm_position == "pre" else nn.Identity()


class EncoderLayer(GradientCheckpointingLayer):
    """Self-attention, then feed-forward."""

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
    """Masked self-attention, then, where there is an encoder, attention to its output, then feed-forward."""

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
        """Map (batch, target_len, d_model) to the same shape, looking at the memory, (batch, source_len, d_model).

        Each of the two is (tokens, d_model) if its context has `tokens`. The cache goes by its name: by that
        transformers finds it, and leaves it out, when activations are computed again in the backward pass.
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
