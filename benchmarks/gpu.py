"""Compare training and generation with MarianMTModel on a GPU, for the Transformer (big) and (base) models.

    python benchmarks/gpu.py

Training uses bf16 autocast, torch.compile, AdamW and rows of equal length without padding. Reported are milliseconds
per step, tokens per second, MFU (`trivium.training.flops`), and the speedup over MarianMTModel in the same rounds.
Generation is greedy, 64 tokens per row with the first shape, with the default `generate()`, and with a static cache,
whose steps transformers compiles into CUDA graphs. The benchmark needs no data and takes less than ten minutes.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from peers import PAD, SHAPES, encoder_decoders
from rich.console import Console
from rich.table import Table
from timing import Ratio, interleaved
from torch import nn
from training import arithmetic
from transformers.utils import logging

from trivium.training.flops import peak_flops

VOCABULARY = 32_000
NAMES = ("Trivium", "MarianMTModel")


def synchronized(function: Callable[[], object], device: torch.device) -> Callable[[int], None]:
    """Wrap a function to wait for the device after each call."""

    def wrapper(_: int) -> None:
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return wrapper


def training_step(model: nn.Module, batch: dict[str, torch.Tensor], **options: bool) -> Callable[[], object]:
    """Return a function that takes one compiled training step."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-4, fused=True)
    compiled = torch.compile(model)

    def step() -> None:
        with torch.autocast(batch["input_ids"].device.type, torch.bfloat16):
            loss = compiled(**batch, **options).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    """Run the benchmark and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["base", "big"], choices=list(SHAPES))
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=20, help="per cell, but at least five rounds")
    options = parser.parse_args()
    logging.set_verbosity_error()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    peak = peak_flops(device)
    torch.set_float32_matmul_precision("high")
    ids = torch.randint(5, VOCABULARY, (options.rows, options.length), device=device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}

    table = Table("shape", "model", "ms/step", "tokens/s", "MFU", "speedup over Marian", "quartiles")
    for shape in options.shapes:
        builders = encoder_decoders(SHAPES[shape], VOCABULARY)
        steps = {}
        for model in NAMES:
            step_options = {"skip_logits": True} if model == "Trivium" else {}
            steps[model] = synchronized(training_step(builders[model]().to(device), batch, **step_options), device)
        seconds = interleaved(steps, options.seconds, warmup_rounds=3)
        flop = arithmetic("encoder-decoder", SHAPES[shape], VOCABULARY, {k: v.cpu() for k, v in batch.items()})
        for model in NAMES:
            median = torch.tensor(seconds[model]).median().item()
            ratio = Ratio.of(seconds["MarianMTModel"], seconds[model])
            mfu = f"{flop / median / peak:.1%}" if peak else "unknown"
            table.add_row(
                shape,
                model,
                f"{1000 * median:.1f}",
                f"{2 * ids.numel() / median:,.0f}",
                mfu,
                f"{ratio.median:.2f}",
                ratio.spread,
            )
    Console(width=110).print(table)

    table = Table("rows", "model", "ms/token", "speedup over Trivium, eager", "quartiles", "same tokens")
    builders = encoder_decoders(SHAPES[options.shapes[0]], VOCABULARY)
    models: dict[str, Any] = {model: builders[model]().to(device).eval() for model in NAMES}
    modes = {
        "Trivium, eager": ("Trivium", {}),
        "Trivium, static cache": ("Trivium", {"cache_implementation": "static"}),
        "MarianMTModel, eager": ("MarianMTModel", {}),
        "MarianMTModel, static cache": ("MarianMTModel", {"cache_implementation": "static"}),
    }
    lengths = {"max_new_tokens": 64, "min_new_tokens": 64}
    fixed = {"do_sample": False, "num_beams": 1, "pad_token_id": PAD, "eos_token_id": None, **lengths}
    for rows in (1, options.rows):
        outputs: dict[str, torch.Tensor] = {}

        def generate(mode: str, rows: int = rows, outputs: dict[str, torch.Tensor] = outputs) -> None:
            model, cache_options = modes[mode]
            outputs[mode] = models[model].generate(ids[:rows, :32], **fixed, **cache_options)

        candidates = {mode: synchronized(lambda mode=mode: generate(mode), device) for mode in modes}
        seconds = interleaved(candidates, options.seconds, warmup_rounds=3)
        for mode in modes:
            ratio = Ratio.of(seconds["Trivium, eager"], seconds[mode])
            same = torch.equal(outputs[mode], outputs[mode.split(",")[0] + ", eager"])
            per_token = 1000 * torch.tensor(seconds[mode]).median().item() / 64
            table.add_row(str(rows), mode, f"{per_token:.2f}", f"{ratio.median:.2f}", ratio.spread, str(same))
    Console(width=110).print(table)
    print(f"{name}; torch {torch.__version__}")


if __name__ == "__main__":
    main()
