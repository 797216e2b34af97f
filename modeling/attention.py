"""Attention (paper section 3.2).

Shapes: B batch, L queries, S keys, h query heads, h_kv key and value heads, d_k width of a head; d_model = h * d_k.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_trivium import TriviumConfig
from .normalization import RMSNorm
from .padding import RealTokens
from .positions import Rotation, rotate


class AttentionContext(NamedTuple):
    """Mask, rotation and padding of a sequence. A stack prepares it once for all its layers.

    It must not hold tensors that require a gradient: reentrant checkpointing does not find tensors inside a tuple.

    Attributes:
        mask: Attention mask in the format of the attention function. None if every position is visible or, with causal
            attention, every earlier position.
        rotation: (cos, sin) of the positions; only with rotary positions.
        tokens: Positions of the real tokens in the padded batch, if hidden states are unpadded, (tokens, d_model).
    """

    mask: torch.Tensor | None = None
    rotation: Rotation | None = None
    tokens: RealTokens | None = None


NO_CONTEXT = AttentionContext()


def eager_attention_forward(
    module: "MultiHeadAttention",
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute Attention(Q, K, V) = softmax(Q K^T / sqrt(d_k)) V (equation 1) step by step.

    A query with no visible key gets zeros, as in torch's fused attention.

    Args:
        module: Attention layer, which provides `num_key_value_groups` and the training mode.
        query: (B, h, L, d_k).
        key: (B, h_kv, S, d_k).
        value: (B, h_kv, S, d_k).
        attention_mask: (B, 1, L, S), added to the scores: 0 where a key is visible, the minimum of the dtype
            elsewhere.
        scaling: 1 / sqrt(d_k).
        dropout: Dropout rate on the attention weights.
        **kwargs: Ignored; accepted for the common interface of attention functions.

    Returns:
        Output, (B, L, h, d_k), and attention weights, (B, h, L, S).
    """
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)  # (B, h, S, d_k)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)  # (B, h, S, d_k)
    scores = query @ key.transpose(2, 3) * scaling  # (B, h, L, S)
    scores = scores.to(torch.promote_types(query.dtype, torch.float32))
    if attention_mask is not None:
        scores = scores + attention_mask  # in float32: a negative score plus float16's minimum is minus infinity
    weights = scores.softmax(dim=-1).to(query.dtype)
    if attention_mask is not None:
        weights = weights * (attention_mask > torch.finfo(attention_mask.dtype).min)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights  # (B, L, h, d_k), (B, h, L, S)


class MultiHeadAttention(nn.Module):
    """MultiHead(Q, K, V) = Concat(head_1, ..., head_h) W^O with head_i = Attention(Q W_i^Q, K W_i^K, V W_i^V).

    One class serves the three uses of section 3.2.3: self-attention in the encoder, masked self-attention in the
    decoder (`is_causal`), and cross-attention, whose keys and values come from the encoder output, the `memory`.
    """

    def __init__(self, config: TriviumConfig, layer_idx: int, is_causal: bool = False) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = is_causal
        self.head_dim = config.head_dim
        assert config.num_key_value_heads is not None  # the configuration sets the default
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        # Attention functions count the token itself, as the causal mask of transformers does; its bidirectional mask
        # does not.
        window = config.sliding_window
        self.sliding_window = window if window is None or is_causal else window + 1
        key_value_dim = config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.d_model, config.d_model, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.d_model, key_value_dim, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.d_model, key_value_dim, bias=config.attention_bias)
        self.o_proj = nn.Linear(config.d_model, config.d_model, bias=config.attention_bias)
        # Normalized queries and keys bound the scores (Henry et al. 2020).
        self.q_norm = RMSNorm(config, self.head_dim) if config.qk_norm else None
        self.k_norm = RMSNorm(config, self.head_dim) if config.qk_norm else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        context: AttentionContext = NO_CONTEXT,
        memory: torch.Tensor | None = None,
        memory_context: AttentionContext = NO_CONTEXT,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend from `hidden_states` to `memory` (cross-attention), or to `hidden_states` (self-attention).

        Args:
            hidden_states: (B, L, d_model), the source of the queries; (tokens, d_model) if its context has `tokens`.
            context: Context of `hidden_states`.
            memory: (B, S, d_model), the source of keys and values in cross-attention; (tokens, d_model) if its
                context has `tokens`. None for self-attention.
            memory_context: Context of `memory`.
            cache: Keys and values of earlier calls, to which the new keys and values are appended.
            **kwargs: Passed on to the attention function.

        Returns:
            Output of the shape of `hidden_states`, and attention weights, (B, h, L, S), or None if the attention
            function does not return them.
        """
        query = self._split_heads(self.q_proj(hidden_states), context.tokens)  # (B, h, L, d_k)
        if self.q_norm is not None:
            query = self.q_norm(query)
        if memory is None:
            mask = context.mask
            key, value = self._project_keys_and_values(hidden_states, context.tokens)  # (B, h_kv, L, d_k)
            if context.rotation is not None:
                query, key = rotate(query, context.rotation), rotate(key, context.rotation)
            if cache is not None:
                key, value = cache.update(key, value, self.layer_idx, kwargs=kwargs)  # (B, h_kv, S, d_k)
        else:
            mask = memory_context.mask
            key, value = self._project_memory(memory, memory_context.tokens, cache)  # (B, h_kv, S, d_k)
            if query.shape[0] > key.shape[0]:  # all beams of a sentence attend to the same memory
                query = query.unflatten(0, (key.shape[0], -1))  # (B, beams, h, L, d_k)
                query = query.transpose(1, 2).flatten(2, 3)  # (B, h, beams * L, d_k)

        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention_interface(
            self,
            query,
            key,
            value,
            mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window if memory is None else None,
            **kwargs,
        )
        if context.tokens is None:
            output = output.reshape(*hidden_states.shape[:-1], -1)  # (B, L, d_model)
        else:
            output = context.tokens.unpad(output.flatten(2))  # (tokens, d_model)
        return self.o_proj(output), weights

    def _split_heads(self, states: torch.Tensor, tokens: RealTokens | None) -> torch.Tensor:
        if tokens is not None:
            states = tokens.pad(states)  # (B, L or S, heads * d_k)
        return states.view(*states.shape[:-1], -1, self.head_dim).transpose(1, 2)  # (B, heads, L or S, d_k)

    def _project_keys_and_values(
        self, states: torch.Tensor, tokens: RealTokens | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        key, value = self._split_heads(self.k_proj(states), tokens), self._split_heads(self.v_proj(states), tokens)
        return key if self.k_norm is None else self.k_norm(key), value

    def _project_memory(
        self, memory: torch.Tensor, tokens: RealTokens | None, cache: EncoderDecoderCache | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of the memory; with a cache, compute them in the first step only."""
        if cache is None:
            return self._project_keys_and_values(memory, tokens)
        if cache.is_updated.get(self.layer_idx):
            layer = cache.cross_attention_cache.layers[self.layer_idx]
            return layer.keys.to(memory.device), layer.values.to(memory.device)  # an offloaded cache is on the CPU
        key, value = self._project_keys_and_values(memory, tokens)
        cache.is_updated[self.layer_idx] = True
        return cache.cross_attention_cache.update(key, value, self.layer_idx)
