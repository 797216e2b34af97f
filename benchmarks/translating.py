"""How fast a file is translated: `trivium translate`, by each of its engines, beside a plain loop with MarianMTModel.

    python benchmarks/translating.py --data FOLDER --models OTHER_FOLDER

The weights are the same everywhere: those that `decoding.py` has trained in OTHER_FOLDER, or trains now. The plain
loop takes 64 sentences at a time as they stand in the file (`test_2016_flickr.en` of FOLDER), pads them and calls
`generate()`. `trivium translate` sorts them by length before. All translate the file in every round, in turn; what is
told is how many times as fast as the plain loop each one was, the median of the rounds with their quartiles.
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
from timing import Ratio, draw_ratios, interleaved, surroundings
from transformers import AutoModelForSeq2SeqLM
from transformers.utils import logging

from trivium import TriviumTokenizer
from trivium.data import read_lines
from trivium.interop.ctranslate2 import CTranslate2Model, to_ctranslate2
from trivium.translation import translate

AT_ONCE = 64
PLAIN = "MarianMTModel, plain loop"


def plain_loop(model: Any, tokenizer: TriviumTokenizer, texts: list[str], **options: Any) -> list[str]:
    """What anyone writes who wants translations."""
    translations = []
    for start in range(0, len(texts), AT_ONCE):
        inputs = tokenizer(texts[start : start + AT_ONCE], padding=True, return_tensors="pt")
        longest = inputs["input_ids"].shape[1] + 50
        ids = model.generate(**inputs, **options, max_length=longest)
        translations += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return translations


def main() -> None:
    """Print a table of all shapes, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of Multi30k")
    parser.add_argument("--models", type=Path, required=True, help="folder for the models")
    parser.add_argument("--shapes", nargs="+", default=["tiny", "small", "base"], choices=list(SHAPES))
    parser.add_argument("--sentences", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=40, help="for each cell, but at least three rounds")
    parser.add_argument("--plot", type=Path, help="picture to write")
    options = parser.parse_args()
    logging.set_verbosity_error()
    texts = list(read_lines(options.data / "test_2016_flickr.en"))[: options.sentences]
    threads = torch.get_num_threads()
    table = Table("shape", "search", "who", "times as fast", "quartiles", "rounds", "same lines")
    ratios: dict[tuple[str, str], Ratio] = {}
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

            candidates = {PLAIN: candidate(PLAIN, plain_loop, marian, tokenizer, **beams)}
            for name, engine in engines.items():
                name = f"trivium translate, {name}"
                candidates[name] = candidate(name, translate, engine, tokenizer, batch_size=AT_ONCE, **beams)
            seconds = interleaved(candidates, options.seconds, fewest=3)
            for name in candidates:
                ratio = Ratio.of(seconds[PLAIN], seconds[name])
                same = sum(one == other for one, other in zip(written[PLAIN], written[name], strict=True))
                if name != PLAIN:
                    ratios[f"{shape}, {search}", name] = ratio
                table.add_row(
                    *(shape, search, name, f"{ratio.median:.2f}", ratio.spread, str(len(seconds[name]))),
                    f"{same} of {len(texts)}",
                )
            table.add_section()
    Console(width=140).print(table)
    print(f"{len(texts)} sentences; {surroundings()}")
    if options.plot:
        title = "Translating a file: how many times as fast as a plain loop with MarianMTModel"
        draw_ratios(ratios, title, options.plot, target=3)


if __name__ == "__main__":
    main()
