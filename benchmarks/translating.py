"""Compare the speed of translating a file with `trivium translate`, for each engine, and a MarianMTModel loop.

    python benchmarks/translating.py --data FOLDER --models MODELS

All use the same weights, which are loaded from MODELS if `decoding.py` has trained them there, and trained otherwise.
The plain loop takes batches of 64 or 256 sentences in file order (`test_2016_flickr.en` of FOLDER), pads them and
calls `generate()`. `trivium translate` runs with default settings, which sort sentences by length and choose the batch
size. All run in every round. The benchmark reports the speedup over each plain loop (median and quartiles over the
rounds).
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from decoding import SEARCHES, trained
from peers import SHAPES
from rich.console import Console
from rich.table import Table
from timing import Ratio, environment, interleaved, write_ratios
from transformers import AutoModelForSeq2SeqLM
from transformers.utils import logging

from trivium import TriviumTokenizer
from trivium.data import read_lines
from trivium.interop.ctranslate2 import CTranslate2Model, to_ctranslate2
from trivium.translation import translate


def plain_loop(
    model: Any, tokenizer: TriviumTokenizer, texts: list[str], batch_size: int, **options: Any
) -> list[str]:
    """Translate in batches of fixed size, as in typical user code."""
    translations = []
    for start in range(0, len(texts), batch_size):
        inputs = tokenizer(texts[start : start + batch_size], padding=True, return_tensors="pt")
        max_length = inputs["input_ids"].shape[1] + 50
        ids = model.generate(**inputs, **options, max_length=max_length)
        translations += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return translations


def main() -> None:
    """Print a table of all shapes; also write it as JSON if `--results` is set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of Multi30k")
    parser.add_argument("--models", type=Path, required=True, help="cache folder of the models")
    parser.add_argument("--shapes", nargs="+", default=["tiny", "small", "base"], choices=list(SHAPES))
    parser.add_argument("--at-once", nargs="+", type=int, default=[64, 256], help="batch sizes of the plain loops")
    parser.add_argument("--sentences", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=40, help="per cell, but at least three rounds")
    parser.add_argument("--results", type=Path, help="JSON output for draw.py")
    options = parser.parse_args()
    logging.set_verbosity_error()
    texts = list(read_lines(options.data / "test_2016_flickr.en"))[: options.sentences]
    threads = torch.get_num_threads()
    baselines = {f"MarianMTModel, plain loop, batch size {size}": size for size in options.at_once}
    first = next(iter(baselines))
    table = Table(
        "shape",
        "search",
        "model",
        "rounds",
        f"same lines as {first}",
        *(f"speedup over {name}" for name in baselines),
    )
    ratios: dict[tuple[str, str, str], Ratio] = {}
    for shape in options.shapes:
        folder = trained("encoder-decoder", shape, 10_000, options.data, options.models, 200)
        tokenizer = TriviumTokenizer.from_pretrained(folder)
        marian = AutoModelForSeq2SeqLM.from_pretrained(folder / "native").eval()
        engines = {"torch": AutoModelForSeq2SeqLM.from_pretrained(folder).eval()}
        with TemporaryDirectory() as temporary:
            for quantization in ("float32", "int8"):
                converted = Path(temporary) / quantization
                to_ctranslate2(folder, converted, quantization)
                engine = CTranslate2Model(converted, inter_threads=1, intra_threads=threads)
                engines[f"ctranslate2, {quantization}"] = engine
        for search, beams in SEARCHES.items():
            outputs: dict[str, list[str]] = {}

            def candidate(
                name: str, function: Callable[..., Any], *args: Any, outputs: Any = outputs, **kwargs: Any
            ) -> Any:
                return lambda _: outputs.__setitem__(name, list(function(*args, texts, **kwargs)))

            candidates = {
                name: candidate(name, plain_loop, marian, tokenizer, batch_size=batch_size, **beams)
                for name, batch_size in baselines.items()
            }
            for name, engine in engines.items():
                name = f"trivium translate, {name}"
                candidates[name] = candidate(name, translate, engine, tokenizer, **beams)
            seconds = interleaved(candidates, options.seconds, min_rounds=3)
            for name in candidates:
                same = sum(one == other for one, other in zip(outputs[first], outputs[name], strict=True))
                speedups = [Ratio.of(seconds[baseline], seconds[name]) for baseline in baselines]
                if name not in baselines:
                    ratios["", f"{shape}, {search}", name] = speedups[0]
                table.add_row(
                    shape,
                    search,
                    name,
                    str(len(seconds[name])),
                    f"{same} of {len(texts)}",
                    *(f"{ratio.median:.2f} ({ratio.spread})" for ratio in speedups),
                )
            table.add_section()
    Console(width=140).print(table)
    print(f"{len(texts)} sentences; {environment()}")
    if options.results:
        title = f"Translating a file: speedup over {first}"
        write_ratios(ratios, title, options.results, target=3)


if __name__ == "__main__":
    main()
