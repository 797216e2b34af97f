"""The same model twice, computed by torch and by onnxruntime, on the 1,000 test sentences of Multi30k.

Both are driven by the same `generate()`, with the same code around it (`trivium.translation.translate`): the same
batches, the same longest output, the same tokenizer. What differs is who computes a step. FOLDER holds
`test_2016_flickr.en` and `test_2016_flickr.de`; the model is one that `trivium train recipes/multi30k.yaml` saved:

    OMP_NUM_THREADS=1 python benchmarks/onnx_multi30k.py --data FOLDER --model runs/multi30k

Both run in one process, by turns, so that ratios mean something wherever it runs; of several rounds, each takes its
fastest, since other programs disturb. What it prints is also in `--output`, as JSON.
"""

import json
import os
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from ctranslate2_multi30k import COLUMNS, as_table
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from trivium.cli.common import write
from trivium.data import read_lines
from trivium.interop.onnx import OnnxModel
from trivium.metrics import load_metric
from trivium.translation import translate

SEARCHES = {"greedy": 1, "beam 5": 5}


def main(
    data: Annotated[Path, typer.Option(help="Folder with the sentences of Multi30k, one a line.")],
    model: Annotated[Path, typer.Option(help="Folder of a saved encoder-decoder.")],
    output: Annotated[Path, typer.Option(help="File for the results.")] = Path("onnx.json"),
    rounds: Annotated[int, typer.Option(help="How often each engine translates everything.")] = 3,
    sentences: Annotated[int, typer.Option(help="Only the first so many.")] = 1000,
    batch_size: Annotated[int, typer.Option(help="Sentences that are translated at once.")] = 64,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
) -> None:
    """Translate test_2016_flickr from English to German with both, and compare."""
    torch.set_num_threads(threads)
    sources, references = (list(read_lines(data / f"test_2016_flickr.{side}"))[:sentences] for side in ("en", "de"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    engines: dict[str, Any] = {
        "transformers": AutoModelForSeq2SeqLM.from_pretrained(model).eval(),
        "ONNX": OnnxModel.from_pretrained(model),
    }
    results = []
    for search, beams in SEARCHES.items():
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        texts: dict[str, list[str]] = {}
        for _ in range(rounds):
            for name, engine in engines.items():
                start = time.perf_counter()
                texts[name] = list(translate(engine, tokenizer, sources, batch_size=batch_size, num_beams=beams))
                seconds[name].append(time.perf_counter() - start)
        for name in engines:
            same = sum(ours == theirs for ours, theirs in zip(texts[name], texts["transformers"], strict=True))
            tokens = sum(map(len, tokenizer(text_target=texts[name])["input_ids"]))
            bleu = load_metric("sacrebleu").compute(predictions=texts[name], references=references)["score"]
            fastest, others = min(seconds[name]), min(seconds["transformers"])
            row = (search, name, same / len(sources), bleu, fastest, tokens / fastest, others / fastest)
            results.append(dict(zip(COLUMNS, row, strict=True)))
    print(as_table(results))
    setting = {"sentences": len(sources), "batch_size": batch_size, "threads": threads, "rounds": rounds}
    write(output, json.dumps({**setting, "load": os.getloadavg(), "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
