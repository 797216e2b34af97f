"""Read the data of matplotlib figures."""

import torch
from matplotlib.figure import Figure


def heatmap_of(figure: Figure, place: int = 0) -> torch.Tensor:
    """The numbers of the map in the `place`-th axes."""
    return torch.tensor(figure.axes[place].images[0].get_array())
