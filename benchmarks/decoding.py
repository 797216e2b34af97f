"""Compare the speed of `generate()` of Trivium and native transformers models with the same weights, on Multi30k.

    python benchmarks/decoding.py --data FOLDER --models MODELS

For each shape, a translation model and two language models are trained for a few hundred steps on the sentences of
FOLDER (`train.en`, `train.de`), so that outputs have realistic lengths; they are cached in MODELS. `trivium.interop`
converts each to its native transformers class. Both then translate the same test sentences, or continue their first
halves, with greedy search and five beams, at batch sizes 1 and 64, taking turns in every round. Reported are the time
of the native model as a multiple of Trivium's (median and quartiles over the rounds), and the number of identical
outputs. For batch size 1, memory bandwidth utilization is reported too: the bytes of weights read per second, relative
to a sum of 256 MiB.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peers import BOS, EOS, PAD, SHAPES, Shape, trivium_decoder_fields, trivium_fields
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timing import Ratio, environment, interleaved, write_ratios
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, get_inverse_sqrt_schedule
from transformers.utils import logging

from trivium import TriviumForCausalLM, TriviumForConditionalGeneration, TriviumTokenizer, preset_config
from trivium.interop import convert
from trivium.tokenization.train_tokenizer import train_tokenizer

SEARCHES = {"greedy": {"num_beams": 1}, "beam 5": {"num_beams": 5}}
FAMILIES = {"encoder-decoder": "marian", "decoder-only, like GPT-2": "gpt2", "decoder-only, like Llama": "llama"}
BANDWIDTH_PROBE = "a sum of 256 MiB"
MAX_LENGTH = 60


def read_sentences(path: Path) -> list[str]:
    """Read one sentence per line, without `trivium.data`, which needs `datasets`."""
    return path.read_text(encoding="utf-8").rstrip("\n").split("\n")


def batches_of(
    tokenizer: TriviumTokenizer, sources: list[str], targets: list[str] | None, rows: int, steps: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield batches of random sentences; without `targets`, for a language model."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        indices = torch.randint(len(sources), (rows,), generator=generator).tolist()
        texts = [sources[i] for i in indices]
        if targets is None:
            texts = [tokenizer.bos_token + text for text in texts]
        batch = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        if targets is not None:
            target = tokenizer([targets[i] for i in indices], padding=True, return_tensors="pt")
            labels = target["input_ids"].masked_fill(target["attention_mask"] == 0, -100)
        yield {**batch, "labels": labels}


def trained(
    way: str,
    shape_name: str,
    vocabulary: int,
    data: Path,
    folder: Path,
    steps: int,
    shape: Shape | None = None,
    device: str | torch.device = "cpu",
) -> Path:
    """Train a model unless it is cached, and return its folder; the native model is in its subfolder `native`."""
    folder = folder / f"{FAMILIES[way]}-{shape_name}-{vocabulary}"
    if (folder / "native" / "config.json").is_file():
        return folder
    shape = shape or SHAPES[shape_name]
    sides = [read_sentences(data / f"train.{side}") for side in ("en", "de")]
    tokenizer = train_tokenizer(sides[0], target_texts=sides[1], vocab_size=10_000)
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (PAD, BOS, EOS)
    torch.manual_seed(0)
    if way == "encoder-decoder":
        layers = {"encoder_layers": shape.layers, "decoder_layers": shape.layers}
        config = preset_config("transformer-base", attention_bias=True, **layers, **trivium_fields(shape, vocabulary))
        model: Any = TriviumForConditionalGeneration(config)
    else:
        preset = "gpt2" if way.endswith("GPT-2") else "llama-135m"
        model = TriviumForCausalLM(preset_config(preset, **trivium_decoder_fields(shape, vocabulary)))
    rate = 1e-3 if shape.d_model < 512 else 3e-4  # higher rates do not converge in deep post-norm models
    model.to(device)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=rate, betas=(0.9, 0.98), fused=True)
    schedule = get_inverse_sqrt_schedule(optimizer, num_warmup_steps=steps // 4)
    batches = batches_of(tokenizer, sides[0], sides[1] if way == "encoder-decoder" else None, 32, steps)
    for batch in track(batches, f"Training {folder.name}", total=steps, console=Console(stderr=True)):
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        model(**batch, skip_logits=True).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.cpu().eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    convert(folder, folder / "native", FAMILIES[way])
    return folder


def inputs_of(way: str, tokenizer: TriviumTokenizer, texts: list[str], rows: int) -> list[dict[str, torch.Tensor]]:
    """Return batches of the sentences to translate, or of their first halves to continue."""
    ids = [tokenizer(text)["input_ids"] for text in texts]
    if way != "encoder-decoder":
        ids = [[BOS, *row[: len(row) // 2]] for row in ids]
    side = "right" if way == "encoder-decoder" else "left"
    parts = [ids[start : start + rows] for start in range(0, len(ids), rows)]
    return [dict(tokenizer.pad({"input_ids": part}, padding_side=side, return_tensors="pt")) for part in parts]


def bytes_per_token(model: torch.nn.Module) -> int:
    """Return the bytes of weights read per generated token: those of the decoder and the LM head."""
    parameters = [*model.model.decoder.layers.parameters(), *model.lm_head.parameters()]
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


def main() -> None:
    """Print a table of all shapes; also write it as JSON if `--results` is set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of Multi30k")
    parser.add_argument("--models", type=Path, required=True, help="cache folder of the models")
    parser.add_argument("--ways", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--shapes", nargs="+", default=["tiny", "small", "base"], choices=list(SHAPES))
    parser.add_argument("--vocabularies", nargs="+", type=int, default=[10_000])
    parser.add_argument("--steps", type=int, default=200, help="training steps")
    parser.add_argument("--seconds", type=float, default=20, help="per cell, but at least three rounds")
    parser.add_argument("--results", type=Path, help="JSON output for draw.py")
    options = parser.parse_args()
    logging.set_verbosity_error()
    texts = read_sentences(options.data / "test_2016_flickr.en")
    table = Table(
        "architecture",
        "shape",
        "vocabulary",
        "search",
        "batch size",
        "native / Trivium",
        "quartiles",
        "rounds",
        "same",
        "bandwidth, Trivium",
        "native",
    )
    ratios: dict[tuple[str, str, str], Ratio] = {}
    memory = torch.ones(2**26)
    for way in options.ways:
        auto_class: Any = AutoModelForSeq2SeqLM if way == "encoder-decoder" else AutoModelForCausalLM
        for shape in options.shapes:
            for vocabulary in options.vocabularies:
                folder = trained(way, shape, vocabulary, options.data, options.models, options.steps)
                tokenizer = TriviumTokenizer.from_pretrained(folder)
                models = {
                    "Trivium": auto_class.from_pretrained(folder).eval(),
                    "native": auto_class.from_pretrained(folder / "native").eval(),
                }
                assert type(models["Trivium"]).__name__.startswith("Trivium")
                for batch_size, count in ((1, 4), (64, 64)):
                    batches = inputs_of(way, tokenizer, texts[:count], batch_size)
                    for search, beams in SEARCHES.items():
                        outputs: dict[str, list[torch.Tensor]] = {}

                        def generate(
                            name: str,
                            batches: Any = batches,
                            beams: Any = beams,
                            models: Any = models,
                            outputs: Any = outputs,
                        ) -> None:
                            outputs[name] = [
                                models[name].generate(
                                    **batch,
                                    **beams,
                                    do_sample=False,
                                    max_length=MAX_LENGTH,
                                    pad_token_id=PAD,
                                    eos_token_id=EOS,
                                    bos_token_id=BOS,
                                )
                                for batch in batches
                            ]

                        candidates = {name: lambda _, name=name: generate(name) for name in models}
                        if batch_size == 1:
                            candidates[BANDWIDTH_PROBE] = lambda _: memory.sum()
                        seconds = interleaved(candidates, options.seconds, min_rounds=3)
                        ratio = Ratio.of(seconds["native"], seconds["Trivium"])
                        panel = f"{type(models['native']).__name__}, batch size {batch_size}"
                        ratios[panel, f"{shape}, {vocabulary:,}", search] = ratio
                        pairs = [
                            rows for pair in zip(*outputs.values(), strict=True) for rows in zip(*pair, strict=True)
                        ]
                        same = sum(strip_padding(a) == strip_padding(b) for a, b in pairs)
                        shares = ["", ""]
                        if batch_size == 1:
                            start = 1 if way == "encoder-decoder" else batches[0]["input_ids"].shape[1]
                            tokens = sum(ids.shape[1] - start for ids in outputs["Trivium"])
                            bytes_read = tokens * bytes_per_token(models["Trivium"])
                            peak = 2**28 / torch.tensor(seconds[BANDWIDTH_PROBE]).median()
                            shares = [
                                f"{bytes_read / torch.tensor(seconds[name]).median() / peak:.0%}" for name in models
                            ]
                        Console(stderr=True).print(
                            f"{folder.name}, {search}, batch size {batch_size}: {ratio.median:.2f}"
                        )
                        table.add_row(
                            way,
                            shape,
                            f"{vocabulary:,}",
                            search,
                            str(batch_size),
                            f"{ratio.median:.2f}",
                            ratio.spread,
                            str(len(seconds["Trivium"])),
                            f"{same} of {len(pairs)}",
                            *shares,
                        )

                table.add_section()
    Console(width=140).print(table)
    print(environment())
    if options.results:
        write_ratios(ratios, "generate(): time as a multiple of Trivium's", options.results, target=1.5)


def strip_padding(ids: torch.Tensor) -> list[int]:
    """Strip trailing padding, whose length depends on the batch."""
    kept = ids.tolist()
    while kept and kept[-1] in (PAD, EOS):
        kept.pop()
    return kept


if __name__ == "__main__":
    main()
