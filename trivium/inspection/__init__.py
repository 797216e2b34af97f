"""Plots of attention, logit lens, masks, positions, embeddings and learning curves."""

import warnings
from typing import Any

from .alignment import plot_alignment
from .attention import plot_attention, plot_heads
from .curves import plot_learning_curves
from .drawing import save_figure
from .fonts import MissingFontWarning
from .lens import plot_logit_lens
from .masks import plot_masks
from .neighbors import plot_neighbors
from .positions import plot_position_products, plot_positions

__all__ = [
    "MissingFontWarning",
    "plot_alignment",
    "plot_attention",
    "plot_heads",
    "plot_learning_curves",
    "plot_logit_lens",
    "plot_masks",
    "plot_neighbors",
    "plot_position_products",
    "plot_positions",
    "save_figure",
]


def __getattr__(name: str) -> Any:
    """Return `plot_neighbors` under its deprecated name."""
    if name == "plot_neighbours":
        warnings.warn("plot_neighbours is deprecated: use plot_neighbors instead.", FutureWarning, stacklevel=2)
        return plot_neighbors
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
