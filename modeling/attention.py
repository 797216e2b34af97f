"""Attention (paper section 3.2).

Shapes: B batch, L queries, S keys, h heads (h_kv of keys and values), d_k width of a head; d_model = h * d_k.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_trivium import TriviumConfig
from .padding import RealTokens
from .positions import Rotation, rotate


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
    """Attention(Q, K, V) = softmax(Q K^T / sqrt(d_k)) V (equation 1), spelled out.

    A query that may see no key at all gets zeros, as it does from torch's fused attention.

    Args:
        module: The attention layer, for its `num_key_value_groups` and its training mode.
        query: (B, h, L, d_k).
        key: (B, h_kv, S, d_k).
        value: (B, h_kv, S, d_k).
        attention_mask: (B, 1, L, S), added to the scores: 0 where a query sees a key, the dtype's minimum elsewhere.
        scaling: 1 / sqrt(d_k).
        dropout: Rate on the attention weights.
        **kwargs: Not used; other attention functions take more.

    Returns:
        The output, (B, L, h, d_k), and the attention weights, (B, h, L, S).
    """
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    scores = (query @ key.transpose(2, 3) * scaling).to(torch.promote_types(query.dtype, torch.float32))
    if attention_mask is not None:
        scores = scores + attention_mask  # in float32: a negative score plus float16's minimum is minus infinity
    weights = scores.softmax(dim=-1).to(query.dtype)
    if attention_mask is not None:
        weights = weights * (attention_mask > torch.finfo(attention_mask.dtype).min)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class MultiHeadAttention(nn.Module):
    """MultiHead(Q, K, V) = Concat(head_1, ..., head_h) W^O with head_i = Attention(Q W_i^Q, K W_i^K, V W_i^V).

    One class for the three uses of section 3.2.3: self-attention in the encoder, self-attention in the decoder
    (`is_causal`), and cross-attention, whose keys and values come from the encoder (`key_value_states`).
    """

    def __init__(self, config: TriviumConfig, layer_idx: int, is_causal: bool = False) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = is_causal
        self.head_dim = config.head_dim
        assert config.num_key_value_heads is not None  # the configuration fills it in
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        key_value_dim = config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.d_model, config.d_model, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.d_model, key_value_dim, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.d_model, key_value_dim, bias=config.attention_bias)
        self.o_proj = nn.Linear(config.d_model, config.d_model, bias=config.attention_bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        key_value_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        rotation: Rotation | None = None,
        tokens: RealTokens | None = None,
        key_value_tokens: RealTokens | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Let every position of `hidden_states` look at `key_value_states`, or at `hidden_states` if there are none.

        Args:
            hidden_states: (B, L, d_model), what asks.
            key_value_states: (B, S, d_model), what is looked at in cross-attention.
            attention_mask: In the form that the attention function in use wants.
            cache: Keys and values of earlier calls; this call's are added.
            rotation: (cos, sin) of the positions, with rotary positions, in self-attention.
            tokens: Where the rows have them, if `hidden_states` are only those of real tokens, (tokens, d_model).
            key_value_tokens: The same of `key_value_states`.
            **kwargs: Handed on to the attention function.

        Returns:
            As many vectors as `hidden_states`, and the attention weights, (B, h, L, S), or None if the function in use
            has none.
        """
        query = self._split_heads(self.q_proj(hidden_states), tokens)
        if key_value_states is None:
            key, value = self._project_keys_and_values(hidden_states, tokens)
            if rotation is not None:
                query, key = rotate(query, rotation), rotate(key, rotation)
            if cache is not None:
                key, value = cache.update(key, value, self.layer_idx)
        else:
            key, value = self._project_memory(key_value_states, key_value_tokens, cache)
            if query.shape[0] > key.shape[0]:  # the beams of a sentence look at one memory: (B, h, beams * L, d_k)
                query = query.unflatten(0, (key.shape[0], -1)).transpose(1, 2).flatten(2, 3)

        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention_interface(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        output = output.reshape(*hidden_states.shape[:-1], -1) if tokens is None else tokens.pick(output.flatten(2))
        return self.o_proj(output), weights

    def _split_heads(self, states: torch.Tensor, tokens: RealTokens | None) -> torch.Tensor:
        if tokens is not None:
            states = tokens.place(states)
        return states.view(*states.shape[:-1], -1, self.head_dim).transpose(1, 2)  # (B, h or h_kv, L or S, d_k)

    def _project_keys_and_values(
        self, states: torch.Tensor, tokens: RealTokens | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self._split_heads(self.k_proj(states), tokens), self._split_heads(self.v_proj(states), tokens)

    def _project_memory(
        self, memory: torch.Tensor, tokens: RealTokens | None, cache: EncoderDecoderCache | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the encoder's output, which generation computes once and reads at every step."""
        if cache is None:
            return self._project_keys_and_values(memory, tokens)
        if cache.is_updated.get(self.layer_idx):
            layer = cache.cross_attention_cache.layers[self.layer_idx]
            return layer.keys, layer.values
        key, value = self._project_keys_and_values(memory, tokens)
        cache.is_updated[self.layer_idx] = True
        return cache.cross_attention_cache.update(key, value, self.layer_idx)
