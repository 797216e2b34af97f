"""Compare the peak memory of training steps of Trivium with other implementations of the same shape.

    python benchmarks/memory.py --data FOLDER

Each model is built and takes two AdamW steps on the same batch in a separate process. The benchmark reports the peak
resident memory of the process minus its resident memory before the model was built. Trivium is measured in three
configurations: as its trainer runs it, without materializing logits (`skip_logits=True`); the same with activation
checkpointing; and with all logits.
"""

import argparse
import multiprocessing
import os
import re
from collections.abc import Callable
from functools import partial
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import torch
from peers import SHAPES, WAYS, batch_of, real_lengths
from rich.console import Console
from rich.table import Table
from torch import nn

MEBIBYTE = 2**20


def resident(field: str) -> int:
    """Return the resident memory in bytes: current ("VmRSS") or peak ("VmHWM")."""
    found = re.search(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found, "this benchmark needs Linux"
    return int(found[1]) * 1024


def measure(
    build: Callable[[], nn.Module], batch: dict[str, Any], report: "multiprocessing.SimpleQueue[tuple[int, int]]"
) -> None:
    """Build a model, take two steps, and report the peak memory and the number of parameters."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    before = resident("VmRSS")
    model = build().train()
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(2):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    report.put((resident("VmHWM") - before, sum(p.numel() for p in model.parameters())))


def checkpointing(build: Callable[[], Any]) -> nn.Module:
    """Build a model with activation checkpointing enabled."""
    model = build()
    model.activation_checkpointing_enable()
    return model


def main() -> None:
    """Print a table for each architecture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of Multi30k, for realistic lengths")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--shapes", nargs="+", default=["small", "base"], choices=list(SHAPES))
    parser.add_argument("--vocabularies", nargs="+", type=int, default=[10_000, 32_000])
    parser.add_argument("--rows", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)  # set in the parent process, since OpenMP threads do not survive a fork
    # a fork inherits the imported libraries, so their memory is not counted
    context = multiprocessing.get_context("fork")
    for way in options.ways:
        table = Table(
            "shape", "vocabulary", "model", "parameters", "peak, MiB", "relative to the first peer", title=way
        )
        for shape in options.shapes:
            for vocabulary in options.vocabularies:
                batch = batch_of(way, real_lengths(options.data, options.rows), vocabulary)
                runs = []
                for name, build in WAYS[way](SHAPES[shape], vocabulary).items():
                    if name.startswith("Trivium"):
                        without_logits = {**batch, "skip_logits": True}
                        runs.append((name, build, without_logits))
                        runs.append((f"{name}, checkpointing", partial(checkpointing, build), without_logits))
                        name += ", with logits"
                    runs.append((name, build, batch))
                peaks = {}
                for name, build, inputs in runs:
                    report: SimpleQueue[tuple[int, int]] = context.SimpleQueue()
                    process = context.Process(target=measure, args=(build, inputs, report))
                    process.start()
                    process.join()
                    if process.exitcode:
                        raise SystemExit(f"{name} failed with exit code {process.exitcode}.")
                    peaks[name] = report.get()
                reference = next(peak for name, (peak, _) in peaks.items() if not name.startswith("Trivium"))
                for name, (peak, parameters) in peaks.items():
                    table.add_row(
                        shape,
                        f"{vocabulary:,}",
                        name,
                        f"{parameters:,}",
                        f"{peak / MEBIBYTE:,.0f}",
                        f"{peak / reference:.2f}",
                    )
        Console(width=110).print(table)
    print(f"{options.rows} rows; torch {torch.__version__}, one thread on {os.cpu_count()} cores, float32")


if __name__ == "__main__":
    main()
