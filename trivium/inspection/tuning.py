"""Plot a search for the settings of a recipe: its history, and the metric against each searched field."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .drawing import SERIES, panel_grid

OTHER_COLUMNS = ("trial", "state", "value", "seconds", "reason")
LOG_RATIO = 20  # bounds of positive values with at least this ratio are drawn on a logarithmic axis


def plot_trials(rows: Sequence[dict[str, Any]], metric: str, direction: str) -> Figure:
    """Draw the metric of each trial with the best one so far, and one scatter plot for each searched field.

    Args:
        rows: The trials, as in `trivium.training.tuning.Search.trials`; those without a value are left out.
        metric: Name of the metric.
        direction: "minimize" or "maximize".

    Returns:
        The figure.
    """
    rows = [row for row in rows if row["value"] is not None and math.isfinite(row["value"])]
    fields = list(dict.fromkeys(name for row in rows for name in row if name not in OTHER_COLUMNS))
    figure, (history, *grid) = panel_grid(len(fields) + 1, (3.4, 2.8), 0.4, columns=min(3, len(fields) + 1))
    _scatter(history, rows, "trial")
    completed = [row for row in rows if row["state"] == "complete"]
    better = min if direction == "minimize" else max
    best = [better(row["value"] for row in completed[: end + 1]) for end in range(len(completed))]
    history.step([row["trial"] for row in completed], best, where="post", color="black", label="best so far")
    history.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    history.set_ylabel(metric)
    for axes, name in zip(grid, fields, strict=True):
        _scatter(axes, rows, name)
    figure.legend(*history.get_legend_handles_labels(), loc="outside lower center", frameon=False, ncols=3)
    return figure


def _scatter(axes: Axes, rows: Sequence[dict[str, Any]], name: str) -> None:
    """Draw the metric against a column of the table; pruned trials have another marker."""
    values = [row[name] for row in rows if name in row]
    places = {
        value: place for place, value in enumerate(sorted({v for v in values if isinstance(v, str)}, key=_order))
    }
    for state, marker, color in (("complete", "o", SERIES[0]), ("pruned", "x", SERIES[1])):
        points = [(row[name], row["value"]) for row in rows if name in row and row["state"] == state]
        across = [places.get(value, value) if isinstance(value, str) else value for value, _ in points]
        if points:
            axes.scatter(across, [value for _, value in points], marker=marker, color=color, s=22, label=state)
    if places:
        axes.set_xticks(list(places.values()), list(places), rotation=30 if len("".join(places)) > 30 else 0)
        axes.set_xlim(-0.5, len(places) - 0.5)
    elif all(isinstance(value, float) and value > 0 for value in values) and max(values) > LOG_RATIO * min(values):
        axes.set_xscale("log")
    axes.set_xlabel(name)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)


def _order(text: str) -> tuple[bool, float, str]:
    """Sort numbers by value, before other texts."""
    try:
        return False, float(text), text
    except ValueError:
        return True, 0.0, text
