"""What the pictures share: their sizes, maps of numbers between tokens, and files."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MultipleLocator

from trivium.storage.atomic import write_whole

TOKEN_INCHES = 0.24  # a row or a column: as high as its label
WEIGHTS = "Blues"  # from nothing to much: the darker the more, on screen, in grey print and to the colour-blind
VALUES = "cividis"  # of either sign: it gets lighter all the way, too
# Okabe and Ito's colours, which the colour-blind can tell apart, without the yellow, which paper swallows.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = "osD^v<>P"  # with them, what is told apart by a colour is told apart in grey print, too
FORMATS = (".png", ".svg", ".pdf")
DOTS_PER_INCH = 150
MOST_PIXELS = 6e7  # of a PNG: more needs gigabytes to draw


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure whole or not at all, as what the name ends with; the same figure gives the same bytes.

    Args:
        figure: What to write.
        path: Where to; a file of that name is replaced. A PNG has 150 dots per inch, or so many fewer that it stays
            below 60 million pixels; SVG and PDF are sharp at any size.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: The name ends with none of `.png`, `.svg` and `.pdf`.
    """
    path = check_picture(path)
    kind = path.suffix.lower().removeprefix(".")
    width, height = figure.get_size_inches()
    content = io.BytesIO()
    no_date = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with rc_context({"svg.hashsalt": "trivium", "pdf.fonttype": 42}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # `legible` has said it, once
        figure.savefig(
            content,
            format=kind,
            dpi=min(DOTS_PER_INCH, (MOST_PIXELS / (width * height)) ** 0.5),
            bbox_inches="tight",
            metadata=no_date.get(kind),
        )
    write_whole(path, content.getvalue())


def check_picture(path: str | Path) -> Path:
    """The path of a picture that can be written, before it is drawn.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: The name ends with none of `.png`, `.svg` and `.pdf`.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"The picture is to be {path}, but its name must end with one of {', '.join(FORMATS)}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"The picture is to be {path}, but there is no folder {path.parent}.")
    return path


def draw_map(
    axes: Axes,
    numbers: np.ndarray,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    cmap: str | Colormap,
    vmax: float | None = None,
) -> AxesImage:
    """Draw (rows, columns) numbers as squares, with a label for each row on the left and for each column above.

    Args:
        axes: Where to.
        numbers: (rows, columns).
        row_labels: As many as rows, such as tokens.
        column_labels: As many as columns.
        cmap: The colours, or their name.
        vmax: What the last colour stands for, the first being 0; None: the largest number.
    """
    image = axes.imshow(numbers, cmap=cmap, vmin=0, vmax=vmax)
    axes.set_xticks(range(len(column_labels)), column_labels, rotation=90)
    axes.set_yticks(range(len(row_labels)), row_labels)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return image


def count_by_tens(count: int) -> list[str]:
    """Labels where there is no room for one at each place: "0", nine empty ones, "10" and so on."""
    return [str(place) if place % 10 == 0 else "" for place in range(count)]


def separate_cells(axes: Axes) -> None:
    """White lines between the cells, which guide the eye along a long row."""
    axes.xaxis.set_minor_locator(MultipleLocator(1, offset=-0.5))
    axes.yaxis.set_minor_locator(MultipleLocator(1, offset=-0.5))
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="minor", length=0)
