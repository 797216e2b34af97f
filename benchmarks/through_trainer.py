"""Compare end-to-end training: the recipe `multi30k` with token-budget batches, and MarianMTModel with Seq2SeqTrainer.

    python benchmarks/through_trainer.py --data FOLDER --plot FILE

Both use the same sentences (FOLDER contains `train.en`, `train.de`, `val.en` and `val.de`), vocabulary, shape, dropout
and label smoothing. Trivium is trained with the recipe and `inputs.max_tokens`; MarianMTModel is trained as in
`multi30k_marian.py`, on 64 random sentences per batch. The two alternate every few steps; a step includes collation,
forward and backward pass, clipping, optimizer, schedule and logging. The benchmark reports the ratio of real target
tokens per second (median and quartiles over the rounds), and plots the validation cross entropy over the target tokens
seen.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Annotated, Any

import torch
import typer
from datasets import disable_progress_bars
from matplotlib.figure import Figure
from multi30k_marian import BATCH_SIZE, build_model
from peers import SHAPES, Shape
from timing import Ratio, environment
from torch import nn
from torch.nn import functional as F
from transformers import (
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    get_linear_schedule_with_warmup,
    set_seed,
)
from transformers.utils import logging

from trivium.data import load_data
from trivium.inspection.drawing import MARKERS, SERIES, save_figure
from trivium.recipe import load_recipe
from trivium.tasks import encode_data, make_collator
from trivium.training import load_or_build
from trivium.training.trainer import RunTrainer

TRIVIUM, MARIAN = "Trivium, batches by tokens", "MarianMTModel, Seq2SeqTrainer"
WARMUP_STEPS = 10


class Clock(TrainerCallback):
    """Time every step, including the collation of the next batch, and count its target tokens."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.tokens: list[int] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.start = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Record the time since the previous step."""
        now = time.perf_counter()
        self.seconds.append(now - self.start)
        self.start = now

    def counting(self, collate: Any) -> Any:
        """Wrap a collator to count target tokens."""

        def count(rows: list[Any]) -> Any:
            batch = collate(rows)
            self.tokens.append(int((batch["labels"] != -100).sum()))
            return batch

        return count

    @property
    def speed(self) -> float:
        """Real target tokens per second, excluding warm-up steps."""
        return sum(self.tokens[WARMUP_STEPS : len(self.seconds)]) / sum(self.seconds[WARMUP_STEPS:])


@torch.no_grad()
def cross_entropy(model: Any, batches: list[dict[str, torch.Tensor]]) -> float:
    """Return the mean cross entropy of real target tokens."""
    model.eval()
    total, count = 0.0, 0
    for batch in batches:
        logits = model(**batch).logits
        total += F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum").item()
        count += int((batch["labels"] != -100).sum())
    model.train()
    return total / count


def draw(losses: dict[str, list[tuple[int, float]]], path: Path) -> None:
    """Plot the losses over the tokens seen."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for (name, points), color, marker in zip(losses.items(), SERIES, MARKERS, strict=False):
        axes.plot(*zip(*points, strict=True), color=color, marker=marker, label=name)
    axes.set(xlabel="target tokens seen", ylabel="cross entropy on val, nats/token", title="Loss by tokens seen")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def compare(
    data: Path,
    rounds: int,
    steps: int,
    settings: Sequence[str] = (),
    marian_shape: Shape = SHAPES["tiny"],
    marian_args: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[dict[str, list[float]], dict[str, list[tuple[int, float]]]]:
    """Train both models alternately.

    Args:
        data: Folder of the sentences.
        rounds: Rounds per model.
        steps: Steps per round.
        settings: Further settings of the recipe.
        marian_shape: Shape of Marian.
        marian_args: Further arguments of the `Seq2SeqTrainer`.

    Returns:
        For each model, the real target tokens per second in each round, and (target tokens seen, cross entropy) after
        it.
    """
    common: dict[str, Any] = {"max_steps": steps, "save_strategy": "no", "disable_tqdm": True, "report_to": "none"}
    common |= {"eval_strategy": "no", "logging_steps": 100}
    # Both models are trained with AdamW and the same dropout.
    defaults = ["inputs.max_tokens=1152", "learning.muon_learning_rate=null", "model.dropout=0.1"]
    defaults += [f"training.{k}={v!r}" for k, v in common.items()]
    files = [f"data.train={data}/train", f"data.validation={data}/val", "data.test=null"]
    recipe = load_recipe("multi30k", [*files, *defaults, *settings])
    args = recipe.training_arguments()
    set_seed(args.seed)
    splits = load_data(recipe.data, recipe.kind.columns)
    trivium_model, tokenizer = load_or_build(recipe, splits["train"])
    marian = build_model(tokenizer, marian_shape)
    for model in (trivium_model, marian):
        model.to(args.device)
    encoded = encode_data(splits, recipe.kind, tokenizer, trivium_model.config, recipe.inputs)["train"]
    pairs = splits.map(
        lambda batch: tokenizer(batch["source"], text_target=batch["target"]),
        batched=True,
        remove_columns=splits["train"].column_names,
    ).select_columns(["input_ids", "attention_mask", "labels"])
    held_out = [pairs["validation"][i] for i in range(512)]
    collate = DataCollatorForSeq2Seq(tokenizer)
    validation = [
        dict(collate(held_out[start : start + BATCH_SIZE]).to(args.device)) for start in range(0, 512, BATCH_SIZE)
    ]

    def optimizer_and_schedule(model: nn.Module, rate: float, **adam: Any) -> tuple[Any, Any]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, fused=True, weight_decay=0.0, **adam)
        return optimizer, get_linear_schedule_with_warmup(optimizer, 1000, 6500)

    optimizers = {
        TRIVIUM: optimizer_and_schedule(trivium_model, 2e-3, betas=(0.9, 0.98), eps=1e-9),
        MARIAN: optimizer_and_schedule(marian, 1e-3),
    }
    marian_args = {
        "per_device_train_batch_size": BATCH_SIZE,
        "label_smoothing_factor": 0.1,
        "dataloader_pin_memory": False,
        **marian_args,
    }
    speeds: dict[str, list[float]] = {TRIVIUM: [], MARIAN: []}
    losses: dict[str, list[tuple[int, float]]] = {TRIVIUM: [], MARIAN: []}
    seen = dict.fromkeys(speeds, 0)
    with TemporaryDirectory() as temporary:
        for turn in range(rounds):
            for name, model in ((TRIVIUM, trivium_model), (MARIAN, marian)):
                clock = Clock()
                if name == TRIVIUM:
                    args = replace(args, output_dir=temporary, remove_unused_columns=False, seed=turn)
                    collator = clock.counting(make_collator(recipe.kind, tokenizer, model, recipe.inputs))
                    tokens = {"max_tokens": recipe.inputs.max_tokens, "buffer_size": recipe.inputs.buffer_size}
                    trainer: Trainer = RunTrainer(
                        model,
                        args,
                        collator,
                        encoded,
                        processing_class=tokenizer,
                        callbacks=[clock],
                        optimizers=optimizers[name],
                        **tokens,
                    )
                else:
                    trainer = Seq2SeqTrainer(
                        model=model,
                        args=Seq2SeqTrainingArguments(output_dir=temporary, seed=turn, **marian_args, **common),
                        train_dataset=pairs["train"],
                        data_collator=clock.counting(DataCollatorForSeq2Seq(tokenizer, model=model)),
                        processing_class=tokenizer,
                        callbacks=[clock],
                        optimizers=optimizers[name],
                    )
                trainer.train()
                speeds[name].append(clock.speed)
                seen[name] += sum(clock.tokens[: len(clock.seconds)])
                losses[name].append((seen[name], cross_entropy(model, validation)))
    return speeds, losses


def main(
    data: Annotated[Path, typer.Option(help="Folder of the sentences.")],
    rounds: Annotated[int, typer.Option(help="Rounds per model.")] = 8,
    steps: Annotated[int, typer.Option(help="Steps per round.")] = 75,
    plot: Annotated[Path | None, typer.Option(help="Image to write.")] = None,
) -> None:
    """Train both models, and print and plot the results."""
    logging.set_verbosity_error()
    disable_progress_bars()
    speeds, losses = compare(data, rounds, steps)
    ratio = Ratio.of(speeds[TRIVIUM], speeds[MARIAN])
    print(f"Real target tokens per second, Trivium / MarianMTModel: {ratio.median:.2f}, quartiles {ratio.spread}.")
    for name, points in losses.items():
        print(f"{name}: cross entropy", ", ".join(f"{loss:.2f} after {count / 1000:.0f}k" for count, loss in points))
    print(f"{rounds} x {steps} steps each; {environment()}")
    if plot:
        draw(losses, plot)


if __name__ == "__main__":
    typer.run(main)
