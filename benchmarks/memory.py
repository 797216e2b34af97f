"""Peak memory of training steps, ours beside others' models of the same shape.

    python benchmarks/memory.py --data FOLDER

Each model is built and takes two steps of AdamW in a process of its own, on the same batch. What is told is the most
memory that the process had in RAM, less what it had before the model was built. Ours once as our Trainer trains, which
needs no logits (`skip_logits=True`), once more so with what is inside a layer computed again in the backward pass
(`activation_checkpointing`), and once with all logits.
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
    """Bytes in RAM: now ("VmRSS"), or the most that there were ("VmHWM")."""
    found = re.search(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found, "this needs Linux"
    return int(found[1]) * 1024


def measure(
    build: Callable[[], nn.Module], batch: dict[str, Any], report: "multiprocessing.SimpleQueue[tuple[int, int]]"
) -> None:
    """Build, take two steps, and report the peak and the number of parameters."""
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
    """A model that keeps what comes into its layers, and not what is inside."""
    model = build()
    model.activation_checkpointing_enable()
    return model


def main() -> None:
    """Print a table for each way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of Multi30k, for its lengths")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--shapes", nargs="+", default=["small", "base"], choices=list(SHAPES))
    parser.add_argument("--vocabularies", nargs="+", type=int, default=[10_000, 32_000])
    parser.add_argument("--rows", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)  # here, too: OpenMP's threads do not live on in a process that is forked
    context = multiprocessing.get_context("fork")  # so that the libraries are there before
    for way in options.ways:
        table = Table("shape", "vocabulary", "model", "parameters", "peak, MiB", "of the first peer's", title=way)
        for shape in options.shapes:
            for vocabulary in options.vocabularies:
                batch = batch_of(way, real_lengths(options.data, options.rows), vocabulary)
                runs = []
                for name, build in WAYS[way](SHAPES[shape], vocabulary).items():
                    if name.startswith("Trivium"):
                        alone = {**batch, "skip_logits": True}
                        runs.append((name, build, alone))
                        runs.append((f"{name}, checkpointing", partial(checkpointing, build), alone))
                        name += ", with logits"
                    runs.append((name, build, batch))
                peaks = {}
                for name, build, inputs in runs:
                    report: SimpleQueue[tuple[int, int]] = context.SimpleQueue()
                    process = context.Process(target=measure, args=(build, inputs, report))
                    process.start()
                    process.join()
                    if process.exitcode:
                        raise SystemExit(f"{name} ended with {process.exitcode}.")
                    peaks[name] = report.get()
                reference = next(peak for name, (peak, _) in peaks.items() if not name.startswith("Trivium"))
                for name, (peak, parameters) in peaks.items():
                    table.add_row(
                        *(shape, f"{vocabulary:,}", name, f"{parameters:,}"),
                        *(f"{peak / MEBIBYTE:,.0f}", f"{peak / reference:.2f}"),
                    )
        Console(width=110).print(table)
    print(f"{options.rows} rows; torch {torch.__version__}, one thread of {os.cpu_count()} cores, float32")


if __name__ == "__main__":
    main()
