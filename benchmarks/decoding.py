"""How fast `generate()` is, ours beside that of others' models with the same weights, on sentences of Multi30k.

    python benchmarks/decoding.py --data FOLDER --models OTHER_FOLDER

In each shape a translator and two language models learn for a few hundred steps from the sentences of FOLDER
(`train.en`, `train.de`), so that sentences end where sentences end; they are kept in OTHER_FOLDER and used again.
`trivium.interop` makes of each a model of transformers with the same weights. Both then translate, or continue the
first half of, the same test sentences, greedily and with five beams, one by one and 64 at once; in every round each of
the two does all, in turn. What is told is how many times longer than ours the other one took, the median of the rounds
with their quartiles, and how many outputs are the same to the last token. For single sentences also how much of the
machine's memory bandwidth is used: the weights that a token needs, over time, over that of a sum of 256 MiB.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peers import BOS, EOS, PAD, SHAPES, ours_of, ours_of_decoders
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timing import Ratio, interleaved, surroundings, write_ratios
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, get_inverse_sqrt_schedule
from transformers.utils import logging

from trivium import TriviumForCausalLM, TriviumForConditionalGeneration, TriviumTokenizer, preset_config
from trivium.data import read_lines
from trivium.interop import convert
from trivium.tokenization.train_tokenizer import train_tokenizer

SEARCHES = {"greedy": {"num_beams": 1}, "beam 5": {"num_beams": 5}}
FAMILIES = {"encoder-decoder": "marian", "decoder-only, like GPT-2": "gpt2", "decoder-only, like Llama": "llama"}
READ = "a sum of 256 MiB"
LONGEST = 60


def batches_of(
    tokenizer: TriviumTokenizer, sources: list[str], targets: list[str] | None, rows: int, steps: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of random sentences; without `targets` those of a language model."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = torch.randint(len(sources), (rows,), generator=generator).tolist()
        texts = [sources[i] for i in chosen]
        if targets is None:
            texts = [tokenizer.bos_token + text for text in texts]
        batch = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        if targets is not None:
            target = tokenizer([targets[i] for i in chosen], padding=True, return_tensors="pt")
            labels = target["input_ids"].masked_fill(target["attention_mask"] == 0, -100)
        yield {**batch, "labels": labels}


def trained(way: str, shape_name: str, vocabulary: int, data: Path, folder: Path, steps: int) -> Path:
    """The folder of a model that has learned, if it is not there yet; beside it, in `theirs`, the same of others."""
    folder = folder / f"{FAMILIES[way]}-{shape_name}-{vocabulary}"
    if (folder / "theirs" / "config.json").is_file():
        return folder
    shape = SHAPES[shape_name]
    sides = [list(read_lines(data / f"train.{side}")) for side in ("en", "de")]
    tokenizer = train_tokenizer(sides[0], target_texts=sides[1], vocab_size=10_000)
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (PAD, BOS, EOS)
    torch.manual_seed(0)
    if way == "encoder-decoder":
        layers = {"encoder_layers": shape.layers, "decoder_layers": shape.layers}
        config = preset_config("transformer-base", attention_bias=True, **layers, **ours_of(shape, vocabulary))
        model: Any = TriviumForConditionalGeneration(config)
    else:
        preset = "gpt2" if way.endswith("GPT-2") else "llama-135m"
        model = TriviumForCausalLM(preset_config(preset, **ours_of_decoders(shape, vocabulary)))
    rate = 1e-3 if shape.d_model < 512 else 3e-4  # of more a deep model with norms after its sub-layers learns nothing
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=rate, betas=(0.9, 0.98), fused=True)
    schedule = get_inverse_sqrt_schedule(optimizer, num_warmup_steps=steps // 4)
    batches = batches_of(tokenizer, sides[0], sides[1] if way == "encoder-decoder" else None, 32, steps)
    for batch in track(batches, f"Training {folder.name}", total=steps, console=Console(stderr=True)):
        model(**batch, skip_logits=True).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    convert(folder, folder / "theirs", FAMILIES[way])
    return folder


def inputs_of(way: str, tokenizer: TriviumTokenizer, texts: list[str], rows: int) -> list[dict[str, torch.Tensor]]:
    """What to translate, or, in half, to continue, in batches."""
    ids = [tokenizer(text)["input_ids"] for text in texts]
    if way != "encoder-decoder":
        ids = [[BOS, *each[: len(each) // 2]] for each in ids]
    side = "right" if way == "encoder-decoder" else "left"
    parts = [ids[start : start + rows] for start in range(0, len(ids), rows)]
    return [dict(tokenizer.pad({"input_ids": part}, padding_side=side, return_tensors="pt")) for part in parts]


def weights_of_a_token(model: torch.nn.Module) -> int:
    """Bytes of the weights that each new token needs: the decoder and the projection to the vocabulary."""
    needed = [*model.model.decoder.layers.parameters(), *model.lm_head.parameters()]
    return sum(each.numel() * each.element_size() for each in needed)


def main() -> None:
    """Print a table of all shapes; write it as JSON if `--results` is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of Multi30k")
    parser.add_argument("--models", type=Path, required=True, help="folder for the models")
    parser.add_argument("--ways", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--shapes", nargs="+", default=["tiny", "small", "base"], choices=list(SHAPES))
    parser.add_argument("--vocabularies", nargs="+", type=int, default=[10_000])
    parser.add_argument("--steps", type=int, default=200, help="to train for")
    parser.add_argument("--seconds", type=float, default=20, help="for each cell, but at least three rounds")
    parser.add_argument("--results", type=Path, help="JSON to write, for draw.py")
    options = parser.parse_args()
    logging.set_verbosity_error()
    texts = list(read_lines(options.data / "test_2016_flickr.en"))
    table = Table(
        "way",
        "shape",
        "vocabulary",
        "search",
        "at once",
        "theirs / ours",
        "quartiles",
        "rounds",
        "same",
        "bandwidth, ours",
        "theirs",
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
                    "ours": auto_class.from_pretrained(folder).eval(),
                    "theirs": auto_class.from_pretrained(folder / "theirs").eval(),
                }
                assert type(models["ours"]).__name__.startswith("Trivium")
                for at_once, count in ((1, 4), (64, 64)):
                    batches = inputs_of(way, tokenizer, texts[:count], at_once)
                    for search, beams in SEARCHES.items():
                        written: dict[str, list[torch.Tensor]] = {}

                        def generate(
                            name: str,
                            batches: Any = batches,
                            beams: Any = beams,
                            models: Any = models,
                            written: Any = written,
                        ) -> None:
                            written[name] = [
                                models[name].generate(
                                    **batch,
                                    **beams,
                                    do_sample=False,
                                    max_length=LONGEST,
                                    pad_token_id=PAD,
                                    eos_token_id=EOS,
                                    bos_token_id=BOS,
                                )
                                for batch in batches
                            ]

                        candidates = {name: lambda _, name=name: generate(name) for name in models}
                        if at_once == 1:
                            candidates[READ] = lambda _: memory.sum()
                        seconds = interleaved(candidates, options.seconds, fewest=3)
                        ratio = Ratio.of(seconds["theirs"], seconds["ours"])
                        panel = f"{type(models['theirs']).__name__}, batch size {at_once}"
                        ratios[panel, f"{shape}, {vocabulary:,}", search] = ratio
                        pairs = [
                            rows for pair in zip(*written.values(), strict=True) for rows in zip(*pair, strict=True)
                        ]
                        same = sum(strip(a) == strip(b) for a, b in pairs)
                        shares = ["", ""]
                        if at_once == 1:
                            start = 1 if way == "encoder-decoder" else batches[0]["input_ids"].shape[1]
                            needed = sum(each.shape[1] - start for each in written["ours"]) * weights_of_a_token(
                                models["ours"]
                            )
                            peak = 2**28 / torch.tensor(seconds[READ]).median()
                            shares = [f"{needed / torch.tensor(seconds[name]).median() / peak:.0%}" for name in models]
                        Console(stderr=True).print(f"{folder.name}, {search}, {at_once} at once: {ratio.median:.2f}")
                        table.add_row(
                            *(
                                way,
                                shape,
                                f"{vocabulary:,}",
                                search,
                                str(at_once),
                                f"{ratio.median:.2f}",
                                ratio.spread,
                            ),
                            *(str(len(seconds["ours"])), f"{same} of {len(pairs)}", *shares),
                        )

                table.add_section()
    Console(width=140).print(table)
    print(surroundings())
    if options.results:
        write_ratios(ratios, "generate(): time as a multiple of Trivium's", options.results, target=1.5)


def strip(ids: torch.Tensor) -> list[int]:
    """Without the padding at the end, of which there may be more in one batch than in another."""
    kept = ids.tolist()
    while kept and kept[-1] in (PAD, EOS):
        kept.pop()
    return kept


if __name__ == "__main__":
    main()
