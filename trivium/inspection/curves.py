"""Plot learning curves: losses, metrics and the learning rate over steps."""

import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from trivium.storage.checkpoints import STATE_FILE, checkpoints_of

from .drawing import MARKERS, SERIES, panel_grid
from .fonts import legible

TRAINING, RATE, VALIDATION = "loss", "learning_rate", "eval_"  # keys, and a key prefix, of the Trainer's log
TIMING_SUFFIXES = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
DASHES = ("-", "--", "-.", ":")  # by run

Log = list[dict[str, Any]]


def plot_learning_curves(*runs: str | Path) -> Figure:
    """Draw losses, validation metrics and learning rate of one or more runs, with one panel per quantity.

    Args:
        *runs: Folders of finished or unfinished runs. If a folder has no `trainer_state.json`, that of its last
            checkpoint is used.

    Returns:
        The figure.

    Raises:
        FileNotFoundError: Neither a folder nor its checkpoints have a `trainer_state.json`.
        ValueError: `runs` is empty, a `trainer_state.json` is invalid, or no loss was logged.
    """
    if not runs:
        raise ValueError("runs is empty, but must name at least one folder.")
    logs = [_log_of(Path(run)) for run in runs]
    names = sorted({name for log in logs for entry in log for name in entry if name.startswith(VALIDATION)})
    losses = [name for name in names if name.endswith(TRAINING)]
    metrics = [name for name in names if name not in losses and not name.endswith(TIMING_SUFFIXES)]
    panels = {"loss": [TRAINING, *losses], **{name.removeprefix(VALIDATION): [name] for name in metrics}}
    if any(RATE in entry for log in logs for entry in log):
        panels["learning rate"] = [RATE]
    labels = [Path(run).resolve().name for run in runs]
    if len(set(labels)) < len(runs):
        labels = list(map(str, runs))
    with legible(labels):
        figure, grid = panel_grid(len(panels), (3.4, 2.8), 0.4 + 0.2 * len(runs), sharex=True)
        for axes, (title, keys) in zip(grid, panels.items(), strict=True):
            for number, log in enumerate(logs):
                for name in keys:
                    axes.plot(*_curve(log, name), **_style(number, name))
            _finish(axes, title)
        if losses:
            kinds = {TRAINING: "training", losses[0]: "validation"}
            handles = [
                Line2D([], [], label=label, **{**_style(0, name), "color": "black"}) for name, label in kinds.items()
            ]
            grid[0].legend(handles=handles, frameon=False)
        handles = [Line2D([], [], label=label, **_style(number, RATE)) for number, label in enumerate(labels)]
        figure.legend(handles=handles, loc="outside lower center", frameon=False)
    return figure


def _log_of(run: Path) -> Log:
    """Read the log entries of a run that have a step."""
    folder = run if (run / STATE_FILE).is_file() else next(reversed(checkpoints_of(run)), run)
    path = folder / STATE_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{run} has no {STATE_FILE}: name the folder of a run that has saved a checkpoint.")
    try:
        log = json.loads(path.read_text(encoding="utf-8"))["log_history"]
        log = [entry for entry in log if "step" in entry]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is not a valid state of a Trainer: {error!r}.") from error
    if not any(TRAINING in entry or f"{VALIDATION}{TRAINING}" in entry for entry in log):
        raise ValueError(f"{path} has no loss: wait until the run has logged one.")
    return log


def _curve(log: Log, name: str) -> tuple[list[float], list[float]]:
    """Return the steps and the logged values of a quantity."""
    points = [(entry["step"], entry[name]) for entry in log if name in entry]
    return [step for step, _ in points], [number for _, number in points]


def _style(number: int, name: str) -> dict[str, Any]:
    """Return the line style of a run, by its index; quantities logged at evaluations have markers."""
    style = {"color": SERIES[number % len(SERIES)], "linestyle": DASHES[number % len(DASHES)], "linewidth": 1.5}
    if name.startswith(VALIDATION):
        style |= {"marker": MARKERS[number % len(MARKERS)], "markersize": 4}
    elif name == TRAINING:
        style |= {"alpha": 0.6, "linewidth": 1.0}
    return style


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.tick_params("x", labelbottom=True)  # sharex hides them above other panels
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
