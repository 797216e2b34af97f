"""Measure startup time: importing the package, showing command-line help, and loading a checkpoint.

    OMP_NUM_THREADS=1 python benchmarks/startup.py

In every round, each command runs in a separate process, or each model is loaded from a folder in this process, in
rotating order. The benchmark reports medians over the rounds: CPU seconds, which are less affected by other processes,
wall-clock seconds, and the ratio of CPU time to that of the first entry of the group, with quartiles.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import transformers
from matplotlib.figure import Figure
from peers import SHAPES, WAYS
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timing import Ratio
from transformers import PreTrainedModel

from trivium.inspection.drawing import save_figure

VOCABULARY = 10_000
# Each group is compared with its first entry.
COMMANDS = {
    "Python": ["pass"],
    "the package": [
        "from transformers import MarianMTModel",
        "from transformers import AutoModelForSeq2SeqLM",
        "import transformers",
        "import trivium",
    ],
    "the command line": ["trivium --help", "trivium train --help", "trivium --version"],
}
Times = dict[str, list[tuple[float, float]]]


def cpu_seconds() -> float:
    """Return user and system time of this process and its finished child processes."""
    usages = (resource.getrusage(scope) for scope in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def interleaved(candidates: dict[str, Callable[[], object]], rounds: int, title: str) -> Times:
    """Return CPU and wall-clock seconds of each candidate in each round, after one warm-up round."""
    names = list(candidates)
    taken: Times = {name: [] for name in names}
    for turn in track(range(rounds + 1), title, console=Console(stderr=True)):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            cpu, clock = cpu_seconds(), time.perf_counter()
            candidates[name]()
            if turn:
                taken[name].append((cpu_seconds() - cpu, time.perf_counter() - clock))
    return taken


def process_of(command: str) -> Callable[[], object]:
    """Return a function that runs Python code, or a `trivium` command, in a new process."""
    program, *arguments = command.split()
    arguments = ["-m", "trivium_cli", *arguments] if program == "trivium" else ["-c", command]
    return lambda: subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def loaders_of(way: str, folder: Path) -> dict[str, Callable[[], object]]:
    """Return functions that load the models of an architecture, Trivium first, from subfolders of `folder`."""

    def saved(name: str, model: PreTrainedModel) -> Callable[[], object]:
        model.save_pretrained(folder / name)
        return lambda: type(model).from_pretrained(folder / name)

    models = {name: build() for name, build in WAYS[way](SHAPES["small"], VOCABULARY).items()}
    return {name: saved(name, model) for name, model in models.items() if isinstance(model, PreTrainedModel)}


def print_groups(groups: dict[str, Times], what: str) -> None:
    """Print times, and ratios to the first entry of each group."""
    table = Table("", what, "CPU, s", "wall clock, s", "CPU / first", "quartiles")
    for group, times in groups.items():
        first = next(iter(times.values()))
        for name, taken in times.items():
            ratio = Ratio.of([cpu for cpu, _ in taken], [cpu for cpu, _ in first])
            cpu, clock = np.median(taken, axis=0)
            table.add_row(group, name, f"{cpu:.3f}", f"{clock:.3f}", f"{ratio.median:.2f}", ratio.spread)
        table.add_section()
    Console(width=140).print(table)


def draw(parts: dict[str, dict[str, Times]], path: Path) -> None:
    """Plot median CPU times with quartiles, one panel per part."""
    figure = Figure(figsize=(9, 8), layout="constrained")
    for axes, (title, groups) in zip(figure.subplots(len(parts)), parts.items(), strict=True):
        named = [entry for times in groups.values() for entry in times.items()]
        for row, (name, taken) in enumerate(named):
            lower, median, upper = np.quantile([cpu for cpu, _ in taken], [0.25, 0.5, 0.75])
            color = "C0" if "trivium" in name.lower() else "C1"
            axes.errorbar(median, row, xerr=[[median - lower], [upper - median]], fmt="o", color=color)
        axes.set(title=title, xlabel="CPU seconds", xscale="log")
        axes.set_yticks(range(len(named)), [name for name, _ in named])
        axes.invert_yaxis()
        axes.grid(alpha=0.3)
        axes.tick_params(axis="y", labelsize=8)
    save_figure(figure, path)


def main() -> None:
    """Print two tables, and plot them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rounds", type=int, default=9, help="rounds of the processes; loading has three times as many"
    )
    parser.add_argument("--plot", type=Path, help="image to write")
    options = parser.parse_args()
    transformers.logging.disable_progress_bar()

    processes = {command: process_of(command) for group in COMMANDS.values() for command in group}
    taken = interleaved(processes, options.rounds, "processes")
    starting = {group: {command: taken[command] for command in commands} for group, commands in COMMANDS.items()}
    print_groups(starting, "process running")
    loading: dict[str, Times] = {}
    for way in WAYS:
        with TemporaryDirectory() as folder:
            loading[way] = interleaved(loaders_of(way, Path(folder)), 3 * options.rounds, way)
    print_groups(loading, "checkpoint loaded as")
    print(
        f"{options.rounds} rounds; torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{torch.get_num_threads()} threads, machine load {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores"
    )
    if options.plot:
        draw({"Starting": starting, "Loading a checkpoint": loading}, options.plot)


if __name__ == "__main__":
    main()
