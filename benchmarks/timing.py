"""Timing side by side: in rounds, of which each has all, so that what else the machine does takes from all alike."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from matplotlib.figure import Figure

from trivium.inspection.drawing import MARKERS, SERIES, save_figure


@dataclass(frozen=True)
class Ratio:
    """How many times longer one thing takes than another: median of the rounds, and their quartiles."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, seconds: Sequence[float], reference: Sequence[float]) -> Self:
        """Compare round by round."""
        lower, median, upper = np.quantile(np.array(seconds) / np.array(reference), [0.25, 0.5, 0.75])
        return cls(float(median), float(lower), float(upper))

    @property
    def spread(self) -> str:
        """The quartiles, as text."""
        return f"{self.lower:.2f} - {self.upper:.2f}"


def interleaved(
    candidates: Mapping[str, Callable[[int], object]], seconds: float, not_timed: int = 1, fewest: int = 5
) -> dict[str, list[float]]:
    """Call each candidate with the number of the round, round after round, each round beginning with another one.

    Args:
        candidates: What to time, by name.
        seconds: When no new round begins.
        not_timed: Rounds before, in which caches fill.
        fewest: Rounds, however long they take.

    Returns:
        For each candidate the seconds of each round.
    """
    names = list(candidates)
    taken: dict[str, list[float]] = {name: [] for name in names}
    start, turn = time.perf_counter(), 0
    while turn < not_timed + fewest or time.perf_counter() - start < seconds:
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            since = time.perf_counter()
            candidates[name](turn)
            if turn >= not_timed:
                taken[name].append(time.perf_counter() - since)
        turn += 1
    return taken


def surroundings() -> str:
    """What figures depend on, beside what was measured."""
    return (
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"OMP_WAIT_POLICY {os.environ.get('OMP_WAIT_POLICY', 'not set')}, "
        f"load of the machine {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores"
    )


def draw_ratios(ratios: Mapping[tuple[str, str], Ratio], title: str, path: Path, target: float | None = None) -> None:
    """Draw ratios, by (what was done, who did it), as points with their quartiles; ours stands at 1.

    Args:
        ratios: What to draw.
        title: What the ratios are of.
        path: Picture to write.
        target: Where a line shows what we aim at.
    """
    tasks = list(dict.fromkeys(task for task, _ in ratios))
    models = list(dict.fromkeys(model for _, model in ratios))
    figure = Figure(figsize=(9, 1 + 0.5 * len(tasks)), layout="constrained")
    axes = figure.subplots()
    for place, model in enumerate(models):
        rows = [row for row, task in enumerate(tasks) if (task, model) in ratios]
        of_model = [ratios[tasks[row], model] for row in rows]
        medians = np.array([ratio.median for ratio in of_model])
        errors = np.abs([[ratio.lower for ratio in of_model], [ratio.upper for ratio in of_model]] - medians)
        height = np.array(rows) + 0.08 * (place - (len(models) - 1) / 2)
        style = {"color": SERIES[place % len(SERIES)], "fmt": MARKERS[place % len(MARKERS)], "markersize": 5}
        axes.errorbar(medians, height, xerr=errors, label=model, **style)
    axes.axvline(1, color="black", linewidth=1)
    if target is not None:
        axes.axvline(target, color="gray", linewidth=1, linestyle="--", label=f"our aim, {target}")
    axes.set(title=title, yticks=range(len(tasks)), yticklabels=tasks, xscale="log", ylim=(len(tasks) - 0.5, -0.5))
    least, most = axes.get_xlim()
    shown = [tick for tick in (0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8, 10) if least <= tick <= most]
    axes.set_xticks(shown, [f"{tick:g}" for tick in shown])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.tick_params(axis="y", labelsize=8)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    save_figure(figure, path)
