"""Measure the padding and time saved by token-budget batches, on Multi30k with the model of the recipe `multi30k`.

The benchmark compares four ways to form batches of similar size: 64 random sentences, 64 sentences with the Trainer's
`group_by_length`, and `inputs.max_tokens` on a dataset in memory and on a stream, with several buffer sizes. It counts
the padding of all collated batches of an epoch. It then trains one model on one batch of each method in turn, so that
load from other processes affects all methods equally. FOLDER contains the sentences, one per line, in `train.en` and
`train.de`:

    OMP_NUM_THREADS=1 python benchmarks/batching.py --data FOLDER
"""

import os
import time
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import set_seed

from trivium.data import load_data
from trivium.recipe import load_recipe
from trivium.tasks import encode_data, make_collator
from trivium.training import load_or_build
from trivium.training.trainer import RunTrainer

BY_TOKENS = ["inputs.max_tokens=1152"]
BY_ROWS = ["inputs.max_tokens=null", "training.per_device_train_batch_size=64"]
STREAMED = [*BY_TOKENS, "data.streaming=true", "training.max_steps=1"]
METHODS = {
    "64 random sentences": [*BY_ROWS, "training.train_sampling_strategy=random"],
    "64 sentences, group_by_length": [*BY_ROWS, "training.train_sampling_strategy=group_by_length"],
    "up to 1152 tokens": BY_TOKENS,
    "up to 1152 tokens, streamed, buffer of 1,000 rows": [*STREAMED, "inputs.buffer_size=1000"],
    "up to 1152 tokens, streamed, buffer of 5,000 rows": [*STREAMED, "inputs.buffer_size=5000"],
    "up to 1152 tokens, streamed, buffer of 20,000 rows": STREAMED,
}
WARMUP_STEPS = 3


def counts(batch: dict[str, Any]) -> torch.Tensor:
    """Count rows, padded tokens on the longer side, padded and real tokens on both sides, and real target tokens."""
    source, target = batch["attention_mask"], batch["labels"] != -100
    sizes = (source.numel(), target.numel())
    real = (source.sum().item(), target.sum().item())
    return torch.tensor([len(source), max(sizes), sum(sizes), sum(real), real[1]])


def main(
    data: Annotated[Path, typer.Option(help="Folder of the sentences.")],
    steps: Annotated[int, typer.Option(help="Timed steps per method.")] = 60,
) -> None:
    """Count the padding of each batching method, time training steps, and print a table."""
    files = [f"data.train={data}/train", "data.validation=null", "data.test=null", "training.eval_strategy='no'"]
    recipes = {name: load_recipe("multi30k", [*files, *overrides]) for name, overrides in METHODS.items()}
    recipe = next(iter(recipes.values()))
    set_seed(recipe.training_arguments().seed)
    model, tokenizer = load_or_build(recipe, load_data(recipe.data, recipe.kind.columns)["train"])

    loaders = {}
    for name, recipe in recipes.items():
        args = recipe.training_arguments()
        args.remove_unused_columns = False
        collator = make_collator(recipe.kind, tokenizer, model, recipe.inputs)
        rows = load_data(recipe.data, recipe.kind.columns)
        encoded = encode_data(rows, recipe.kind, tokenizer, model.config, recipe.inputs)["train"]
        sizes = {"max_tokens": recipe.inputs.max_tokens, "buffer_size": recipe.inputs.buffer_size}
        trainer = RunTrainer(model, args, collator, encoded, processing_class=tokenizer, **sizes)
        loaders[name] = trainer.get_train_dataloader()
    epochs = {name: torch.stack([counts(batch) for batch in loader]).double() for name, loader in loaders.items()}

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    model.train()
    seconds, tokens = dict.fromkeys(METHODS, 0.0), dict.fromkeys(METHODS, 0.0)
    endless: dict[str, Iterator[Any]] = {name: chain.from_iterable(repeat(loaders[name])) for name in METHODS}
    for step in range(WARMUP_STEPS + steps):
        for name, batches in endless.items():
            start = time.perf_counter()
            batch = next(batches)
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if step >= WARMUP_STEPS:
                seconds[name] += time.perf_counter() - start
                tokens[name] += counts(batch)[-1].item()

    print(f"{torch.get_num_threads()} threads, machine load {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores")
    print(
        "| batching | batches per epoch | rows | mean tokens | max tokens | padding | steps/s | real target tokens/s |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, epoch in epochs.items():
        mean, most, (_, _, padded, real, _) = epoch.mean(dim=0), epoch.max(dim=0).values, epoch.sum(dim=0)
        print(
            f"| {name} | {len(epoch)} | {mean[0]:.1f} | {mean[1]:,.0f} | {most[1]:,.0f} | {1 - real / padded:.1%} | "
            f"{steps / seconds[name]:.2f} | {tokens[name] / seconds[name]:,.0f} |"
        )


if __name__ == "__main__":
    typer.run(main)
