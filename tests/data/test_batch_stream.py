"""Test token batches from a stream: contents, the share of each process, and exact resumption."""

import json
import shutil
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Features, IterableDataset, List, Value
from tiny_training import losses_of
from token_batching import random_pairs, recipe_for, sampler

from trivium.data.batch_stream import BatchStream
from trivium.data.shares import EncodedStream
from trivium.training import train

pytestmark = pytest.mark.trains

# With 200 rows, this gives two full buffers and a partial one.
STREAMED = ["data.streaming=true", "inputs.buffer_size=70"]


def stream_of(
    pairs: list[tuple[int, int]], max_tokens: int | None, buffer_size: int, shards: int = 1, seed: int = 0
) -> BatchStream:
    """Return a stream of rows that contain their index, with source and target lengths from `pairs`."""
    rows = [{"place": i, "input_ids": [0] * pair[0], "labels": [0] * pair[1]} for i, pair in enumerate(pairs)]
    parts = [part.tolist() for part in np.array_split(np.arange(len(rows)), shards)]
    features = Features({"place": Value("int64"), "input_ids": List(Value("int64")), "labels": List(Value("int64"))})
    dataset = IterableDataset.from_generator(rows_of, features, {"rows": tuple(rows), "parts": parts})
    return BatchStream(EncodedStream(dataset), buffer_size, max_tokens, ("input_ids", "labels"), seed)


def cases(parameters: Iterable[tuple[Any, ...]], quick: set[tuple[Any, ...]]) -> list[Any]:
    """Return the parameter sets of a test; mark those not in `quick` as slow."""
    slow = pytest.mark.slow(reason="all cases")
    return [pytest.param(*case, marks=[] if case in quick else slow) for case in parameters]


READ: list[int] = []


def rows_of(rows: tuple[dict[str, Any], ...], parts: list[list[int]]) -> Iterator[dict[str, Any]]:
    for part in parts:
        for index in part:
            READ.append(index)
            yield rows[index]


def places(stream: BatchStream) -> list[list[int]]:
    return [[row["place"] for row in batch.rows] for batch in stream]


# --- Contents of the batches -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("max_tokens", "buffer_size"), [(100, 90), (1, 70), (100, 2000), (None, 30)])
def test_every_row_is_in_one_batch_within_the_budget(max_tokens: int | None, buffer_size: int) -> None:
    pairs = random_pairs(200)
    batches = places(stream_of(pairs, max_tokens, buffer_size))
    assert sorted(i for batch in batches for i in batch) == list(range(200))
    for batch in batches:
        sides = np.array([pairs[i] for i in batch]).T
        rows = buffer_size if max_tokens is None else max(max_tokens // sides.max(), 1)
        assert len(batch) <= rows


def test_batches_stay_within_buffers_in_order() -> None:
    pairs = random_pairs(1000)
    drawn = places(stream_of(pairs, 100, 300))
    whole = [{i // 300 for i in batch} for batch in drawn]
    assert all(len(buffers) == 1 for buffers in whole)
    order = [min(buffers) for buffers in whole]
    assert order == sorted(order)
    assert order != [0] * len(order)
    assert drawn[0] != sorted(drawn[0])
    assert [i for batch in places(stream_of(pairs, None, 30)) for i in batch] == list(range(1000))


def test_full_buffer_pads_like_sampler_and_small_pads_more() -> None:
    pairs = random_pairs(1000)

    def padding(buffer_size: int) -> float:
        sides = [np.array([pairs[i] for i in batch]).T for batch in places(stream_of(pairs, 170, buffer_size))]
        return 1 - np.sum(pairs) / sum(side.size * side.max() for both in sides for side in both)

    assert padding(1000) == pytest.approx(sampler(pairs, 170).padding)
    assert padding(1000) < padding(200) < padding(20) < 1


def test_order_depends_on_seed_and_epoch_only() -> None:
    pairs = random_pairs(150)
    drawn = {}
    for seed in (0, 1):
        for epoch in (0, 1):
            streams = [stream_of(pairs, 100, 60, seed=seed) for _ in range(2)]
            for stream in streams:
                np.random.rand()
                stream.set_epoch(epoch)
            drawn[seed, epoch] = places(streams[0])
            assert drawn[seed, epoch] == places(streams[1])
    assert len({json.dumps(batches) for batches in drawn.values()}) == 4
    stream = stream_of(pairs, 100, 60)
    assert [places(stream), places(stream)] == [drawn[0, 0], drawn[0, 1]]  # A second iteration is the next epoch.


# --- Shares and resumption -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("processes", "shards", "max_tokens"),
    cases(product((1, 2, 3, 4), (1, 2, 3, 4, 5, 9), (None, 60)), {(2, 1, 60), (3, 4, None)}),
)
def test_processes_read_every_row_once(processes: int, shards: int, max_tokens: int | None) -> None:
    """Every process encodes only its own rows, with fewer or more shards than processes, or shards of unequal size."""
    pairs = random_pairs(97)
    parts, encoded = [], []
    for rank in range(processes):
        stream = stream_of(pairs, max_tokens, 7, shards)
        stream.rows._encode = lambda columns: encoded.extend(columns["place"]) or columns
        stream.num_shares, stream.shares = processes, [rank]
        parts.append([i for batch in places(stream) for i in batch])
    assert sorted(i for part in parts for i in part) == sorted(encoded) == list(range(97))
    if shards >= processes:
        owners = np.array_split(np.arange(97), shards)
        for rank, part in enumerate(parts):
            assert sorted(part) == sorted(np.concatenate(owners[rank::processes]).tolist())


@pytest.mark.parametrize(
    ("shards", "shares", "max_tokens"),
    cases(
        (
            (*case, size)
            for case in ((1, (0,)), (3, (0,)), (1, (1,)), (3, (0, 2)), (5, (0, 1, 2, 3)))
            for size in (None, 60)
        ),
        {(3, (0, 2), 60)},
    ),
)
def test_stream_goes_on_from_every_place(
    shards: int, shares: tuple[int, ...], max_tokens: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resume after each batch, from positions stored as JSON; read and encoded blocks do not align with buffers."""
    monkeypatch.setattr("trivium.data.shares.READ_ROWS", 11)
    monkeypatch.setattr("trivium.data.shares.ENCODED_ROWS", 13)
    pairs = random_pairs(97)

    def stream() -> BatchStream:
        fresh = stream_of(pairs, max_tokens, 17 if max_tokens else 6, shards)
        fresh.num_shares, fresh.shares, fresh.epoch = max(shares) + 1, list(shares), 3
        return fresh

    batches = list(stream())
    after: dict[int, Any] = {}
    for turn, batch in enumerate(batches):
        place = json.loads(json.dumps(batch.place))
        after[place.pop("share")] = {**place, "turn": turn}
        resumed = stream()
        resumed.places = dict(after)
        assert [other.rows for other in resumed] == [other.rows for other in batches[turn + 1 :]]


def test_fewer_processes_take_over_the_shares_of_more() -> None:
    """After three steps of four processes with one batch each, two processes resume with two batches per step."""
    pairs = random_pairs(200)

    def stream(shares: list[int]) -> BatchStream:
        fresh = stream_of(pairs, None, 6, 4)
        fresh.num_shares, fresh.shares = 4, shares
        return fresh

    alone = [list(stream([share])) for share in range(4)]
    after = {share: {**alone[share][2].place, "turn": 2} for share in range(4)}
    for rank in range(2):
        resumed = stream([rank, rank + 2])
        resumed.places = after
        expected = [batch for pair in zip(alone[rank][3:], alone[rank + 2][3:], strict=True) for batch in pair]
        assert [batch.rows for batch in resumed] == [batch.rows for batch in expected]


def test_rows_are_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that resumes late in a stream of 50 shards reads the shard of its position, but no earlier shard."""
    monkeypatch.setattr("trivium.data.shares.READ_ROWS", 5)
    monkeypatch.setattr("trivium.data.shares.ENCODED_ROWS", 5)
    pairs = random_pairs(500)
    batch = list(stream_of(pairs, None, 5, 50))[95]
    resumed = stream_of(pairs, None, 5, 50)
    resumed.places = {0: {**batch.place, "turn": 0}}
    READ.clear()
    assert len(list(resumed)) == 4
    assert min(READ) >= 460  # the position is at the end of the shard that starts at row 460


# --- Training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow(reason="starts workers"))])
def test_resume_within_epoch_matches_unbroken_run(tmp_path: Path, workers: int) -> None:
    """Resume with dropout after step 7, in the second epoch; with two workers, each of them has a partial buffer."""
    steps_per_epoch = 5 if workers else 4
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
    assert [int(epoch) for epoch in epochs] == [step // steps_per_epoch for step in range(10)]
    shutil.rmtree(tmp_path / "checkpoint-10")
    resumed = train(recipe, resume=True)
    assert losses_of(resumed) == losses_of(whole)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weight), name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
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
