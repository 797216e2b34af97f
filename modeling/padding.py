"""Padding, which makes the rows of a batch equally long, and how to work without it.

Most of a Transformer treats every token alike, wherever it stands: projections, feed-forward, normalisation. Only
attention needs to know which tokens stand in one row. So a stack can work on real tokens alone, (tokens, d_model)
instead of (batch, length, d_model), and give attention the rows that it needs.
"""

from __future__ import annotations

import torch


class RealTokens:
    """The real tokens of a padded batch.

    Args:
        mask: (batch, length), not 0 for a real token.
    """

    def __init__(self, mask: torch.Tensor) -> None:
        self.mask = mask != 0
        self.indices = self.mask.flatten().nonzero().squeeze(1)

    @classmethod
    def of_padded(cls, states: torch.Tensor, mask: torch.Tensor | None) -> RealTokens | None:
        """Those among (batch, length, d_model) `states`; None without padding, or if the mask is of more or others."""
        if mask is None or mask.shape != states.shape[:2]:
            return None
        tokens = cls(mask)
        return tokens if len(tokens.indices) < mask.numel() else None

    @property
    def come_first(self) -> bool:
        """Whether all padding is at the ends of the rows."""
        return not (self.mask[:, 1:] > self.mask[:, :-1]).any()

    def pick(self, states: torch.Tensor) -> torch.Tensor:
        """Take the real tokens, (tokens, d_model), out of rows, (batch, length, d_model)."""
        states = states.flatten(0, 1)  # (batch * length, d_model)
        return states.index_select(0, self.indices.to(states.device))

    def place(self, states: torch.Tensor) -> torch.Tensor:
        """Put (tokens, d_model) back where they stand in rows, (batch, length, d_model), and zeros in padding."""
        rows = states.new_zeros(self.mask.numel(), states.shape[-1])  # (batch * length, d_model)
        # Not `index_copy`, which would keep `states` for the backward pass.
        rows = rows.index_put_((self.indices.to(states.device),), states)
        return rows.unflatten(0, self.mask.shape)  # (batch, length, d_model)
