"""Unpadding: run a stack on the real tokens of a padded batch only.

Projections, feed-forward networks and normalization are position-wise; only attention needs to know which tokens share
a sequence. So a stack can work on unpadded hidden states, (tokens, d_model) instead of (batch, length, d_model), and
pad them again inside attention.
"""

from __future__ import annotations

import torch


class RealTokens:
    """Positions of the real tokens in a padded batch.

    Args:
        mask: (batch, length), nonzero for a real token.
    """

    def __init__(self, mask: torch.Tensor) -> None:
        self.mask = mask != 0
        self.indices = self.mask.flatten().nonzero().squeeze(1)

    @classmethod
    def from_mask(cls, states: torch.Tensor, mask: torch.Tensor | None) -> RealTokens | None:
        """Return the real tokens of `states`, (batch, length, d_model).

        The result is None if there is no padding, or if the shape of `mask` is not (batch, length), as for a 4D mask
        or a mask that covers a cache.
        """
        if mask is None or mask.shape != states.shape[:2]:
            return None
        tokens = cls(mask)
        return tokens if len(tokens.indices) < mask.numel() else None

    @property
    def is_right_padded(self) -> bool:
        """Return True if all padding is on the right."""
        return not (self.mask[:, 1:] > self.mask[:, :-1]).any()

    def unpad(self, states: torch.Tensor) -> torch.Tensor:
        """Select the real tokens, (tokens, d_model), of padded states, (batch, length, d_model)."""
        states = states.flatten(0, 1)  # (batch * length, d_model)
        return states.index_select(0, self.indices.to(states.device))

    def pad(self, states: torch.Tensor) -> torch.Tensor:
        """Scatter real tokens, (tokens, d_model), to padded states, (batch, length, d_model); padding is zero."""
        padded = states.new_zeros(self.mask.numel(), states.shape[-1])  # (batch * length, d_model)
        # `index_copy` would save `states` for the backward pass; `index_put_` does not.
        padded = padded.index_put_((self.indices.to(states.device),), states)
        return padded.unflatten(0, self.mask.shape)  # (batch, length, d_model)
