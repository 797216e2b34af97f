"""How fast a training step is, ours beside others' models of the same shape, on the same padded batches.

    python benchmarks/training.py --data FOLDER

Batches have rows of Multi30k's lengths in the order of its sentences (FOLDER has `train.en` and `train.de`). A step is
forward pass, loss, backward pass and AdamW, in float32; ours as our Trainer takes it (`skip_logits=True`). In every
round each model takes a step on the same batch, in an order that turns; what is told is how many times longer than
ours each one took, the median of the rounds with their quartiles. Beside it, how much of what the machine can do each
model uses: the arithmetic that the real tokens of the batch need, over time, over that of products of 2048 x 2048
matrices, which take their turn in every round, too. With `--checkpointing` ours takes one turn more, in which what is
inside a layer is computed again in the backward pass, to save memory.
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
from timing import Ratio, interleaved, surroundings, write_ratios

from trivium.training.flops import TokenCounts, count_tokens, training_flops

PEAK = "products of matrices"
NOT_TIMED = 2


def steps_of(models: dict[str, Any], batches: list[Batch]) -> dict[str, Callable[[int], object]]:
    """For each model what takes a step on the batch of a round."""

    def step_of(name: str, model: Any) -> Callable[[int], object]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        alone = {"skip_logits": True} if name.startswith("Trivium") else {}

        def step(turn: int) -> None:
            model(**batches[turn % len(batches)], **alone).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    return {name: step_of(name, model) for name, model in models.items()}


def main() -> None:
    """Print a table of all shapes; write it as JSON if `--results` is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of Multi30k, for its lengths")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--shapes", nargs="+", default=["tiny", "small", "base"], choices=list(SHAPES))
    parser.add_argument("--vocabularies", nargs="+", type=int, default=[10_000, 32_000])
    parser.add_argument("--rows", type=int, default=32, help="sentences in a batch")
    parser.add_argument("--checkpointing", action="store_true", help="ours with gradient checkpointing, too")
    parser.add_argument("--seconds", type=float, default=40, help="for each shape, but at least five rounds")
    parser.add_argument("--results", type=Path, help="JSON to write, for draw.py")
    options = parser.parse_args()
    lengths = real_lengths(options.data, 8 * options.rows)
    table = Table("way", "shape", "vocabulary", "model", "time / ours", "quartiles", "rounds", "use of the machine")
    ratios: dict[tuple[str, str, str], Ratio] = {}
    square = torch.randn(2048, 2048)
    combinations = [(w, s, v) for w in options.ways for s in options.shapes for v in options.vocabularies]
    for way, name, vocabulary in track(combinations, console=Console(stderr=True)):
        parts = [lengths[start : start + options.rows] for start in range(0, len(lengths), options.rows)]
        batches = [batch_of(way, part, vocabulary) for part in parts]
        torch.manual_seed(0)
        builds: dict[str, Callable[[], Any]] = dict(WAYS[way](SHAPES[name], vocabulary))
        ours = next(iter(builds))
        if options.checkpointing:
            builds[f"{ours}, checkpointing"] = partial(checkpointing, builds[ours])
        models = {model: build().train() for model, build in builds.items()}
        counts = [TokenCounts(*count_tokens(batch, models[ours]).tolist()) for batch in batches]
        flop = sum(training_flops(each, models[ours]) for each in counts) / len(counts)
        steps = {**steps_of(models, batches), PEAK: lambda _: square @ square}
        seconds = interleaved(steps, options.seconds, NOT_TIMED)
        speeds = {model: flop / torch.tensor(seconds[model]).mean().item() for model in models}
        peak = 2 * 2048**3 / torch.tensor(seconds[PEAK]).median().item()
        for model in models:
            ratio = Ratio.of(seconds[model], seconds[ours])
            if model != ours:
                ratios[way, f"{name}, {vocabulary:,}", model] = ratio
            table.add_row(
                *(way, name, f"{vocabulary:,}", model, f"{ratio.median:.2f}", ratio.spread),
                *(str(len(seconds[model])), f"{speeds[model] / peak:.0%}"),
            )
        table.add_section()
    Console(width=140).print(table)
    print(f"{options.rows} rows; {surroundings()}")
    if options.results:
        write_ratios(ratios, "Training step: time as a multiple of Trivium's", options.results, target=1.15)


if __name__ == "__main__":
    main()
