"""What batches by tokens save: padding, and time, on Multi30k with the model of the recipe `multi30k`.

Ways to make batches of about the same size: 64 random sentences, 64 sentences by the Trainer's `group_by_length`, and
by `inputs.max_tokens`, once knowing all lengths and from a stream with buffers of several sizes. Padding is counted in
a whole epoch as the collator makes it. Then one model takes a step with a batch of each in turn, so that what else the
machine does takes from all alike. FOLDER holds the sentences, one a line, in `train.en` and `train.de`:

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

BY_TOKENS = [
    "inputs.max_tokens=1152",
    "training.per_device_train_batch_size=null",
    "training.train_sampling_strategy=null",
]
STREAMED = [*BY_TOKENS, "data.streaming=true", "training.max_steps=1"]
WAYS = {
    "64 random sentences": ["training.train_sampling_strategy=random"],
    "64 sentences, group_by_length": [],
    "up to 1152 tokens": BY_TOKENS,
    "the same, streamed, 1,000 rows at once": [*STREAMED, "inputs.buffer_size=1000"],
    "the same, streamed, 5,000 rows at once": [*STREAMED, "inputs.buffer_size=5000"],
    "the same, streamed, 20,000 rows at once": STREAMED,
}
NOT_TIMED = 3


def counts(batch: dict[str, Any]) -> torch.Tensor:
    """Rows; tokens on the longer side, with padding; on both sides, with it and without; and real target tokens."""
    source, target = batch["attention_mask"], batch["labels"] != -100
    sizes = (source.numel(), target.numel())
    real = (source.sum().item(), target.sum().item())
    return torch.tensor([len(source), max(sizes), sum(sizes), sum(real), real[1]])


def main(
    data: Annotated[Path, typer.Option(help="The folder of the sentences.")],
    steps: Annotated[int, typer.Option(help="Steps to time, of each way.")] = 60,
) -> None:
    """Count, time, and print the rows of a table."""
    files = [f"data.train={data}/train", "data.validation=null", "data.test=null", "training.eval_strategy='no'"]
    recipes = {way: load_recipe("multi30k", [*files, *overrides]) for way, overrides in WAYS.items()}
    recipe = next(iter(recipes.values()))
    set_seed(recipe.training_arguments().seed)
    model, tokenizer = load_or_build(recipe, load_data(recipe.data, recipe.kind.columns)["train"])

    loaders = {}
    for way, each in recipes.items():
        args = each.training_arguments()
        args.remove_unused_columns = False
        collator = make_collator(each.kind, tokenizer, model, each.inputs)
        rows = load_data(each.data, each.kind.columns)
        encoded = encode_data(rows, each.kind, tokenizer, model.config, each.inputs)["train"]
        sizes = {"max_tokens": each.inputs.max_tokens, "buffer_size": each.inputs.buffer_size}
        trainer = RunTrainer(model, args, collator, encoded, processing_class=tokenizer, **sizes)
        loaders[way] = trainer.get_train_dataloader()
    epochs = {way: torch.stack([counts(batch) for batch in loader]).double() for way, loader in loaders.items()}

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    model.train()
    seconds, tokens = dict.fromkeys(WAYS, 0.0), dict.fromkeys(WAYS, 0.0)
    endless: dict[str, Iterator[Any]] = {way: chain.from_iterable(repeat(loaders[way])) for way in WAYS}
    for step in range(NOT_TIMED + steps):
        for way, batches in endless.items():
            start = time.perf_counter()
            batch = next(batches)
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if step >= NOT_TIMED:
                seconds[way] += time.perf_counter() - start
                tokens[way] += counts(batch)[-1].item()

    print(f"{torch.get_num_threads()} thread, load of the machine {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores")
    print("| batches | an epoch | rows | tokens, mean | tokens, most | padding | steps/s | real target tokens/s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for way, epoch in epochs.items():
        mean, most, (_, _, padded, real, _) = epoch.mean(dim=0), epoch.max(dim=0).values, epoch.sum(dim=0)
        print(
            f"| {way} | {len(epoch)} | {mean[0]:.1f} | {mean[1]:,.0f} | {most[1]:,.0f} | {1 - real / padded:.1%} | "
            f"{steps / seconds[way]:.2f} | {tokens[way] / seconds[way]:,.0f} |"
        )


if __name__ == "__main__":
    typer.run(main)
