"""Looking into a model: what it does, as pictures."""

from .attention import plot_attention

__all__ = ["plot_attention"]
