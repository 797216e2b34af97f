"""How fast a file is translated: `trivium translate`, by each of its engines, beside a plain loop with MarianMTModel.

    python benchmarks/translating.py --data FOLDER --models OTHER_FOLDER

The weights are the same everywhere: those that `decoding.py` has trained in OTHER_FOLDER, or trains now. The plain
loop takes 64 sentences, or 256, at a time as they stand in the file (`test_2016_flickr.en` of FOLDER), pads them and
calls `generate()`. `trivium translate`, of which nothing else is asked, sorts them by length and says itself how many
go together. All translate the file in every round, in turn; what is told is how many times as fast as each plain loop
each one was, the median of the rounds with their quartiles.
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
from timing import Ratio, interleaved, surroundings, write_ratios
from transformers import AutoModelForSeq2SeqLM
from transformers.utils import logging

from trivium import TriviumTokenizer
from trivium.data import read_lines
from trivium.interop.ctranslate2 import CTranslate2Model, to_ctranslate2
from trivium.translation import translate


def plain_loop(model: Any, tokenizer: TriviumTokenizer, texts: list[str], at_once: int, **options: Any) -> list[str]:
    """What anyone writes who wants translations."""
    translations = []
    for start in range(0, len(texts), at_once):
        inputs = tokenizer(texts[start : start + at_once], padding=True, return_tensors="pt")
        longest = inputs["input_ids"].shape[1] + 50
        ids = model.generate(**inputs, **options, max_length=longest)
        translations += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return translations


def main() -> None:
    """Print a table of all shapes; write it as JSON if `--results` is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of Multi30k")
    parser.add_argument("--models", type=Path, required=True, help="folder for the models")
    parser.add_argument("--shapes", nargs="+", default=["tiny", "small", "base"], choices=list(SHAPES))
    parser.add_argument("--at-once", nargs="+", type=int, default=[64, 256], help="sentences, by plain loops")
    parser.add_argument("--sentences", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=40, help="for each cell, but at least three rounds")
    parser.add_argument("--results", type=Path, help="JSON to write, for draw.py")
    options = parser.parse_args()
    logging.set_verbosity_error()
    texts = list(read_lines(options.data / "test_2016_flickr.en"))[: options.sentences]
    threads = torch.get_num_threads()
    plain = {f"MarianMTModel, plain loop, {at_once} at once": at_once for at_once in options.at_once}
    first = next(iter(plain))
    table = Table(
        "shape", "search", "who", "rounds", f"lines as of {first}", *(f"times as fast as {name}" for name in plain)
    )
    ratios: dict[tuple[str, str, str], Ratio] = {}
    for shape in options.shapes:
        folder = trained("encoder-decoder", shape, 10_000, options.data, options.models, 200)
        tokenizer = TriviumTokenizer.from_pretrained(folder)
        marian = AutoModelForSeq2SeqLM.from_pretrained(folder / "theirs").eval()
        engines = {"torch": AutoModelForSeq2SeqLM.from_pretrained(folder).eval()}
        with TemporaryDirectory() as temporary:
            for quantization in ("float32", "int8"):
                made = Path(temporary) / quantization
                to_ctranslate2(folder, made, quantization)
                engine = CTranslate2Model(made, inter_threads=1, intra_threads=threads)
                engines[f"ctranslate2, {quantization}"] = engine
        for search, beams in SEARCHES.items():
            written: dict[str, list[str]] = {}

            def candidate(name: str, do: Callable[..., Any], *args: Any, written: Any = written, **given: Any) -> Any:
                return lambda _: written.__setitem__(name, list(do(*args, texts, **given)))

            candidates = {
                name: candidate(name, plain_loop, marian, tokenizer, at_once=at_once, **beams)
                for name, at_once in plain.items()
            }
            for name, engine in engines.items():
                name = f"trivium translate, {name}"
                candidates[name] = candidate(name, translate, engine, tokenizer, **beams)
            seconds = interleaved(candidates, options.seconds, fewest=3)
            for name in candidates:
                same = sum(one == other for one, other in zip(written[first], written[name], strict=True))
                beside = [Ratio.of(seconds[other], seconds[name]) for other in plain]
                if name not in plain:
                    ratios["", f"{shape}, {search}", name] = beside[0]
                table.add_row(
                    *(shape, search, name, str(len(seconds[name])), f"{same} of {len(texts)}"),
                    *(f"{ratio.median:.2f} ({ratio.spread})" for ratio in beside),
                )
            table.add_section()
    Console(width=140).print(table)
    print(f"{len(texts)} sentences; {surroundings()}")
    if options.results:
        title = f"Translating a file: times as fast as {first}"
        write_ratios(ratios, title, options.results, target=3)


if __name__ == "__main__":
    main()
