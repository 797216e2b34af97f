"""Where a token stands: sinusoidal encodings (paper section 3.5), learned embeddings, rotations.

All three are called alike, `(hidden_states, position_ids) -> (hidden_states, rotation)`: the first two add to the
hidden states, once, below the first layer; the third leaves them alone and gives the rotation that every
self-attention applies to its queries and keys. Nothing is kept in buffers: sines and cosines are computed from the
position ids when they are needed, so there is no longest sequence and nothing that loading could leave unset.
"""

import torch
from torch import nn

from .configuration_trivium import TriviumConfig

Rotation = tuple[torch.Tensor, torch.Tensor]


def token_positions(
    attention_mask: torch.Tensor | None, query_length: int, past_length: int, device: torch.device
) -> torch.Tensor:
    """Positions of the last `query_length` tokens: real tokens count from 0, whichever side the padding is on.

    Args:
        attention_mask: (batch, past_length + query_length), 1 for a real token; anything else than two dimensions
            says nothing about single tokens, then positions just count up.
        query_length: Tokens that are asked for.
        past_length: Tokens before them, whose keys and values are cached.
        device: Where the answer is wanted.

    Returns:
        (batch, query_length), or (1, query_length) if it is the same for every sentence of the batch.
    """
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        return (attention_mask.to(device).long().cumsum(dim=-1) - 1).clamp(min=0)[:, -query_length:]
    return (torch.arange(query_length, device=device) + past_length)[None]


def angles(position_ids: torch.Tensor, dim: int, base: float, dtype: torch.dtype) -> torch.Tensor:
    """Angles position / base^(2i / dim), i = 0 .. dim/2 - 1: wavelengths from 2 pi to base * 2 pi, in geometric steps.

    Computed in `dtype`, but at least in float32: half precision cannot tell large positions apart.

    Returns:
        (..., dim / 2) for position ids of shape (...).
    """
    dtype = torch.promote_types(dtype, torch.float32)
    exponents = torch.arange(0, dim, 2, device=position_ids.device, dtype=dtype) / dim
    return position_ids[..., None].to(dtype) * base**-exponents


def sinusoidal_encoding(position_ids: torch.Tensor, d_model: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """PE(pos, 2i) = sin(pos / 10000^(2i/d_model)), PE(pos, 2i+1) = cos(the same) (section 3.5).

    Returns:
        (..., d_model) for position ids of shape (...).
    """
    angle = angles(position_ids, d_model, 10000.0, dtype)
    pairs = torch.stack((angle.sin(), angle.cos()), dim=-1)  # (..., d_model / 2, 2)
    return pairs.flatten(-2).to(dtype)  # (..., d_model)


class SinusoidalPositions(nn.Module):
    """Adds the paper's sinusoids; nothing is learned."""

    def __init__(self, config: TriviumConfig) -> None:
        super().__init__()

    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, Rotation | None]:
        """Add to (batch, length, d_model) the encodings of `position_ids`, (batch or 1, length)."""
        return hidden_states + sinusoidal_encoding(position_ids, hidden_states.shape[-1], hidden_states.dtype), None


class LearnedPositions(nn.Module):
    """Adds a trained vector per position; the paper found it as good (Table 3, row E), within the trained length."""

    def __init__(self, config: TriviumConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.max_position_embeddings, config.d_model)

    def check_length(self, length: int) -> None:
        """Refuse a sequence that is longer than `max_position_embeddings`, before an index is out of range.

        Generation asks for itself, for what a cache holds cannot be seen from the position ids of one step without
        waiting for the device.

        Raises:
            ValueError: It is longer.
        """
        if length > self.embedding.num_embeddings:
            raise ValueError(
                f"The sequence has {length} tokens, but learned positions end at max_position_embeddings="
                f"{self.embedding.num_embeddings}: truncate it, or use sinusoidal or rotary positions."
            )

    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, Rotation | None]:
        """Add to (batch, length, d_model) the embeddings of `position_ids`, (batch or 1, length).

        Raises:
            ValueError: The sequence is longer than `max_position_embeddings`; one that is packed of several, with
                positions that restart, may be.
        """
        if position_ids.shape[-1] > self.embedding.num_embeddings and not torch.compiler.is_compiling():
            self.check_length(int(position_ids.max()) + 1)
        return hidden_states + self.embedding(position_ids), None


class RotaryPositions(nn.Module):
    """Rotates queries and keys by their position, so that their product depends on the distance (Su et al. 2021)."""

    def __init__(self, config: TriviumConfig) -> None:
        super().__init__()
        self.head_dim, self.base = config.head_dim, config.rope_theta

    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, Rotation | None]:
        """Leave the hidden states alone and give (cos, sin), each (batch or 1, 1, length, head_dim)."""
        angle = angles(position_ids, self.head_dim, self.base, hidden_states.dtype)
        # The dimensions i and i + head_dim/2 form a pair.
        angle = torch.cat((angle, angle), dim=-1)[:, None]  # (batch or 1, 1, length, head_dim)
        return hidden_states, (angle.cos().to(hidden_states.dtype), angle.sin().to(hidden_states.dtype))


def rotate(states: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Turn each pair of dimensions of `states`, (batch, heads, length, head_dim), by the angle of its position."""
    cos, sin = rotation
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin


POSITIONS: dict[str, type[nn.Module]] = {
    "sinusoidal": SinusoidalPositions,
    "learned": LearnedPositions,
    "rotary": RotaryPositions,
}
