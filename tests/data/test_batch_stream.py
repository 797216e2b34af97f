"""Token-budget batches from a stream: their contents, their split over processes, and exact resumption."""

import json
import multiprocessing
import os
import shutil
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import IterableDatasetShard
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_batching import losses_of, random_pairs, recipe_for, sampler, some_lengths

from trivium.data.token_batches import TokenBatchStream
from trivium.training import train
from trivium.training.trainer import RunTrainer

pytestmark = pytest.mark.trains

# For 200 rows, this makes two full buffers and a partial one.
STREAMED = ["data.streaming=true", "inputs.buffer_size=70"]


def rows_of(pairs: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """Return rows that contain their index, with the source and target lengths in `pairs`."""
    return [{"place": i, "input_ids": [0] * pair[0], "labels": [0] * pair[1]} for i, pair in enumerate(pairs)]


def stream_of(pairs: list[tuple[int, int]], max_tokens: int, buffer_size: int, **options: Any) -> TokenBatchStream:
    return TokenBatchStream(rows_of(pairs), ("input_ids", "labels"), max_tokens, buffer_size, **options)


def places(stream: TokenBatchStream) -> list[list[int]]:
    return [[row["place"] for row in batch] for batch in stream]


# --- Contents of the batches -----------------------------------------------------------------------------------------


@given(some_lengths, st.integers(1, 200), st.integers(1, 250), st.integers(1, 9), st.integers(0, 3))
def test_every_row_is_in_one_batch_within_the_budget(
    pairs: list[tuple[int, int]], max_tokens: int, buffer_size: int, multiple: int, epoch: int
) -> None:
    stream = stream_of(pairs, max_tokens, buffer_size, multiple=multiple)
    stream.set_epoch(epoch)
    batches = places(stream)
    assert len(batches) % multiple == 0
    counts = Counter(i for batch in batches for i in batch)
    assert set(counts) == set(range(len(pairs)))
    last = (len(pairs) - 1) // buffer_size * buffer_size  # The last buffer begins here.
    twice = {i for i, count in counts.items() if count > 1}
    assert counts.total() - len(pairs) < multiple
    assert all(i >= last for i in twice)
    if twice:  # Each remaining batch has a single row and cannot be halved.
        assert all(len(batch) == 1 for batch in batches if batch[0] >= last)
    for batch in batches:
        sides = np.array([pairs[i] for i in batch]).T
        assert max(len(batch) * side.max() for side in sides) <= max_tokens or len(batch) == 1


def test_batches_stay_within_buffers_in_order() -> None:
    pairs = random_pairs(1000)
    drawn = places(stream_of(pairs, 100, 300))
    whole = [{i // 300 for i in batch} for batch in drawn]
    assert all(len(buffers) == 1 for buffers in whole)
    order = [min(buffers) for buffers in whole]
    assert order == sorted(order)
    assert order != [0] * len(order)
    assert drawn[0] != sorted(drawn[0])


def test_full_buffer_pads_like_sampler_and_small_pads_more() -> None:
    pairs = random_pairs(3000)

    def padding(buffer_size: int) -> float:
        sides = [np.array([pairs[i] for i in batch]).T for batch in places(stream_of(pairs, 170, buffer_size))]
        return 1 - np.sum(pairs) / sum(side.size * side.max() for both in sides for side in both)

    assert padding(3000) == pytest.approx(sampler(pairs, 170).padding)
    assert padding(3000) < padding(500) < padding(50) < 1


def test_order_depends_on_seed_and_epoch_only() -> None:
    pairs = random_pairs(500)
    drawn = {}
    for seed in (0, 1):
        for epoch in (0, 1):
            streams = [stream_of(pairs, 100, 200, seed=seed) for _ in range(2)]
            for stream in streams:
                np.random.rand()
                stream.set_epoch(epoch)
            drawn[seed, epoch] = places(streams[0])
            assert drawn[seed, epoch] == places(streams[1])
    assert len({json.dumps(batches) for batches in drawn.values()}) == 4
    stream = stream_of(pairs, 100, 200)
    assert [places(stream), places(stream)] == [drawn[0, 0], drawn[0, 1]]  # Iterating again advances the epoch.


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_processes_get_equal_numbers_of_steps(processes: int) -> None:
    """Two batches per process and step, dispatched as by Accelerate: no row is repeated or dropped."""
    for rows in (100, 101, 997):
        pairs = random_pairs(rows)
        shards = [
            list(IterableDatasetShard(stream_of(pairs, 60, 90, multiple=2 * processes), 1, False, processes, rank))
            for rank in range(processes)
        ]
        lengths = {len(shard) for shard in shards}
        assert len(lengths) == 1
        assert lengths.pop() % 2 == 0
        drawn = [row["place"] for shard in shards for batch in shard for row in batch]
        if rows % 90 >= 2 * processes:
            assert sorted(drawn) == list(range(rows))
        assert set(drawn) == set(range(rows))


# --- Training with them ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_resume_within_epoch_matches_unbroken_run(tmp_path: Path, workers: int) -> None:
    """Resume with dropout, in the second epoch after two of its four steps, and train into the third."""
    recipe = recipe_for(
        tmp_path,
        *STREAMED,
        "training.save_steps=7",
        "training.max_steps=10",
        "training.gradient_accumulation_steps=2",
        f"training.dataloader_num_workers={workers}",
    )
    whole = train(recipe)
    epochs = [entry["epoch"] for entry in whole.state.log_history if "loss" in entry]
    assert [int(epoch) for epoch in epochs] == [0] * 4 + [1] * 4 + [2] * 2
    shutil.rmtree(tmp_path / "checkpoint-10")
    resumed = train(recipe, resume=True)
    assert losses_of(resumed) == losses_of(whole)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weight), name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.streaming=true", "training.dataloader_num_workers=2"], r"num_workers is 2, but must be 0 or 1 with"),
        (["data.streaming=true", "inputs.buffer_size=0"], r"inputs\.buffer_size is 0, but must be at least 1"),
        (
            ["inputs.buffer_size=5"],
            r"inputs\.buffer_size is 5, but is only for data\.streaming=true",
        ),
    ],
)
def test_conflicting_options_are_refused(overrides: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        recipe_for(tmp_path, *overrides)


# --- In two processes ------------------------------------------------------------------------------------------------


def trained_on(folder: Path, processes: int, *overrides: str, resume: bool = False) -> list[tuple[Any, Any]]:
    """Train in `processes` processes; return the rows of each, in total and per batch, without padding."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trivium.training"])
    settings = [*STREAMED, "training.use_cpu=true", *overrides]
    parts = [
        context.Process(target=_train, args=(folder, settings, resume, rank, processes, port))
        for rank in range(processes)
    ]
    for part in parts:
        part.start()
    for part in parts:
        part.join(120)  # A failed process must not leave the other one waiting.
        if part.exitcode is None:
            part.kill()
    assert [part.exitcode for part in parts] == [0] * processes
    return [json.loads((folder / f"rows-{rank}.json").read_text()) for rank in range(processes)]


def _train(folder: Path, settings: list[str], resume: bool, rank: int, processes: int, port: int) -> None:
    if processes > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes))
        os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    seen = []
    step = RunTrainer.training_step

    def recording(trainer: Any, model: Any, inputs: Any, *args: Any) -> Any:
        masks = inputs["attention_mask"].bool()
        seen.append([ids[mask].tolist() for ids, mask in zip(inputs["input_ids"], masks, strict=True)])
        return step(trainer, model, inputs, *args)

    RunTrainer.training_step = recording
    trainer = train(recipe_for(folder, *settings), resume=resume)
    rows = [row["input_ids"] for row in trainer.train_dataset]
    (folder / f"rows-{rank}.json").write_text(json.dumps([rows, seen]))


@pytest.mark.slow
def test_two_processes_train_on_the_rows_of_one(tmp_path: Path) -> None:
    """Each epoch has four steps of two batches."""
    alone = trained_on(tmp_path / "alone", 1, "training.gradient_accumulation_steps=2", "training.max_steps=6")
    together = trained_on(tmp_path / "together", 2, "training.max_steps=6")
    rows, batches = alone[0]
    assert [batch for pair in zip(*(seen for _, seen in together), strict=True) for batch in pair] == batches
    assert sorted(row for batch in batches[:8] for row in batch) == sorted(rows)


@pytest.mark.slow(reason="two times two processes")
def test_two_processes_resume_bit_identical_within_epoch(tmp_path: Path) -> None:
    steps = ["training.max_steps=6", "training.save_steps=5"]
    whole = trained_on(tmp_path, 2, *steps)
    weights = load_file(tmp_path / "model.safetensors")
    shutil.rmtree(tmp_path / "checkpoint-6")
    assert [seen for _, seen in trained_on(tmp_path, 2, *steps, resume=True)] == [seen[5:] for _, seen in whole]
    for name, weight in load_file(tmp_path / "model.safetensors").items():
        assert torch.equal(weight, weights[name]), name
