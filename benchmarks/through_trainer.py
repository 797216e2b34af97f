"""Training as users run it: the recipe `multi30k` with batches by tokens, beside MarianMTModel with Seq2SeqTrainer.

    python benchmarks/through_trainer.py --data FOLDER --plot FILE

Both have the same sentences (FOLDER has `train.en`, `train.de`, `val.en` and `val.de`), vocabulary, shape, dropout and
label smoothing. Ours is the recipe with `inputs.max_tokens`; MarianMTModel is trained as `multi30k_marian.py` does it,
plainly: 64 random sentences a batch. The two take turns of some steps, each step with all that belongs to it: making
the batch, forward and backward pass, clipping, optimizer, schedule, logging. Told are real target tokens a second,
ours over theirs, the median of the turns with their quartiles, and the cross entropy of sentences not trained on,
which is drawn over the target tokens seen.
"""

import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from datasets import disable_progress_bars
from matplotlib.figure import Figure
from multi30k_marian import BATCH_SIZE, build_model
from timing import Ratio, surroundings
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

OURS, THEIRS = "Trivium, batches by tokens", "MarianMTModel, Seq2SeqTrainer"
NOT_TIMED = 10


class Clock(TrainerCallback):
    """Measures every step with all that belongs to it, the next batch's making, too, and counts its target tokens."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.tokens: list[int] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.start = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Stop the clock, and start it again."""
        now = time.perf_counter()
        self.seconds.append(now - self.start)
        self.start = now

    def counting(self, collate: Any) -> Any:
        """A collator that counts target tokens."""

        def count(rows: list[Any]) -> Any:
            batch = collate(rows)
            self.tokens.append(int((batch["labels"] != -100).sum()))
            return batch

        return count

    @property
    def speed(self) -> float:
        """Real target tokens a second, without those of the first steps, in which memory is still asked for."""
        return sum(self.tokens[NOT_TIMED : len(self.seconds)]) / sum(self.seconds[NOT_TIMED:])


@torch.no_grad()
def cross_entropy(model: Any, batches: list[dict[str, torch.Tensor]]) -> float:
    """Of real target tokens, their mean."""
    model.eval()
    total, count = 0.0, 0
    for batch in batches:
        logits = model(**batch).logits
        total += F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum").item()
        count += int((batch["labels"] != -100).sum())
    model.train()
    return total / count


def draw(losses: dict[str, list[tuple[int, float]]], path: Path) -> None:
    """Draw the losses over the tokens seen."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for (name, points), color, marker in zip(losses.items(), SERIES, MARKERS, strict=False):
        axes.plot(*zip(*points, strict=True), color=color, marker=marker, label=name)
    axes.set(xlabel="target tokens seen", ylabel="cross entropy on val, nats a token", title="Loss by tokens seen")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def main(
    data: Annotated[Path, typer.Option(help="The folder of the sentences.")],
    rounds: Annotated[int, typer.Option(help="How often each takes its turn.")] = 8,
    steps: Annotated[int, typer.Option(help="Steps of a turn.")] = 75,
    plot: Annotated[Path | None, typer.Option(help="Picture to write.")] = None,
) -> None:
    """Train both, and print and draw what was measured."""
    logging.set_verbosity_error()
    disable_progress_bars()
    common: dict[str, Any] = {"max_steps": steps, "save_strategy": "no", "disable_tqdm": True, "report_to": "none"}
    common |= {"eval_strategy": "no", "logging_steps": 100}
    settings = ["inputs.max_tokens=1152", "training.per_device_train_batch_size=null"]
    settings += ["training.train_sampling_strategy=null", *(f"training.{k}={v!r}" for k, v in common.items())]
    files = [f"data.train={data}/train", f"data.validation={data}/val", "data.test=null"]
    recipe = load_recipe("multi30k", [*files, *settings])
    args = recipe.training_arguments()
    set_seed(args.seed)
    splits = load_data(recipe.data, recipe.kind.columns)
    ours, tokenizer = load_or_build(recipe, splits["train"])
    marian = build_model(tokenizer)
    encoded = encode_data(splits, recipe.kind, tokenizer, ours.config, recipe.inputs)["train"]
    pairs = splits.map(
        lambda batch: tokenizer(batch["source"], text_target=batch["target"]),
        batched=True,
        remove_columns=splits["train"].column_names,
    ).select_columns(["input_ids", "attention_mask", "labels"])
    held_out = [pairs["validation"][i] for i in range(512)]
    collate = DataCollatorForSeq2Seq(tokenizer)
    validation = [dict(collate(held_out[start : start + BATCH_SIZE])) for start in range(0, 512, BATCH_SIZE)]

    def learning(model: nn.Module, rate: float, **adam: Any) -> tuple[Any, Any]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, fused=True, weight_decay=0.0, **adam)
        return optimizer, get_linear_schedule_with_warmup(optimizer, 1000, 6500)

    learns = {OURS: learning(ours, 2e-3, betas=(0.9, 0.98), eps=1e-9), THEIRS: learning(marian, 1e-3)}
    plain = {"per_device_train_batch_size": BATCH_SIZE, "label_smoothing_factor": 0.1, "dataloader_pin_memory": False}
    speeds: dict[str, list[float]] = {OURS: [], THEIRS: []}
    losses: dict[str, list[tuple[int, float]]] = {OURS: [], THEIRS: []}
    seen = dict.fromkeys(speeds, 0)
    with TemporaryDirectory() as temporary:
        for turn in range(rounds):
            for name, model in ((OURS, ours), (THEIRS, marian)):
                clock = Clock()
                if name == OURS:
                    args = replace(args, output_dir=temporary, remove_unused_columns=False, seed=turn)
                    collator = clock.counting(make_collator(recipe.kind, tokenizer, model, recipe.inputs))
                    tokens = {"max_tokens": recipe.inputs.max_tokens, "buffer_size": recipe.inputs.buffer_size}
                    trainer: Trainer = RunTrainer(
                        *(model, args, collator, encoded),
                        processing_class=tokenizer,
                        callbacks=[clock],
                        optimizers=learns[name],
                        **tokens,
                    )
                else:
                    trainer = Seq2SeqTrainer(
                        model=model,
                        args=Seq2SeqTrainingArguments(output_dir=temporary, seed=turn, **plain, **common),
                        train_dataset=pairs["train"],
                        data_collator=clock.counting(DataCollatorForSeq2Seq(tokenizer, model=model)),
                        processing_class=tokenizer,
                        callbacks=[clock],
                        optimizers=learns[name],
                    )
                trainer.train()
                speeds[name].append(clock.speed)
                seen[name] += sum(clock.tokens[: len(clock.seconds)])
                losses[name].append((seen[name], cross_entropy(model, validation)))
    ratio = Ratio.of(speeds[OURS], speeds[THEIRS])
    print(f"Real target tokens a second, ours over theirs: {ratio.median:.2f}, quartiles {ratio.spread}.")
    for name, points in losses.items():
        print(f"{name}: cross entropy", ", ".join(f"{loss:.2f} after {count / 1000:.0f}k" for count, loss in points))
    print(f"{rounds} x {steps} steps of each; {surroundings()}")
    if plot:
        draw(losses, plot)


if __name__ == "__main__":
    typer.run(main)
