"""Interleaved timing: every round runs all candidates, so that load from other processes affects all equally."""

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
    """Ratio of two times: median and quartiles over the rounds."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, seconds: Sequence[float], reference: Sequence[float]) -> Self:
        """Compute the ratio from the seconds of each round."""
        lower, median, upper = np.quantile(np.array(seconds) / np.array(reference), [0.25, 0.5, 0.75])
        return cls(float(median), float(lower), float(upper))

    @property
    def spread(self) -> str:
        """Return the formatted quartiles."""
        return f"{self.lower:.2f} - {self.upper:.2f}"


def interleaved(
    candidates: Mapping[str, Callable[[int], object]], seconds: float, warmup_rounds: int = 1, min_rounds: int = 5
) -> dict[str, list[float]]:
    """Time each candidate once per round, in rotating order; candidates are called with the index of the round.

    Args:
        candidates: Functions to time, by name.
        seconds: Time after which no new round starts.
        warmup_rounds: Rounds that are not timed, to fill caches.
        min_rounds: Minimum number of timed rounds.

    Returns:
        Seconds of each round, by candidate.
    """
    names = list(candidates)
    taken: dict[str, list[float]] = {name: [] for name in names}
    start, turn = time.perf_counter(), 0
    while turn < warmup_rounds + min_rounds or time.perf_counter() - start < seconds:
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            call_start = time.perf_counter()
            candidates[name](turn)
            if turn >= warmup_rounds:
                taken[name].append(time.perf_counter() - call_start)
        turn += 1
    return taken


def environment() -> str:
    """Describe the environment that results depend on: torch version, threads and system load."""
    return (
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"OMP_WAIT_POLICY {os.environ.get('OMP_WAIT_POLICY', 'not set')}, "
        f"machine load {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores"
    )


def write_ratios(ratios: Mapping[tuple[str, str, str], Ratio], title: str, path: Path, target: float) -> None:
    """Write ratios by (panel, row, series) as JSON for `draw.py`."""
    entries = [
        {"panel": panel, "row": row, "series": series, **asdict(ratio)}
        for (panel, row, series), ratio in ratios.items()
    ]
    content = {"title": title, "target": target, "ratios": entries}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
