"""Measure the speedup of greedy generation with `torch.compile` and a static cache over eager generation.

    python benchmarks/compiled.py --models FOLDER

FOLDER contains the models that `decoding.py` trained. Each generates 32 tokens for batches of 1 and 16, once with the
default `generate()`, and once with `cache_implementation="static"` and a compiled step. The two alternate in every
round. The benchmark reports the speedup after warm-up, the compile time, the number of graphs compiled for
outputs and sources of several lengths, the number of graph breaks, and whether the outputs are identical.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from peers import BOS, PAD, SHAPES
from rich.console import Console
from rich.table import Table
from timing import Ratio, environment, interleaved
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, CompileConfig
from transformers.utils import logging

import trivium  # noqa: F401, registers the models

LENGTHS = (32, 24, 40)
MAX_CACHE_LEN = 64


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="folder of the trained models")
    parser.add_argument("--shapes", nargs="+", default=["tiny", "base"], choices=list(SHAPES))
    parser.add_argument("--seconds", type=float, default=20, help="per cell, but at least five rounds")
    options = parser.parse_args()
    logging.set_verbosity_error()
    table = Table("model", "rows", "speedup", "quartiles", "rounds", "compile time, s", "graphs", "breaks", "same")
    for shape in options.shapes:
        for family in ("marian", "gpt2", "llama"):
            auto_class: Any = AutoModelForSeq2SeqLM if family == "marian" else AutoModelForCausalLM
            model = auto_class.from_pretrained(options.models / f"{family}-{shape}-10000").eval()
            for rows in (1, 16):
                torch._dynamo.reset()
                counters.clear()
                model.__dict__.pop("_compiled_call", None)
                compile_config = CompileConfig(fullgraph=True, mode="default")
                compile_config._compile_all_devices = True
                modes: dict[str, dict[str, Any]] = {
                    "eager": {},
                    "compiled": {
                        "cache_implementation": "static",
                        "compile_config": compile_config,
                        "max_cache_len": MAX_CACHE_LEN,
                    },
                }

                def generate(
                    mode: str, length: int = LENGTHS[0], source: int = 12, setup: Any = (model, rows, modes)
                ) -> Any:
                    model, rows, modes = setup
                    ids = torch.randint(5, 5000, (rows, source), generator=torch.Generator().manual_seed(length))
                    ids[:, 0] = BOS
                    fixed = {"do_sample": False, "num_beams": 1, "pad_token_id": PAD, "eos_token_id": None}
                    lengths = {"max_new_tokens": length, "min_new_tokens": length}
                    return model.generate(ids, attention_mask=torch.ones_like(ids), **fixed, **lengths, **modes[mode])

                start = time.perf_counter()
                generate("compiled")
                compile_seconds = time.perf_counter() - start
                same = all(
                    torch.equal(generate("compiled", length, source), generate("eager", length, source))
                    for length in LENGTHS
                    for source in (12, 9, 15)
                )
                seconds = interleaved({mode: lambda _, mode=mode: generate(mode) for mode in modes}, options.seconds)
                ratio = Ratio.of(seconds["eager"], seconds["compiled"])
                table.add_row(
                    f"{family}, {shape}",
                    str(rows),
                    f"{ratio.median:.2f}",
                    ratio.spread,
                    str(len(seconds["eager"])),
                    f"{compile_seconds:.0f}",
                    str(counters["stats"]["unique_graphs"]),
                    str(sum(counters["graph_break"].values())),
                    "yes" if same else "no",
                )
    Console(width=120).print(table)
    print(environment())


if __name__ == "__main__":
    main()
