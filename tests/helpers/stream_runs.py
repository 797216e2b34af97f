"""Train on streams in one or more processes, and record the rows that each process encodes and trains on."""

import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from distributed_runs import run_distributed
from small_recipes import small_recipe

from trivium.data import numbers_corpus
from trivium.recipe import load_recipe
from trivium.tasks import encode_stream
from trivium.training import train
from trivium.training.streaming import FILLER
from trivium.training.trainer import RunTrainer

# With 200 rows, this gives two full buffers and a partial one.
STREAMED = [
    "data.streaming=true",
    "data.max_train_samples=200",
    "inputs.buffer_size=70",
    "inputs.max_tokens=400",
    "training.per_device_train_batch_size=null",
    "training.train_sampling_strategy=null",
    "training.eval_strategy='no'",
    "training.use_cpu=true",
]

Row = list[int]  # the token ids of a source text


class ProcessRecord(NamedTuple):
    """Record of the rows and losses of one process.

    Attributes:
        rows: All rows of the training data.
        encoded: Rows that the process and its workers encoded for training.
        batches: Rows of each batch; empty for a filler batch.
        losses: Contribution of each batch to the loss, summed over its tokens.
    """

    rows: list[Row]
    encoded: list[Row]
    batches: list[list[Row]]
    losses: list[float]


def write_shards(folder: Path, sizes: tuple[int, ...]) -> list[str]:
    """Write a dataset with shards of these sizes, and return the recipe overrides that stream it."""
    folder.mkdir()
    pairs = iter(numbers_corpus()["train"])
    for index, size in enumerate(sizes):
        rows = [next(pairs) for _ in range(size)]
        lines = [json.dumps({"en": row["source"], "de": row["target"]}) for row in rows]
        (folder / f"train-{index:05}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return [f"data.name={folder}", "data.train=train", "data.max_train_samples=null"]


def trained_on(
    folder: Path, processes: int, *overrides: str, resume: bool = False, one_epoch: bool = False
) -> list[ProcessRecord]:
    """Train in `processes` processes, and return their records.

    Args:
        folder: The run folder.
        processes: Number of processes.
        *overrides: Overrides of the recipe.
        resume: Resume the run in the folder.
        one_epoch: Stop at the end of the first epoch.
    """
    arguments = (folder, small_recipe(folder, *STREAMED, *overrides), resume, one_epoch)
    if processes == 1:
        return [_train(*arguments)]
    output = folder.with_name(f"{folder.name}-processes")
    return [ProcessRecord(*each) for each in run_distributed(_train, *arguments, folder=output, processes=processes)]


def _train(folder: Path, settings: list[str], resume: bool, one_epoch: bool) -> ProcessRecord:
    record = ProcessRecord([], [], [], [])
    # The data-loading workers of the process append to this file, too.
    encodings = folder.with_name(f"{folder.name}-encoded-{os.environ.get('RANK', 0)}.jsonl")
    encodings.write_text("")
    step, run_epoch = RunTrainer.training_step, RunTrainer._run_epoch

    def counted_stream(*args: Any) -> Any:
        stream = encode_stream(*args)
        encode = stream._encode

        def encode_and_record(columns: Any) -> Any:
            encoded = encode(columns)
            with encodings.open("a") as file:
                file.writelines(f"{json.dumps(ids)}\n" for ids in encoded["input_ids"])
            return encoded

        stream._encode = encode_and_record
        return stream

    def recorded_step(trainer: Any, model: Any, inputs: Any, num_items: torch.Tensor) -> Any:
        masks = inputs["attention_mask"].bool()
        rows = [ids[mask].tolist() for ids, mask in zip(inputs["input_ids"], masks, strict=True)]
        loss = step(trainer, model, inputs, num_items)
        record.batches.append([] if FILLER in inputs else rows)
        record.losses.append(float(loss * num_items) / trainer.args.world_size)
        return loss

    def run_one_epoch(trainer: Any, *args: Any, **kwargs: Any) -> None:
        run_epoch(trainer, *args, **kwargs)
        trainer.control.should_training_stop = one_epoch or trainer.control.should_training_stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunTrainer, "training_step", recorded_step)
        patch.setattr(RunTrainer, "_run_epoch", run_one_epoch)
        patch.setattr(sys.modules["trivium.training.train"], "encode_stream", counted_stream)
        trainer = train(load_recipe("numbers", settings), resume=resume)
    record.encoded.extend(json.loads(line) for line in encodings.read_text().splitlines())
    record.rows.extend(row["input_ids"] for row in trainer.train_dataset)
    return record
