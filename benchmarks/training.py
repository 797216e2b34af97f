"""Compare the speed of training steps of Trivium with other implementations of the same shape, on the same batches.

    python benchmarks/training.py --data FOLDER

Batches are padded, with the lengths of Multi30k's sentences in file order (FOLDER contains `train.en` and `train.de`).
A step is forward pass, loss, backward pass and AdamW, in float32; Trivium runs as in its trainer (`skip_logits=True`).
In every round, each model takes a step on the same batch, in rotating order. The benchmark reports the time of each
model as a multiple of Trivium's (median and quartiles over the rounds), and its hardware utilization: the FLOP/s of
the real tokens, relative to those of 2048 x 2048 matrix products measured in the same rounds. `--checkpointing` adds
Trivium with activation checkpointing.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from memory import checkpointing
from peers import SHAPES, WAYS, Batch, batch_of, real_lengths
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timing import Ratio, environment, interleaved, write_ratios

from trivium.training.flops import TokenCounts, count_tokens, training_flops

MATMUL = "products of matrices"
WARMUP_ROUNDS = 2


def steps_of(models: dict[str, Any], batches: list[Batch]) -> dict[str, Callable[[int], object]]:
    """Return functions that take a training step on the batch of a round."""

    def step_of(name: str, model: Any) -> Callable[[int], object]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        step_options = {"skip_logits": True} if name.startswith("Trivium") else {}

        def step(turn: int) -> None:
            model(**batches[turn % len(batches)], **step_options).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    return {name: step_of(name, model) for name, model in models.items()}


def main() -> None:
    """Print a table of all shapes; also write it as JSON if `--results` is set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of Multi30k, for realistic lengths")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--shapes", nargs="+", default=["tiny", "small", "base"], choices=list(SHAPES))
    parser.add_argument("--vocabularies", nargs="+", type=int, default=[10_000, 32_000])
    parser.add_argument("--rows", type=int, default=32, help="sentences per batch")
    parser.add_argument("--checkpointing", action="store_true", help="also time Trivium with activation checkpointing")
    parser.add_argument("--seconds", type=float, default=40, help="per shape, but at least five rounds")
    parser.add_argument("--results", type=Path, help="JSON output for draw.py")
    options = parser.parse_args()
    lengths = real_lengths(options.data, 8 * options.rows)
    table = Table(
        "architecture",
        "shape",
        "vocabulary",
        "model",
        "time / Trivium",
        "quartiles",
        "rounds",
        "utilization",
    )
    ratios: dict[tuple[str, str, str], Ratio] = {}
    square = torch.randn(2048, 2048)
    combinations = [(w, s, v) for w in options.ways for s in options.shapes for v in options.vocabularies]
    for way, name, vocabulary in track(combinations, console=Console(stderr=True)):
        parts = [lengths[start : start + options.rows] for start in range(0, len(lengths), options.rows)]
        batches = [batch_of(way, part, vocabulary) for part in parts]
        torch.manual_seed(0)
        builds: dict[str, Callable[[], Any]] = dict(WAYS[way](SHAPES[name], vocabulary))
        baseline = next(iter(builds))
        if options.checkpointing:
            builds[f"{baseline}, checkpointing"] = partial(checkpointing, builds[baseline])
        models = {model: build().train() for model, build in builds.items()}
        counts = [TokenCounts(*count_tokens(batch, models[baseline]).tolist()) for batch in batches]
        flop = sum(training_flops(count, models[baseline]) for count in counts) / len(counts)
        steps = {**steps_of(models, batches), MATMUL: lambda _: square @ square}
        seconds = interleaved(steps, options.seconds, WARMUP_ROUNDS)
        speeds = {model: flop / torch.tensor(seconds[model]).mean().item() for model in models}
        peak = 2 * 2048**3 / torch.tensor(seconds[MATMUL]).median().item()
        for model in models:
            ratio = Ratio.of(seconds[model], seconds[baseline])
            if model != baseline:
                ratios[way, f"{name}, {vocabulary:,}", model] = ratio
            table.add_row(
                way,
                name,
                f"{vocabulary:,}",
                model,
                f"{ratio.median:.2f}",
                ratio.spread,
                str(len(seconds[model])),
                f"{speeds[model] / peak:.0%}",
            )
        table.add_section()
    Console(width=140).print(table)
    print(f"{options.rows} rows; {environment()}")
    if options.results:
        write_ratios(ratios, "Training step: time as a multiple of Trivium's", options.results, target=1.15)


if __name__ == "__main__":
    main()
