"""Compare inference engines (torch, ONNX Runtime, CTranslate2) on one model and sentences of Multi30k.

All engines run under the same code (`trivium.translation.translate`), with the same batches, maximum length and
tokenizer, in float32 and with weights of 8 bits. FOLDER contains `test_2016_flickr.en` and `test_2016_flickr.de`; the
model is one saved by `trivium train recipes/multi30k.yaml`:

    OMP_NUM_THREADS=1 python benchmarks/engines_multi30k.py --data FOLDER --model runs/multi30k

All engines run in one process, in turn, so that their ratios are meaningful on any machine: the speedup over torch is
the median over the rounds, with quartiles. Seconds are those of the fastest round, to exclude interference from other
processes. The printed results are also written to `--output`, as JSON.
"""

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from timing import Ratio, interleaved
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from trivium.data import read_lines
from trivium.interop.ctranslate2 import CTranslate2Model, to_ctranslate2
from trivium.interop.onnx import OnnxModel, to_onnx
from trivium.metrics import load_metric
from trivium.storage.atomic import write_whole
from trivium.translation import translate

SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {"num_beams": 1},
    "beam 5": {"num_beams": 5, "early_stopping": False},
    "beam 5, early stopping": {"num_beams": 5, "early_stopping": True},
}
COLUMNS = ("search", "engine", "identical", "sacreBLEU", "seconds", "target tokens/s", "times as fast", "quartiles")


def main(
    data: Annotated[Path, typer.Option(help="Folder of the sentences of Multi30k, one per line.")],
    model: Annotated[Path, typer.Option(help="Folder of a saved encoder-decoder.")],
    output: Annotated[Path, typer.Option(help="JSON file for the results.")] = Path("engines.json"),
    split: Annotated[str, typer.Option(help="Name of the files, without the language.")] = "test_2016_flickr",
    searches: Annotated[
        list[str] | None, typer.Option("--search", help="Search to run, by default all. Repeatable.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Timed rounds per search.")] = 3,
    sentences: Annotated[int, typer.Option(help="Use only this many sentences, from the first.")] = 1000,
    batch_size: Annotated[int, typer.Option(help="Batch size, in sentences.")] = 64,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
) -> None:
    """Translate sentences from English to German with every engine, and compare speed and outputs."""
    torch.set_num_threads(threads)
    sources, references = (list(read_lines(data / f"{split}.{side}"))[:sentences] for side in ("en", "de"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    engines: dict[str, Any] = {
        "torch": AutoModelForSeq2SeqLM.from_pretrained(model).eval(),
        "ONNX float32": OnnxModel.from_pretrained(model),
    }
    with TemporaryDirectory() as temporary:
        to_onnx(model, Path(temporary) / "onnx", quantization="int8")
        engines["ONNX int8"] = OnnxModel.from_pretrained(Path(temporary) / "onnx")
        for quantization in ("float32", "int8"):
            folder = Path(temporary) / quantization
            to_ctranslate2(model, folder, quantization)
            engines[f"CTranslate2 {quantization}"] = CTranslate2Model(folder, inter_threads=1, intra_threads=threads)

    results = []
    for search in searches or SEARCHES:
        options = {"batch_size": batch_size, **SEARCHES[search]}
        texts, seconds = translate_in_turn(engines, tokenizer, sources, rounds, **options)
        for name in engines:
            same = sum(a == b for a, b in zip(texts[name], texts["torch"], strict=True)) / len(sources)
            tokens = sum(map(len, tokenizer(text_target=texts[name])["input_ids"]))
            bleu = load_metric("sacrebleu").compute(predictions=texts[name], references=references)["score"]
            fastest, speedup = min(seconds[name]), Ratio.of(seconds["torch"], seconds[name])
            row = (search, name, same, bleu, fastest, tokens / fastest, speedup.median, speedup.spread)
            results.append(dict(zip(COLUMNS, row, strict=True)))
    print(as_table(results))
    setting = {"split": split, "sentences": len(sources), "batch_size": batch_size, "threads": threads}
    content = {**setting, "rounds": rounds, "load": os.getloadavg(), "results": results}
    write_whole(output, json.dumps(content, indent=2) + "\n")


def translate_in_turn(
    engines: dict[str, Any], tokenizer: Any, sources: list[str], rounds: int, **options: Any
) -> tuple[dict[str, list[str]], dict[str, list[float]]]:
    """Return the translations and the seconds of each round, by engine."""
    texts: dict[str, list[str]] = {}

    def run(name: str) -> None:
        texts[name] = list(translate(engines[name], tokenizer, sources, **options))

    candidates = {name: lambda _, name=name: run(name) for name in engines}
    return texts, interleaved(candidates, seconds=0, warmup_rounds=0, min_rounds=rounds)


def as_table(results: list[dict[str, Any]]) -> str:
    """Format the results as a Markdown table."""
    formats = ("", "", ".1%", ".2f", ".1f", ",.0f", ".2f", "")
    rows = [[format(row[name], spec) for name, spec in zip(COLUMNS, formats, strict=True)] for row in results]
    rule = ["---"] * 2 + ["---:"] * (len(COLUMNS) - 2)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [COLUMNS, rule, *rows])


if __name__ == "__main__":
    typer.run(main)
