"""Measure what the section `learning` of a recipe costs, on Multi30k with the model of the recipe `multi30k-tiny`.

One model takes a training step without and with R-Drop in turn, on the same token batch: forward pass, loss, backward
pass and AdamW. Before, the training texts are segmented for some epochs of subword dropout, in seconds of CPU time, and
once with the dropout of `tokenizers`. FOLDER contains the sentences, one per line, in `train.en` and `train.de`:

    OMP_NUM_THREADS=1 python benchmarks/learning.py --data FOLDER
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from timing import Ratio, environment, interleaved
from transformers import set_seed

from trivium.data import load_data
from trivium.data.subword_dropout import SubwordDropoutPairs
from trivium.recipe import load_recipe
from trivium.tasks import make_collator
from trivium.training import load_or_build
from trivium.training.r_drop import RDrop
from trivium.training.trainer import RunTrainer

PLAIN = "plain"
DROPOUTS = (0.0, 0.1)


def main(
    data: Annotated[Path, typer.Option(help="Folder of the sentences.")],
    max_tokens: Annotated[int, typer.Option(help="Tokens per batch.")] = 8192,
    seconds: Annotated[float, typer.Option(help="Time after which no new round of steps starts.")] = 60,
    epochs: Annotated[int, typer.Option(help="Epochs to segment, for each probability.")] = 5,
) -> None:
    """Time steps and epochs, and print them."""
    files = [f"data.train={data}/train", "data.validation=null", "data.test=null", "training.eval_strategy='no'"]
    recipe = load_recipe("multi30k-tiny", [*files, f"inputs.max_tokens={max_tokens}"])
    args = recipe.training_arguments()
    args.remove_unused_columns = False
    set_seed(args.seed)
    rows = load_data(recipe.data, recipe.kind.columns)["train"]
    model, tokenizer = load_or_build(recipe, rows)
    pairs = {name: rows[name] for name in ("source", "target")}
    datasets = {}
    for dropout in DROPOUTS:
        start = time.process_time()
        datasets[dropout] = SubwordDropoutPairs(pairs, tokenizer, model.config.max_position_embeddings, dropout, 0)
        print(
            f"subword_dropout={dropout}: words of {len(rows):,} pairs in {time.process_time() - start:.1f} s", end=""
        )
        counts, times = [], []
        for epoch in range(epochs):
            start = time.process_time()
            counts.append(sum(int(side.sum()) for side in datasets[dropout].lengths(epoch)))
            times.append(time.process_time() - start)
        print(
            f", each epoch in {min(times):.2f} to {max(times):.2f} s, {sum(counts) / epochs:,.0f} tokens", flush=True
        )
    backend = tokenizer.backend_tokenizer
    backend.model.dropout = DROPOUTS[-1]
    tokens = sum(len(encoding.ids) for side in pairs.values() for encoding in backend.encode_batch(side))
    backend.model.dropout = None
    print(f"tokenizers, dropout={DROPOUTS[-1]}: {tokens:,} tokens", flush=True)

    collator = make_collator(recipe.kind, tokenizer, model, recipe.inputs)
    trainer = RunTrainer(model, args, collator, datasets[0.0], processing_class=tokenizer, max_tokens=max_tokens)
    batches = list(trainer.get_train_dataloader())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    model.train()

    def step(forward: Callable[..., Any], turn: int) -> None:
        forward(**batches[turn % len(batches)])["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    steps = {PLAIN: partial(step, partial(model, skip_logits=True))}
    steps["r_drop"] = partial(step, partial(RDrop(model, 5.0), model))
    taken = interleaved(steps, seconds)
    for name, times in taken.items():
        ratio = Ratio.of(times, taken[PLAIN])
        print(f"{name}: {ratio.median:.2f} ({ratio.spread}) times the plain step, {len(times)} rounds")
    print(f"batches of up to {max_tokens:,} tokens; {environment()}")


if __name__ == "__main__":
    typer.run(main)
