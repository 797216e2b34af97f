"""Timing side by side: in rounds, of which each has all, so that what else the machine does takes from all alike."""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch


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


def write_ratios(ratios: Mapping[tuple[str, str, str], Ratio], title: str, path: Path, target: float) -> None:
    """Write ratios, by (panel, row, series), as JSON that `draw.py` reads."""
    entries = [
        {"panel": panel, "row": row, "series": series, **asdict(ratio)}
        for (panel, row, series), ratio in ratios.items()
    ]
    content = {"title": title, "target": target, "ratios": entries}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
