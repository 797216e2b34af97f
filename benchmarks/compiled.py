"""What `torch.compile` with a static cache makes of greedy generation, after warming up, beside generation without.

    python benchmarks/compiled.py --models FOLDER

The models are those that `decoding.py` has trained in FOLDER. Each generates 32 tokens for one row and for 16, as
`generate()` does it by itself, and with `cache_implementation="static"` and a compiled step. In every round both do,
in turn; told are how many times as fast the compiled one is, the seconds that compiling takes, how many graphs there
are after outputs and sources of several lengths, how often a graph was broken, and whether outputs are the same.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from peers import BOS, PAD, SHAPES
from rich.console import Console
from rich.table import Table
from timing import Ratio, interleaved, surroundings
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, CompileConfig
from transformers.utils import logging

import trivium  # noqa: F401, which makes the models known

LENGTHS = (32, 24, 40)
ROOM = 64


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="folder of the models")
    parser.add_argument("--shapes", nargs="+", default=["tiny", "base"], choices=list(SHAPES))
    parser.add_argument("--seconds", type=float, default=20, help="for each cell, but at least five rounds")
    options = parser.parse_args()
    logging.set_verbosity_error()
    table = Table("model", "rows", "times as fast", "quartiles", "rounds", "compiling, s", "graphs", "breaks", "same")
    for shape in options.shapes:
        for family in ("marian", "gpt2", "llama"):
            auto_class: Any = AutoModelForSeq2SeqLM if family == "marian" else AutoModelForCausalLM
            model = auto_class.from_pretrained(options.models / f"{family}-{shape}-10000").eval()
            for rows in (1, 16):
                torch._dynamo.reset()
                counters.clear()
                model.__dict__.pop("_compiled_call", None)
                compiling = CompileConfig(fullgraph=True, mode="default")
                compiling._compile_all_devices = True
                ways: dict[str, dict[str, Any]] = {
                    "eager": {},
                    "compiled": {
                        "cache_implementation": "static",
                        "compile_config": compiling,
                        "max_cache_len": ROOM,
                    },
                }

                def generate(
                    way: str, length: int = LENGTHS[0], source: int = 12, do: Any = (model, rows, ways)
                ) -> Any:
                    model, rows, ways = do
                    ids = torch.randint(5, 5000, (rows, source), generator=torch.Generator().manual_seed(length))
                    ids[:, 0] = BOS
                    fixed = {"do_sample": False, "num_beams": 1, "pad_token_id": PAD, "eos_token_id": None}
                    lengths = {"max_new_tokens": length, "min_new_tokens": length}
                    return model.generate(ids, attention_mask=torch.ones_like(ids), **fixed, **lengths, **ways[way])

                start = time.perf_counter()
                generate("compiled")
                to_compile = time.perf_counter() - start
                same = all(
                    torch.equal(generate("compiled", length, source), generate("eager", length, source))
                    for length in LENGTHS
                    for source in (12, 9, 15)
                )
                seconds = interleaved({way: lambda _, way=way: generate(way) for way in ways}, options.seconds)
                ratio = Ratio.of(seconds["eager"], seconds["compiled"])
                table.add_row(
                    *(
                        f"{family}, {shape}",
                        str(rows),
                        f"{ratio.median:.2f}",
                        ratio.spread,
                        str(len(seconds["eager"])),
                    ),
                    *(f"{to_compile:.0f}", str(counters["stats"]["unique_graphs"])),
                    *(str(sum(counters["graph_break"].values())), "yes" if same else "no"),
                )
    Console(width=120).print(table)
    print(surroundings())


if __name__ == "__main__":
    main()
