"""Positions: sinusoidal encodings (paper section 3.5), learned embeddings, rotary embeddings.

All three share the interface `(hidden_states, position_ids) -> (hidden_states, rotation)`. The first two are added to
the embedded input before the first layer; rotary positions leave it unchanged and return the rotation that every
self-attention applies to queries and keys. Sines and cosines are computed from the position ids on the fly, so
sequences can have any length. The only buffers are the frequencies of rotary positions.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update

from .configuration_trivium import TriviumConfig

Rotation = tuple[torch.Tensor, torch.Tensor]


def token_positions(
    attention_mask: torch.Tensor | None, query_length: int, past_length: int, device: torch.device
) -> torch.Tensor:
    """Return the positions of the last `query_length` tokens: real tokens count from 0, with padding on either side.

    Args:
        attention_mask: (batch, past_length + query_length), 1 for a real token. A mask of another rank does not mark
            padding; positions then ignore it.
        query_length: Number of new tokens.
        past_length: Number of cached tokens before them.
        device: Device of the result.

    Returns:
        (batch, query_length), or (1, query_length) if all sentences of the batch have the same positions.
    """
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        return (attention_mask.to(device).long().cumsum(dim=-1) - 1).clamp(min=0)[:, -query_length:]
    return (torch.arange(query_length, device=device) + past_length)[None]


def angles(position_ids: torch.Tensor, dim: int, base: float, dtype: torch.dtype) -> torch.Tensor:
    """Return the angles position / base^(2i / dim) for i = 0 .. dim/2 - 1.

    The wavelengths are a geometric progression from 2 pi to base * 2 pi (section 3.5). The angles are computed in
    `dtype`, but at least in float32: half precision cannot distinguish large positions.

    Returns:
        (..., dim / 2) for position ids of shape (...).
    """
    dtype = torch.promote_types(dtype, torch.float32)
    exponents = torch.arange(0, dim, 2, device=position_ids.device, dtype=dtype) / dim
    return position_ids[..., None].to(dtype) * base**-exponents


def sinusoidal_encoding(position_ids: torch.Tensor, d_model: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Compute the positional encoding PE (section 3.5).

    PE(pos, 2i) = sin(pos / 10000^(2i/d_model)), PE(pos, 2i+1) = cos(pos / 10000^(2i/d_model)).

    Returns:
        (..., d_model) for position ids of shape (...).
    """
    angle = angles(position_ids, d_model, 10000.0, dtype)
    pairs = torch.stack((angle.sin(), angle.cos()), dim=-1)  # (..., d_model / 2, 2)
    return pairs.flatten(-2).to(dtype)  # (..., d_model)


class SinusoidalPositions(nn.Module):
    """Sinusoidal positional encoding (section 3.5), without parameters."""

    def __init__(self, config: TriviumConfig) -> None:
        super().__init__()

    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, Rotation | None]:
        """Add the encodings of `position_ids`, (batch or 1, length), to (batch, length, d_model) hidden states."""
        return hidden_states + sinusoidal_encoding(position_ids, hidden_states.shape[-1], hidden_states.dtype), None


class LearnedPositions(nn.Module):
    """Learned positional embeddings, on par with sinusoids in the paper (Table 3, row E), up to the trained length."""

    def __init__(self, config: TriviumConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.max_position_embeddings, config.d_model)

    def check_length(self, length: int) -> None:
        """Check that a sequence of `length` tokens fits into `max_position_embeddings`.

        `forward` checks long inputs only. Generation calls this method with the length of cache and input, because
        reading the maximum of the position ids at every step would synchronize with the device.

        Raises:
            ValueError: The sequence is longer.
        """
        if length > self.embedding.num_embeddings:
            raise ValueError(
                f"The sequence has {length} tokens, but learned positions end at max_position_embeddings="
                f"{self.embedding.num_embeddings}. Truncate it, or use sinusoidal or rotary positions."
            )

    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, Rotation | None]:
        """Add the embeddings of `position_ids`, (batch or 1, length), to (batch, length, d_model) hidden states.

        Raises:
            ValueError: A position is not below `max_position_embeddings`. Packed sequences, whose positions restart,
                may be longer.
        """
        # Neither compiled code nor a CUDA graph under capture can read a tensor value.
        is_captured = position_ids.is_cuda and torch.cuda.is_current_stream_capturing()
        is_traced = torch.compiler.is_compiling() or is_captured
        if not is_traced and position_ids.shape[-1] > self.embedding.num_embeddings:
            self.check_length(int(position_ids.max()) + 1)
        return hidden_states + self.embedding(position_ids), None


class RotaryEmbedding(nn.Module):
    """Sines and cosines of rotary positions, with transformers' frequencies for every `rope_type`.

    The frequencies are non-persistent buffers. They are recomputed when the module is moved or cast, since half
    precision could not distinguish large positions.
    """

    inv_freq: torch.Tensor
    original_inv_freq: torch.Tensor

    def __init__(self, config: TriviumConfig) -> None:
        super().__init__()
        self.config = config
        # `dynamic_rope_update` reads attributes of these names.
        self.rope_type = config.rope_type
        self.max_seq_len_cached = self.original_max_seq_len = config.max_position_embeddings
        self.register_frequencies(torch.empty(0))

    def register_frequencies(self, like: torch.Tensor) -> None:
        """Compute the frequencies on the device of `like` and in its dtype, but at least in float32."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        if self.rope_type == "default":
            first_position = torch.ones((), device=like.device)
            inv_freq = angles(first_position, self.config.head_dim, self.config.rope_theta, dtype)
            self.attention_scaling = 1.0
        else:
            inv_freq, self.attention_scaling = ROPE_INIT_FUNCTIONS[self.rope_type](self.config, like.device)
        self.max_seq_len_cached = self.original_max_seq_len
        self.register_buffer("inv_freq", inv_freq.to(dtype), persistent=False)
        self.register_buffer("original_inv_freq", self.inv_freq.clone(), persistent=False)

    def _apply(self, fn: Callable, recurse: bool = True) -> "RotaryEmbedding":
        super()._apply(fn, recurse)
        self.register_frequencies(self.inv_freq)
        return self

    @dynamic_rope_update
    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> Rotation:
        """Return (cos, sin), each (batch or 1, length, head_dim), in the dtype of the hidden states."""
        dtype = torch.promote_types(hidden_states.dtype, torch.float32)
        angle = position_ids[..., None].to(dtype) * self.inv_freq.to(position_ids.device, dtype)
        angle = torch.cat((angle, angle), dim=-1)  # dimensions i and i + head_dim/2 form a pair and share an angle
        cos, sin = angle.cos() * self.attention_scaling, angle.sin() * self.attention_scaling
        return cos.to(hidden_states.dtype), sin.to(hidden_states.dtype)


class RotaryPositions(nn.Module):
    """Rotary position embeddings: queries and keys are rotated by their position (RoPE, Su et al. 2021).

    The product of a query and a key then depends on their distance, not on their absolute positions.
    """

    def __init__(self, config: TriviumConfig) -> None:
        super().__init__()
        self.rotary_emb = RotaryEmbedding(config)

    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, Rotation | None]:
        """Return the hidden states unchanged, and (cos, sin), each (batch or 1, 1, length, head_dim)."""
        cos, sin = self.rotary_emb(hidden_states, position_ids)
        return hidden_states, (cos[:, None], sin[:, None])


def rotate(states: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Rotate each pair of dimensions of `states`, (batch, heads, length, head_dim), by the angle of its position."""
    cos, sin = rotation
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin


POSITIONS: dict[str, type[nn.Module]] = {
    "sinusoidal": SinusoidalPositions,
    "learned": LearnedPositions,
    "rotary": RotaryPositions,
}
