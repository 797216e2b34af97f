"""Measure Trivium and other implementations on a GPU, one part at a time; `--smoke` only tests that the parts run.

    python benchmarks/gpu.py --list
    python benchmarks/gpu.py --results runs/gpu --data FOLDER --text FOLDER --minutes 9

Every part takes less than ten minutes and writes `PART.json` when it is finished. A finished part is skipped, so that
repeating the command resumes where the last one stopped; with `--minutes`, no part is started that would not finish in
time. All results are also written as tables to `results.md`. docs/gpu.md lists the commands in order, and the packages
that each part needs.
"""

import argparse
import importlib
import json
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from gpu_setting import Row, Setting
from timing import environment
from transformers.utils import logging

from trivium.storage.atomic import write_whole


@dataclass(frozen=True)
class Part:
    """A part of the benchmark.

    Attributes:
        title: Title of the result table.
        target: Expected result.
        minutes: Estimated duration in minutes.
        function: Module and function.
    """

    title: str
    target: str
    minutes: float
    function: str


# Sorted by importance. The module of a part is imported when the part runs, because parts need different packages.
PARTS = {
    "train-big": Part("Training, the paper's big", "MFU of at least 50 %", 6, "gpu_training:train_big"),
    "train-350m-llama": Part(
        "Training, a decoder of 350 M like Llama", "MFU of at least 50 %", 6, "gpu_training:train_llama"
    ),
    "train-350m-gpt": Part(
        "Training, a decoder of 350 M like GPT-2", "MFU of at least 50 %", 7, "gpu_training:train_gpt"
    ),
    "generate-1": Part(
        "Generation, one sentence", "static cache at least 5 times as fast as eager", 6, "gpu_generation:generate_one"
    ),
    "generate-64": Part(
        "Generation, 64 sentences", "at least twice as fast as Marian", 7, "gpu_generation:generate_64"
    ),
    "check-training": Part("Training compared with a CPU", "all ok", 1, "gpu_checks:check_training"),
    "check-attention": Part("Logits compared with a CPU", "all ok", 1, "gpu_checks:check_attention"),
    "check-generation": Part("Tokens compared with a CPU", "all ok", 2, "gpu_checks:check_generation"),
    "translate": Part("Translating 3,000 lines", "tokens/s beside CTranslate2", 8, "gpu_generation:translate_lines"),
    "token-batches": Part(
        "Token batches in the Trainer", "at least 1.5 times Marian's", 8, "gpu_training:token_batches"
    ),
    "recipe-numbers": Part("Recipe `numbers`", "score and minutes", 9, "gpu_recipes:train_numbers"),
    "recipe-nanogpt": Part("nanoGPT's preset", "loss below 1.45", 9, "gpu_recipes:train_nanogpt"),
    "recipe-multi30k-tiny": Part("Recipe `multi30k-tiny`", "scores and minutes", 9, "gpu_recipes:train_multi30k"),
}


def run_part(name: str, setting: Setting) -> dict[str, Any]:
    """Run a part and return its result, together with the environment that it depends on."""
    module, _, function = PARTS[name].function.partition(":")
    torch.set_float32_matmul_precision("highest" if name.startswith("check") else "high")
    start = time.perf_counter()
    rows = getattr(importlib.import_module(module), function)(setting)
    is_gpu = setting.device.type == "cuda"
    return {
        "part": name,
        "device": torch.cuda.get_device_name(setting.device) if is_gpu else "CPU",
        "smoke": setting.smoke,
        "environment": f"{environment()}, transformers {transformers.__version__}, CUDA {torch.version.cuda}",
        "seconds": round(time.perf_counter() - start, 1),
        "rows": rows,
    }


def utilization(rows: list[Row], device: str) -> list[Row]:
    """Add the MFU to rows that have TFLOP/s, if the device's peak is known."""
    if not any("TFLOP/s" in row for row in rows):
        return rows
    try:
        from trivium.training.flops import peak_of  # deferred: needs `datasets`, which may be missing on GPU machines
    except ImportError:
        return rows
    peak = peak_of(device)
    return [{**row, "MFU": f"{row['TFLOP/s'] * 1e12 / peak:.1%}" if peak else "unknown"} for row in rows]


def table(result: dict[str, Any]) -> str:
    """Format a result as a table in Markdown."""
    part, rows = PARTS[result["part"]], utilization(result["rows"], result["device"])
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [
        columns,
        ["---"] * len(columns),
        *([format_cell(row.get(column, "")) for column in columns] for row in rows),
    ]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    smoke = " **A smoke test: the figures mean nothing.**" if result["smoke"] else ""
    return (
        f"## {part.title}\n\nTarget: {part.target}.{smoke}\n\n{text}\n\n"
        f"`--parts {result['part']}`; {result['device']}; {result['environment']}; {result['seconds']} s.\n"
    )


def format_cell(value: Any) -> str:
    """Format large numbers with commas and small ones with four digits."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def finished_results(folder: Path, smoke: bool) -> dict[str, dict[str, Any]]:
    """Read the results of all finished parts, keyed by name, in the order of `PARTS`."""
    paths = {name: folder / f"{name}.json" for name in PARTS}
    results = {name: json.loads(path.read_text()) for name, path in paths.items() if path.is_file()}
    return {name: result for name, result in results.items() if result["smoke"] == smoke}


def main(arguments: list[str] | None = None) -> int:
    """Run all unfinished parts, and return the number of failures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("runs/gpu"), help="folder for results and models")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--data", type=Path, help="folder of Multi30k")
    parser.add_argument("--text", type=Path, help="folder of Shakespeare, train.txt and val.txt")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no part that would end later")
    parser.add_argument("--seconds", type=float, default=20, help="per group of candidates, but at least five rounds")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes for a moment, also on a CPU")
    parser.add_argument("--list", action="store_true", help="list the parts and the minutes they take")
    options = parser.parse_args(arguments)
    if options.list:
        for name, part in PARTS.items():
            print(f"{name:22}{part.minutes:4.0f} min  {part.title}")
        return 0
    if not (options.smoke or torch.cuda.is_available()):
        parser.error("there is no GPU. Pass --smoke to try the parts out on a CPU.")
    logging.set_verbosity_error()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seconds = 0.0 if options.smoke else options.seconds
    setting = Setting(device, options.results / "work", options.smoke, seconds, options.data, options.text)
    setting.work.mkdir(parents=True, exist_ok=True)

    start, failures = time.perf_counter(), 0
    for name in options.parts:
        if name in finished_results(options.results, options.smoke):
            print(f"{name}: finished before")
            continue
        if not options.smoke and (time.perf_counter() - start) / 60 + PARTS[name].minutes > options.minutes:
            print(f"{name}: would not end in {options.minutes:g} minutes. Run the same command again.")
            continue
        print(f"{name} ...", flush=True)
        try:
            result = run_part(name, setting)
        except Exception:  # a failed part must not stop the remaining ones
            traceback.print_exc()
            failures += 1
            continue
        write_whole(options.results / f"{name}.json", json.dumps(result, indent=1) + "\n")
        print(table(result), flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    results = finished_results(options.results, options.smoke)
    write_whole(options.results / "results.md", "\n".join(map(table, results.values())))
    return failures


if __name__ == "__main__":
    sys.exit(main())
