"""Plot the data of a recipe: lengths of the texts, both sides of pairs, and dropped rows."""

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .drawing import SERIES, WEIGHTS, panel_grid
from .fonts import legible

if TYPE_CHECKING:
    from trivium.training import DataReport

MAX_BINS = 40
MAX_LABELS = 12  # maximum number of labels that get their own bar


def plot_data(report: "DataReport") -> Figure:
    """Plot text lengths by split, source against target lengths, label counts and dropped rows.

    Args:
        report: Report of `trivium.training.report_data`.

    Returns:
        The figure, with one panel for each text column, and one panel each for pair lengths, labels and dropped rows
        if the report contains them.
    """
    train = report.splits["train"]
    panels: list[Callable[[Axes], None]] = [partial(_draw_lengths, report, name) for name in train.lengths]
    if {"source", "target"} <= set(train.lengths):
        panels.append(partial(_draw_pairs, report))
    labels = dict(train.labels.most_common(MAX_LABELS))
    if labels:
        panels.append(partial(_draw_counts, "training rows by label", labels))
    dropped = {f"{split}: {reason}": n for split, part in report.splits.items() for reason, n in part.dropped.items()}
    if dropped:
        panels.append(partial(_draw_counts, "dropped rows", dropped))
    with legible(labels):
        figure, grid = panel_grid(len(panels), (3.6, 2.9), 0.2)
        for axes, draw in zip(grid, panels, strict=True):
            draw(axes)
    return figure


def _draw_lengths(report: "DataReport", name: str, axes: Axes) -> None:
    """Plot a histogram of the number of tokens in the texts of a column, with one line per split."""
    longest = max(max(part.lengths.get(name) or [1]) for part in report.splits.values())
    bins = _bins(longest)
    for color, (split, part) in zip(SERIES, report.splits.items(), strict=False):
        lengths = part.lengths.get(name, [])
        weights = np.full(len(lengths), 100 / max(1, len(lengths)))
        axes.hist(lengths, bins, weights=weights, histtype="step", color=color, label=split, linewidth=1.5)
    if report.max_length is not None and report.max_length <= longest:
        axes.axvline(report.max_length, color="black", linestyle=":", label="limit")
    axes.set(title=name, xlabel="tokens", ylabel="texts, %")
    axes.legend(frameon=False)
    _finish(axes)


def _draw_pairs(report: "DataReport", axes: Axes) -> None:
    """Plot a 2D histogram of source and target lengths of training pairs, with a diagonal at equal lengths."""
    lengths = report.splits["train"].lengths
    longest = max(max(lengths["source"]), max(lengths["target"]))
    bins = _bins(longest)
    axes.hist2d(lengths["source"], lengths["target"], bins=[bins, bins], cmap=WEIGHTS, norm="log")
    axes.axline((0, 0), slope=1, color="black", linewidth=0.8, linestyle=":")
    axes.set(title="training pairs", xlabel="source tokens", ylabel="target tokens")
    _finish(axes)


def _draw_counts(title: str, counts: dict[str, int], axes: Axes) -> None:
    """Plot a horizontal bar for each count, with the first at the top."""
    names = list(counts)[::-1]
    bars = axes.barh(names, [counts[name] for name in names], color=SERIES[0])
    axes.bar_label(bars, [f"{counts[name]:,}" for name in names], padding=2, fontsize="small")
    axes.set(title=title, xlabel="rows")
    axes.margins(x=0.2)
    _finish(axes)


def _bins(longest: int) -> list[float]:
    """Return the edges of histogram bins that all span the same whole number of tokens."""
    width = math.ceil((longest + 1) / MAX_BINS)
    return [float(edge) for edge in range(0, longest + 1 + width, width)]


def _finish(axes: Axes) -> None:
    axes.title.set_fontsize("medium")
    axes.spines[["top", "right"]].set_visible(False)
