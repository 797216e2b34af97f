"""Plots of attention, logit lens, masks, positions, embeddings and learning curves."""

from .alignment import plot_alignment
from .attention import plot_attention, plot_heads
from .curves import plot_learning_curves
from .drawing import save_figure
from .fonts import MissingFontWarning
from .lens import plot_logit_lens
from .masks import plot_masks
from .neighbours import plot_neighbours
from .positions import plot_position_products, plot_positions

__all__ = [
    "MissingFontWarning",
    "plot_alignment",
    "plot_attention",
    "plot_heads",
    "plot_learning_curves",
    "plot_logit_lens",
    "plot_masks",
    "plot_neighbours",
    "plot_position_products",
    "plot_positions",
    "save_figure",
]
