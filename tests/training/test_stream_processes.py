"""Test training on streams in several processes: each row is used exactly once, and resumed runs continue in place."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from stream_runs import trained_on, write_shards

pytestmark = pytest.mark.trains

ONE, EVEN, UNEVEN = (197,), (50, 49, 49, 49), (90, 2, 60, 30, 1, 14)


def counts_of(rows: list[list[int]]) -> Counter[str]:
    return Counter(map(str, rows))


def train_one_epoch(folder: Path, processes: int, *overrides: str) -> tuple[list[int], float]:
    """Train for an epoch with two batches per process and step, and check that each row is used exactly once.

    Returns:
        The number of filler batches of each process, and the sum of the loss over all batches and processes.
    """
    settings = ("training.gradient_accumulation_steps=2", "training.learning_rate=0", "model.dropout=0")
    limits = ("training.save_strategy='no'", "training.max_steps=90")
    records = trained_on(folder, processes, *settings, *limits, *overrides, one_epoch=True)
    rows = records[0].rows
    trained = [row for record in records for batch in record.batches for row in batch]
    assert counts_of(trained) == counts_of(rows)
    fillers = [sum(not batch for batch in record.batches) for record in records]
    # Every process with filler batches encodes the first row once more to build them.
    encoded = [row for record in records for row in record.encoded]
    assert counts_of(encoded) == counts_of([*rows, *[rows[0]] * sum(map(bool, fillers))])
    for record in records:
        assert all(batch or not loss for batch, loss in zip(record.batches, record.losses, strict=True))
    assert len({len(record.batches) for record in records}) == 1
    return fillers, sum(sum(record.losses) for record in records)


def with_workers(workers: int) -> list[str]:
    """Return the overrides for this number of data-loading workers, which are always started by fork."""
    settings = [f"training.dataloader_num_workers={workers}"]
    return [*settings, "training.dataloader_multiprocessing_context=fork"] if workers else settings


def many(*arguments: Any) -> Any:
    return pytest.param(*arguments, marks=pytest.mark.slow(reason="many processes"))


@pytest.mark.parametrize(
    ("processes", "sizes", "workers"),
    [
        (2, (150, 7, 40), 0),
        *(many(1, sizes, workers) for sizes in (ONE, EVEN, UNEVEN) for workers in (0, 2)),
        *(many(2, sizes, workers) for sizes in (ONE, EVEN, UNEVEN) for workers in (0, 2)),
        *(many(3, sizes, 0) for sizes in (ONE, EVEN, UNEVEN)),
        many(4, ONE, 1),
        *(many(4, sizes, 0) for sizes in (ONE, EVEN, UNEVEN)),
    ],
)
def test_processes_use_every_row_once(processes: int, sizes: tuple[int, ...], workers: int, tmp_path: Path) -> None:
    """Each row is encoded and trained on once, and the summed loss equals that of a single process."""
    data = write_shards(tmp_path / "data", sizes)
    _, expected = train_one_epoch(tmp_path / "alone", 1, *data)
    fillers, total = train_one_epoch(tmp_path / "together", processes, *data, *with_workers(workers))
    assert total == pytest.approx(expected, rel=1e-5)
    if processes > 1 and sizes not in (ONE, EVEN):
        assert any(fillers)  # The shares of the processes have different numbers of batches.


@pytest.mark.parametrize(
    ("processes", "sizes", "workers"),
    [many(*case) for case in ((2, (150, 7, 40), 0), (1, UNEVEN, 2), (2, ONE, 2), (2, UNEVEN, 2), (4, UNEVEN, 0))],
)
def test_processes_resume_bit_identical(processes: int, sizes: tuple[int, ...], workers: int, tmp_path: Path) -> None:
    """Resume a run with dropout in the middle of its first epoch."""
    steps = ("training.max_steps=5", "training.save_steps=3", *with_workers(workers))
    settings = (*write_shards(tmp_path / "data", sizes), *steps)
    whole = trained_on(tmp_path / "run", processes, *settings)
    weights = load_file(tmp_path / "run" / "model.safetensors")
    shutil.rmtree(tmp_path / "run" / "checkpoint-5")
    resumed = trained_on(tmp_path / "run", processes, *settings, resume=True)
    assert [record.batches for record in resumed] == [record.batches[3:] for record in whole]
    for name, weight in load_file(tmp_path / "run" / "model.safetensors").items():
        assert torch.equal(weight, weights[name]), name


@pytest.mark.slow(reason="two runs of two processes")
def test_mixture_resumes_bit_identical(tmp_path: Path) -> None:
    for name in ("small", "large"):
        write_shards(tmp_path / name, (150, 7, 40) if name == "large" else (20, 20))
    sources = f"[{{name: {tmp_path}/large, weight: 3}}, {{name: {tmp_path}/small}}]"
    mix = ("data.name=null", "data.max_train_samples=null", f"data.mix={{sources: {sources}}}")
    settings = (*mix, "training.max_steps=5", "training.save_steps=3")
    whole = trained_on(tmp_path / "run", 2, *settings)
    weights = load_file(tmp_path / "run" / "model.safetensors")
    shutil.rmtree(tmp_path / "run" / "checkpoint-5")
    with pytest.raises(ValueError, match=r"data\.mix.*temperature"):
        trained_on(tmp_path / "run", 1, *settings, "data.mix.temperature=2", resume=True)
    resumed = trained_on(tmp_path / "run", 2, *settings, resume=True)
    assert [record.batches for record in resumed] == [record.batches[3:] for record in whole]
    for name, weight in load_file(tmp_path / "run" / "model.safetensors").items():
        assert torch.equal(weight, weights[name]), name


@pytest.mark.parametrize(
    ("before", "after", "sizes", "workers"),
    [many(2, 1, (150, 7, 40), 0), many(4, 2, ONE, 0), many(4, 2, UNEVEN, 0), many(4, 1, EVEN, 0), many(2, 4, ONE, 2)],
)
def test_other_number_of_processes_resumes_with_the_rows_left(
    before: int, after: int, sizes: tuple[int, ...], workers: int, tmp_path: Path
) -> None:
    """The shares of the first run are kept: process `i` of `n` reads every `n`-th of them, starting with share `i`."""
    data = write_shards(tmp_path / "data", sizes)
    batch = 4 // before, 4 // after  # batches per process and step
    common = (*data, "training.max_steps=40", "training.save_steps=1", "training.save_total_limit=99")
    options = [f"training.gradient_accumulation_steps={count}" for count in batch]
    first = trained_on(tmp_path / "run", before, *common, options[0], *with_workers(workers), one_epoch=True)
    for checkpoint in (tmp_path / "run").glob("checkpoint-*"):
        if checkpoint.name != "checkpoint-1":
            shutil.rmtree(checkpoint)
    second = trained_on(tmp_path / "run", after, *common, options[1], resume=True, one_epoch=True)
    rows = [row for record in first for taken in record.batches[: batch[0]] for row in taken]
    rows += [row for record in second for taken in record.batches for row in taken]
    assert counts_of(rows) == counts_of(first[0].rows)
