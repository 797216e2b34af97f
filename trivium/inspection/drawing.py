"""Shared helpers for plots: sizes, colors, heat maps and saving."""

import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MultipleLocator

from trivium.storage.atomic import write_whole

TOKEN_INCHES = 0.24  # inches per row or column, the height of a label
WEIGHTS = "Blues"  # sequential, monotonic in lightness: readable in grayscale and with color blindness
VALUES = "cividis"  # for values of either sign; monotonic in lightness as well
# The colorblind-safe palette of Okabe and Ito, without yellow, which is too faint on paper.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = "osD^v<>P"  # distinguish series in grayscale
FORMATS = (".png", ".svg", ".pdf")
DOTS_PER_INCH = 150
MAX_PIXELS = 6e7  # maximum pixels of a PNG; rendering more takes gigabytes of memory


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure atomically, in the format of the file extension; equal figures give identical bytes.

    Args:
        figure: The figure.
        path: The output file; an existing file is replaced. A PNG has 150 dpi, reduced as needed to stay below 60
            million pixels; SVG and PDF are vector formats.

    Raises:
        FileNotFoundError: The folder of `path` does not exist.
        ValueError: The extension of `path` is not `.png`, `.svg` or `.pdf`.
    """
    path = check_picture(path)
    kind = path.suffix.lower().removeprefix(".")
    width, height = figure.get_size_inches()
    content = io.BytesIO()
    no_date = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with rc_context({"svg.hashsalt": "trivium", "pdf.fonttype": 42}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # `legible` has already issued a warning
        figure.savefig(
            content,
            format=kind,
            dpi=min(DOTS_PER_INCH, (MAX_PIXELS / (width * height)) ** 0.5),
            bbox_inches="tight",
            metadata=no_date.get(kind),
        )
    write_whole(path, content.getvalue())


def check_picture(path: str | Path) -> Path:
    """Check the path of a picture before it is drawn, and return it.

    Raises:
        FileNotFoundError: The folder of `path` does not exist.
        ValueError: The extension of `path` is not `.png`, `.svg` or `.pdf`.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"The path of the picture is {path}, but must end with one of {', '.join(FORMATS)}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"The path of the picture is {path}, but there is no folder {path.parent}: create it first."
        )
    return path


def panel_grid(
    count: int, size: tuple[float, float], legend_height: float, columns: int | None = None, **options: Any
) -> tuple[Figure, list[Axes]]:
    """Return a figure with a grid of panels, and the panels row by row.

    Args:
        count: Number of panels.
        size: Width and height of a panel, in inches.
        legend_height: Height for a legend below the panels, in inches.
        columns: Number of columns; None for one row of up to three panels, or else two rows.
        **options: Options of `Figure.subplots`.
    """
    columns = columns or (count if count <= 3 else math.ceil(count / 2))
    rows = math.ceil(count / columns)
    width, height = size
    figure = Figure(figsize=(0.5 + width * columns, height * rows + legend_height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, **options).flat
    for axes in grid[count:]:
        axes.remove()
    return figure, list(grid[:count])


def draw_map(
    axes: Axes,
    numbers: np.ndarray,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    cmap: str | Colormap,
    vmax: float | None = None,
) -> AxesImage:
    """Draw a matrix as a heat map with square cells, row labels on the left and column labels on top.

    Args:
        axes: The axes to draw in.
        numbers: The matrix, (rows, columns).
        row_labels: One label per row, such as tokens.
        column_labels: One label per column.
        cmap: The colormap, or its name.
        vmax: Upper end of the color scale, which starts at 0; None for the largest number.
    """
    image = axes.imshow(numbers, cmap=cmap, vmin=0, vmax=vmax)
    axes.set_xticks(range(len(column_labels)), column_labels, rotation=90)
    axes.set_yticks(range(len(row_labels)), row_labels)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return image


def sparse_labels(count: int) -> list[str]:
    """Return position labels for small cells, only at multiples of ten; all other labels are empty."""
    return [str(position) if position % 10 == 0 else "" for position in range(count)]


def separate_cells(axes: Axes) -> None:
    """Draw white lines between cells, so that long rows are easier to follow."""
    axes.xaxis.set_minor_locator(MultipleLocator(1, offset=-0.5))
    axes.yaxis.set_minor_locator(MultipleLocator(1, offset=-0.5))
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="minor", length=0)
