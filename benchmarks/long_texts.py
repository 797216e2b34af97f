"""Measure time and peak memory of a small encoder and decoder on one long text.

    MALLOC_MMAP_THRESHOLD_=131072 OMP_NUM_THREADS=1 python benchmarks/long_texts.py --lengths 8192

A cell is a forward pass (the loss only, without gradients) or a training step (forward and backward), with full
attention or a sliding window. Training steps are measured without activation checkpointing, with every second layer
checkpointed, and with all layers checkpointed. Each cell runs in a separate process, and every round runs all cells in
turn. The benchmark reports the median CPU time in seconds, which is less affected by other processes than wall-clock
time, and the peak resident memory of the process minus its resident memory before the model was built.
`MALLOC_MMAP_THRESHOLD_` makes glibc return the memory of a tensor to the system as soon as it is freed; otherwise
fragmentation inflates the peak. Inputs are random, so no data is needed.
"""

import argparse
import multiprocessing
import os
import time
from itertools import product
from statistics import median
from typing import Any, NamedTuple

import torch
from memory import MEBIBYTE, resident
from rich.console import Console
from rich.table import Table

from trivium import TriviumConfig, TriviumForCausalLM, TriviumForMaskedLM

ARCHITECTURES: dict[str, Any] = {"encoder": TriviumForMaskedLM, "decoder": TriviumForCausalLM}
SHAPE = {"d_model": 128, "num_attention_heads": 4, "ffn_dim": 512, "vocab_size": 1000, "dropout": 0.0}
STYLE = {"position_embedding_type": "rotary", "norm_position": "pre", "label_smoothing": 0.0}
CHECKPOINTED = {"training": 0, "training, all layers checkpointed": 1, "training, every second layer checkpointed": 2}
STEPS = ["forward", *CHECKPOINTED]
FLEX = "flex_attention"  # flex attention has no backward pass on a CPU


class Cell(NamedTuple):
    """One configuration to measure: model, input length and kind of step."""

    architecture: str
    length: int
    window: int | None
    attention: str
    step: str


def build(cell: Cell, layers: int) -> Any:
    """Build the model of a cell."""
    stack, other = ("encoder", "decoder") if cell.architecture == "encoder" else ("decoder", "encoder")
    config = TriviumConfig(
        **SHAPE,
        **STYLE,
        **{f"{stack}_layers": layers, f"{other}_layers": 0},
        max_position_embeddings=cell.length,
        sliding_window=cell.window,
        attn_implementation=cell.attention,
    )
    model = ARCHITECTURES[cell.architecture](config).train()
    if every_n_layers := CHECKPOINTED.get(cell.step):
        model.activation_checkpointing_enable(every_n_layers=every_n_layers)
    return model


def run_step(model: Any, ids: torch.Tensor, step: str) -> None:
    """Compute the loss and, for training steps, its gradients."""
    with torch.set_grad_enabled(step != "forward"):
        loss = model(input_ids=ids, labels=ids, skip_logits=True).loss
        if step != "forward":
            loss.backward()


def measure(cell: Cell, layers: int, report: "multiprocessing.SimpleQueue[tuple[float, int]]") -> None:
    """Run one step, and put its CPU seconds and the increase in peak memory in bytes into the queue."""
    torch.manual_seed(0)
    before = resident("VmRSS")
    model = build(cell, layers)
    ids = torch.randint(SHAPE["vocab_size"], (1, cell.length))
    # Warm up on a short input; flex attention needs the full length, for which it is compiled.
    run_step(model, ids if cell.attention == FLEX else ids[:, :256], cell.step)
    start = time.process_time()
    run_step(model, ids, cell.step)
    report.put((time.process_time() - start, resident("VmHWM") - before))


def main() -> None:
    """Measure all cells, and print one table row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES), choices=list(ARCHITECTURES))
    parser.add_argument("--lengths", nargs="+", type=int, default=[8192])
    parser.add_argument("--windows", nargs="+", type=int, default=[0, 512], help="0: full attention")
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "eager", FLEX])
    parser.add_argument("--steps", nargs="+", default=STEPS, choices=STEPS)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)  # set in the parent process, since OpenMP threads do not survive a fork
    context = multiprocessing.get_context("fork")
    steps = ["forward"] if options.attention == FLEX else options.steps
    cells = [
        Cell(architecture, length, window or None, options.attention, step)
        for architecture, length, window, step in product(
            options.architectures, options.lengths, options.windows, steps
        )
    ]
    found: dict[Cell, list[tuple[float, int]]] = {cell: [] for cell in cells}
    for cell in cells * options.rounds:
        report: multiprocessing.SimpleQueue[tuple[float, int]] = context.SimpleQueue()
        process = context.Process(target=measure, args=(cell, options.layers, report))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"{cell} failed with exit code {process.exitcode}.")
        found[cell].append(report.get())
    table = Table("architecture", "tokens", "window", "step", "CPU seconds", "peak, MiB", title=options.attention)
    for cell, results in found.items():
        seconds, peaks = zip(*results, strict=True)
        window = f"{cell.window:,}" if cell.window else "full"
        size = f"{median(peaks) / MEBIBYTE:,.0f}"
        table.add_row(cell.architecture, f"{cell.length:,}", window, cell.step, f"{median(seconds):.1f}", size)
    Console(width=110).print(table)
    print(
        f"{options.layers} layers, {SHAPE}; {options.rounds} rounds; torch {torch.__version__}, float32, one thread on"
    )
    print(f"{os.cpu_count()} cores")


if __name__ == "__main__":
    main()
