"""Measure what R-Drop costs, on Multi30k with the model of the recipe `multi30k-tiny`.

One model takes a training step without and with R-Drop in turn, on the same token batch: forward pass, loss, backward
pass and AdamW. FOLDER contains the sentences, one per line, in `train.en` and `train.de`:

    OMP_NUM_THREADS=1 python benchmarks/r_drop.py --data FOLDER
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from timing import Ratio, environment, interleaved
from transformers import set_seed

from trivium.data import load_data
from trivium.recipe import load_recipe
from trivium.tasks import encode_data, make_collator
from trivium.training import load_or_build
from trivium.training.r_drop import RDrop
from trivium.training.trainer import RunTrainer


def main(
    data: Annotated[Path, typer.Option(help="Folder of the sentences.")],
    max_tokens: Annotated[int, typer.Option(help="Tokens per batch.")] = 8192,
    seconds: Annotated[float, typer.Option(help="Time after which no new round of steps starts.")] = 60,
) -> None:
    """Time steps in turn, and print their ratio."""
    files = [f"data.train={data}/train", "data.validation=null", "data.test=null", "training.eval_strategy='no'"]
    recipe = load_recipe("multi30k-tiny", [*files, f"inputs.max_tokens={max_tokens}"])
    args = recipe.training_arguments()
    args.remove_unused_columns = False
    set_seed(args.seed)
    splits = load_data(recipe.data, recipe.kind.columns)
    model, tokenizer = load_or_build(recipe, splits["train"])
    rows = encode_data(splits, recipe.kind, tokenizer, model.config, recipe.inputs)["train"]
    collator = make_collator(recipe.kind, tokenizer, model, recipe.inputs)
    trainer = RunTrainer(model, args, collator, rows, processing_class=tokenizer, max_tokens=max_tokens)
    batches = list(trainer.get_train_dataloader())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    model.train()

    def step(forward: Callable[..., Any], turn: int) -> None:
        forward(**batches[turn % len(batches)])["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    steps = {
        "plain": partial(step, partial(model, skip_logits=True)),
        "r_drop": partial(step, partial(RDrop(model, 5.0), model)),
    }
    taken = interleaved(steps, seconds)
    ratio = Ratio.of(taken["r_drop"], taken["plain"])
    print(f"R-Drop: {ratio.median:.2f} ({ratio.spread}) times the plain step, {len(taken['plain'])} rounds")
    print(f"batches of up to {max_tokens:,} tokens; {environment()}")


if __name__ == "__main__":
    typer.run(main)
