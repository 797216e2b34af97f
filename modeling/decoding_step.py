"""Run one decoding step without nested module calls: the layers for one token of every row, and the logits.

With few rows, a step of `generate()` consists of a few hundred operations of some microseconds each, and calling the
surrounding modules doubles its time. `PlainLayers` computes the same result as `TriviumDecoder.run_layers`, but
inlines nested modules and calls only the `forward` of the innermost ones (projections, norms, positions, activation).
It supports layers as defined in this package, in evaluation mode and without hooks; see `is_plain`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention import AttentionContext, MultiHeadAttention, eager_attention_forward
from .feed_forward import FeedForward
from .layers import DecoderLayer, Residual
from .positions import rotate
from .stacks import TriviumDecoder

Function = Callable[[torch.Tensor], torch.Tensor]
FEW_ROWS = 8  # `project_few_rows` is faster than `nn.Linear` for at most this many rows,
MIN_WEIGHTS = 2**20  # and at least this many weights
# modules of a layer that are inlined below
PARTS: dict[str, type[nn.Module]] = {
    "self_attn": MultiHeadAttention,
    "self_attn_residual": Residual,
    "cross_attn": MultiHeadAttention,
    "cross_attn_residual": Residual,
    "feed_forward": FeedForward,
    "feed_forward_residual": Residual,
}


def is_plain(decoder: TriviumDecoder) -> bool:
    """Return True if `PlainLayers` computes everything that calling the modules of the decoder would compute.

    Projections may be of any type, for example quantized or wrapped by an adapter. All other modules must be of this
    package, and no module may be in training mode, hooked, compiled, or have its `forward` replaced.
    """
    for layer in decoder.layers:
        if type(layer) is not DecoderLayer:
            return False
        if any(type(part) is not PARTS.get(name) for name, part in layer.named_children()):
            return False
    return not any(module.training or has_custom_call(module) for module in decoder.modules())


def has_custom_call(module: nn.Module) -> bool:
    """Return True if calling a module does more than its class's `forward`: it is hooked, compiled or replaced."""
    return (
        "forward" in vars(module)
        or module._compiled_call_impl is not None
        or bool(module._forward_hooks or module._forward_pre_hooks)
    )


def plain_head(head: nn.Module) -> Function:
    """Return the projection of (rows, 1, d_model) to (rows, 1, vocabulary): `head`, or a faster one for few rows."""
    if type(head) is not nn.Linear or type(head.weight) is not nn.Parameter or head.training or has_custom_call(head):
        return head
    linear, weight = head, head.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or weight.numel() < MIN_WEIGHTS or len(weight) % 2:
        return head

    def project(hidden_states: torch.Tensor) -> torch.Tensor:
        if len(hidden_states) > FEW_ROWS:
            return linear(hidden_states)
        return project_few_rows(hidden_states.squeeze(1), weight, linear.bias).unsqueeze(1)

    return project


def project_few_rows(
    hidden_states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Map (rows, d_model) to (rows, vocabulary) by multiplying each half of the weight by the transposed rows.

    MKL uses only a third of the memory bandwidth when it multiplies a large matrix by one row. For two to eight rows,
    it takes up to three times as long as with the order of factors used here.
    """
    rows = hidden_states.T.expand(2, -1, -1)  # (2, d_model, rows)
    logits = torch.bmm(weight.unflatten(0, (2, -1)), rows)  # (2, vocabulary / 2, rows)
    logits = logits.flatten(0, 1).T.contiguous()  # (rows, vocabulary)
    return logits if bias is None else logits + bias


class PlainLayers:
    """Run the stack for one token of every row, as `TriviumDecoder.run_layers` does.

    Args:
        decoder: A decoder for which `is_plain` returns True.
        self_cache: Keys and values of earlier tokens, to which the new token's are appended.
        cross_cache: Keys and values of the memory, if there is an encoder.
    """

    def __init__(self, decoder: TriviumDecoder, self_cache: Cache, cross_cache: Cache) -> None:
        self.embed_positions = decoder.embed_positions.forward
        self.embedding_norm = decoder.embedding_norm.forward
        self.norm = None if decoder.norm is None else decoder.norm.forward
        layers: Any = decoder.layers[: decoder.config.decoder_layers]
        self.layers = [PlainLayer(layer, self_cache, cross_cache) for layer in layers]

    def __call__(
        self,
        inputs_embeds: torch.Tensor,
        position_ids: torch.Tensor,
        context: AttentionContext,
        memory_context: AttentionContext,
    ) -> torch.Tensor:
        """Map embedded tokens, (rows, 1, d_model), to hidden states of the same shape.

        Args:
            inputs_embeds: (rows, 1, d_model).
            position_ids: (rows or 1, 1).
            context: Context of the tokens; the rotation is added here.
            memory_context: Context of the memory; its mask applies to all beams of a sentence.
        """
        hidden_states, rotation = self.embed_positions(inputs_embeds, position_ids)
        hidden_states = self.embedding_norm(hidden_states)
        context = context._replace(rotation=rotation)
        for layer in self.layers:
            hidden_states = layer(hidden_states, context, memory_context)
        return hidden_states if self.norm is None else self.norm(hidden_states)


class PlainLayer:
    """Run one decoder layer: self-attention, cross-attention if there is an encoder, feed-forward network."""

    def __init__(self, layer: DecoderLayer, self_cache: Cache, cross_cache: Cache) -> None:
        self.self_attention = PlainAttention(layer.self_attn, self_cache).attend_to_past
        self.self_residual = plain_residual(layer.self_attn_residual)
        self.attends_to_encoder = layer.attends_to_encoder
        if layer.attends_to_encoder:
            self.cross_attention = PlainAttention(layer.cross_attn, cross_cache).attend_to_memory
            self.cross_residual = plain_residual(layer.cross_attn_residual)
        self.feed_forward = plain_feed_forward(layer.feed_forward)
        self.feed_forward_residual = plain_residual(layer.feed_forward_residual)

    def __call__(
        self, hidden_states: torch.Tensor, context: AttentionContext, memory_context: AttentionContext
    ) -> torch.Tensor:
        """Map (rows, 1, d_model) to the same shape."""
        hidden_states = self.self_residual(hidden_states, lambda x: self.self_attention(x, context))
        if self.attends_to_encoder:
            hidden_states = self.cross_residual(hidden_states, lambda x: self.cross_attention(x, memory_context))
        return self.feed_forward_residual(hidden_states, self.feed_forward)


class PlainAttention:
    """Attend from one token of every row to the keys and values in a cache."""

    def __init__(self, attention: MultiHeadAttention, cache: Cache) -> None:
        self.cache, self.layer_idx, self.head_dim = cache, attention.layer_idx, attention.head_dim
        self.q_proj, self.k_proj = attention.q_proj.forward, attention.k_proj.forward
        self.v_proj, self.o_proj = attention.v_proj.forward, attention.o_proj.forward
        self.q_norm = None if attention.q_norm is None else attention.q_norm.forward
        self.k_norm = None if attention.k_norm is None else attention.k_norm.forward
        interface = ALL_ATTENTION_FUNCTIONS.get_interface(
            attention.config._attn_implementation, eager_attention_forward
        )
        self.attention_function = partial(interface, attention, dropout=0.0, scaling=attention.scaling)

    def attend_to_past(self, hidden_states: torch.Tensor, context: AttentionContext) -> torch.Tensor:
        """Append the token to the cache and attend to all tokens in it; (rows, 1, d_model) to the same shape."""
        shape = (len(hidden_states), 1, -1, self.head_dim)
        query = self.q_proj(hidden_states).view(shape).transpose(1, 2)  # (rows, h, 1, d_k)
        key = self.k_proj(hidden_states).view(shape).transpose(1, 2)  # (rows, h_kv, 1, d_k)
        value = self.v_proj(hidden_states).view(shape).transpose(1, 2)  # (rows, h_kv, 1, d_k)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        if context.rotation is not None:
            query, key = rotate(query, context.rotation), rotate(key, context.rotation)
        key, value = self.cache.update(key, value, self.layer_idx)  # (rows, h_kv, S, d_k)
        output, _ = self.attention_function(query, key, value, context.mask)  # (rows, 1, h, d_k)
        return self.o_proj(output.reshape(hidden_states.shape))

    def attend_to_memory(self, hidden_states: torch.Tensor, context: AttentionContext) -> torch.Tensor:
        """Attend to the memory, which all beams of a sentence share; (rows, 1, d_model) to the same shape."""
        layer = self.cache.layers[self.layer_idx]
        shape = (len(layer.keys), -1, hidden_states.shape[-1] // self.head_dim, self.head_dim)
        query = self.q_proj(hidden_states).view(shape).transpose(1, 2)  # (batch, h, beams, d_k)
        if self.q_norm is not None:
            query = self.q_norm(query)
        output, _ = self.attention_function(query, layer.keys, layer.values, context.mask)  # (batch, beams, h, d_k)
        return self.o_proj(output.reshape(hidden_states.shape))


def plain_residual(residual: Residual) -> Callable[[torch.Tensor, Function], torch.Tensor]:
    """Return a function that applies a sub-layer inside the residual connection."""
    norm: Function = residual.norm.forward
    if residual.norm_first:
        return lambda x, sublayer: x + sublayer(norm(x))
    return lambda x, sublayer: norm(x + sublayer(x))


def plain_feed_forward(feed_forward: FeedForward) -> Function:
    """Return a function that applies the feed-forward network."""
    up, down = feed_forward.up_proj.forward, feed_forward.down_proj.forward
    activation = feed_forward.activation.forward
    if feed_forward.gate_proj is None:
        return lambda x: down(activation(up(x)))
    gate = feed_forward.gate_proj.forward
    return lambda x: down(activation(gate(x)) * up(x))
