"""Plot the ratios written by a benchmark as a grid of panels that fits the page width.

python benchmarks/draw.py benchmarks/results/training.json docs/pictures/training-step.png
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trivium.inspection.drawing import MARKERS, SERIES, save_figure

WIDTH = 7.5  # inches; shown 700 to 800 pixels wide, where 9 points are about 12 pixels
ROW_HEIGHT, PANEL_MARGIN = 0.3, 0.75  # inches
TICKS = (0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8, 10)


def draw_ratios(ratios: list[dict[str, Any]], title: str, target: float) -> Figure:
    """Plot ratios as medians with quartiles, with one panel per `panel` and one line per `row`.

    Args:
        ratios: Entries with `panel`, `row`, `series`, `median`, `lower` and `upper`.
        title: Title of the figure.
        target: Position of the dashed line.
    """
    panels = list(dict.fromkeys(entry["panel"] for entry in ratios))
    series = list(dict.fromkeys(entry["series"] for entry in ratios))
    columns = min(len(panels), 2)
    lines = math.ceil(len(panels) / columns)
    rows = max(len({entry["row"] for entry in ratios if entry["panel"] == panel}) for panel in panels)
    with rc_context({"font.size": 9, "axes.titlesize": 10}):
        size = (WIDTH, 1.0 + lines * (PANEL_MARGIN + ROW_HEIGHT * rows))
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(lines, columns, sharex=True, squeeze=False)
        for axes, panel in zip(grid.flat, panels, strict=False):
            _draw_panel(axes, [entry for entry in ratios if entry["panel"] == panel], series)
            axes.axvline(target, color="gray", linewidth=1, linestyle="--", label=f"target, {target:g}")
            axes.set_title(panel)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        least, most = grid[0, 0].get_xlim()
        ticks = [tick for tick in TICKS if least <= tick <= most]
        grid[0, 0].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        figure.suptitle(title, fontsize=11)
        handles = {
            label: handle
            for axes in grid.flat
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw_panel(axes: Axes, ratios: list[dict[str, Any]], series: list[str]) -> None:
    rows = list(dict.fromkeys(entry["row"] for entry in ratios))
    present = [name for name in series if any(entry["series"] == name for entry in ratios)]
    for place, name in enumerate(present):
        entries = [entry for entry in ratios if entry["series"] == name]
        medians = np.array([entry["median"] for entry in entries])
        errors = np.abs([[entry[end] for entry in entries] for end in ("lower", "upper")] - medians)
        heights = np.array([rows.index(entry["row"]) for entry in entries], dtype=float)
        heights += 0.16 * (place - (len(present) - 1) / 2)
        number = series.index(name)
        color, marker = SERIES[number % len(SERIES)], MARKERS[number % len(MARKERS)]
        axes.errorbar(medians, heights, xerr=errors, fmt=marker, color=color, markersize=5, label=name)
    axes.axvline(1, color="black", linewidth=1)
    axes.set(yticks=range(len(rows)), yticklabels=rows, xscale="log", ylim=(len(rows) - 0.5, -0.5))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.tick_params(axis="x", labelbottom=True)


def main() -> None:
    """Draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="JSON that a benchmark wrote with --results")
    parser.add_argument("picture", type=Path, help="image to write")
    options = parser.parse_args()
    save_figure(draw_ratios(**json.loads(options.results.read_text(encoding="utf-8"))), options.picture)


if __name__ == "__main__":
    main()
