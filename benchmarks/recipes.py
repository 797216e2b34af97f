"""Estimate the training time of the full recipes on GPUs, and measure their throughput on this CPU.

For each recipe, a model of the full shape takes a few steps on random tokens without padding, in float32. Time is CPU
time of this process rather than wall-clock time, to reduce interference from other processes. GPU hours are
estimated as the FLOPs of all steps, divided by an assumed MFU times the published bf16 peak of the GPU.

    OMP_NUM_THREADS=1 python benchmarks/recipes.py
"""

import os
import time
from typing import Annotated, Any

import torch
import typer

from trivium.recipe import load_recipe
from trivium.training.flops import COUNTED, PEAK_TFLOPS, TokenCounts, count_tokens, training_flops

# Assumptions for each recipe: tokens per text, tokens per step on the longer side, rows per measured batch.
RECIPES = {
    "multi30k-tiny": (16, 8192, 32),
    "iwslt14": (25, 4096, 16),
    "wmt14-base": (30, 25_000, 8),
    "wmt14-big": (30, 25_000, 4),
    "fineweb": (2048, 256 * 2048, 1),
}
FILES = ["data.train=x", "data.validation=x", "data.test=x"]
GPUS = ("A100", "H100")


def main(
    steps: Annotated[int, typer.Option(help="Timed steps, after one warm-up step.")] = 2,
    mfu: Annotated[float, typer.Option(help="Assumed model FLOPs utilization.")] = 0.3,
) -> None:
    """Count the FLOPs of each recipe, time training steps, and print a table."""
    columns = ("recipe", "parameters", "steps", "real tokens/step", "FLOP/token", "total FLOP")
    hours = (f"hours on one {gpu}" for gpu in GPUS)
    print(f"| {' | '.join([*columns, 'tokens per CPU core second', *hours])} |")
    for name, (length, step_tokens, rows) in RECIPES.items():
        recipe = load_recipe(name, [*FILES, "training.bf16=false"])
        config = recipe.model_config(vocab_size=recipe.tokenizer.vocab_size, pad_token_id=0)
        model = recipe.kind.model_class(config).train()
        measured = min(length, 256)  # a row of 2,048 takes minutes on a CPU
        batch = batch_of(rows, measured, config.vocab_size, config.is_encoder_decoder)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        seconds = []
        for _ in range(1 + steps):
            start = time.process_time()
            model(**batch, skip_logits=True).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(time.process_time() - start)
        real = token_counts(batch, model).tokens
        speed = real * steps / sum(seconds[1:])

        full = token_counts(batch_of(1, length, config.vocab_size, config.is_encoder_decoder), model)
        flop_per_token = training_flops(full, model) / full.tokens
        tokens = step_tokens // length * full.tokens
        max_steps = recipe.training_arguments().max_steps
        total = flop_per_token * tokens * max_steps
        print(f"| `{name}` | {model.num_parameters() / 1e6:.1f} M | {max_steps:,} | {tokens:,} |", end="")
        print(f" {flop_per_token / 1e9:.3g} G | {total:.2e} | {speed:,.0f} |", end="")
        print("".join(f" {total / (mfu * PEAK_TFLOPS[gpu] * 1e12) / 3600:.2g} |" for gpu in GPUS), flush=True)
    threads, load = torch.get_num_threads(), os.getloadavg()[0]
    print(f"{threads} threads, machine load {load:.1f} on {os.cpu_count()} cores; assumed MFU {mfu:.0%}")


def batch_of(rows: int, length: int, vocab_size: int, is_pair: bool) -> dict[str, torch.Tensor]:
    """Return a batch of random tokens without padding; source and target of a pair have equal lengths."""
    ids = torch.randint(5, vocab_size, (rows, length))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {**batch, "labels": torch.randint_like(ids, 5, vocab_size) if is_pair else ids}


def token_counts(batch: dict[str, torch.Tensor], model: Any) -> TokenCounts:
    """Count the tokens that the model processes."""
    return TokenCounts(**dict(zip(COUNTED, count_tokens(batch, model).tolist(), strict=True)))


if __name__ == "__main__":
    typer.run(main)
