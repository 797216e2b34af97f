"""Measure how long a stream takes to resume at a row, and how fast several processes encode its rows.

Sentence pairs of the bundled corpus are written twice: to a single JSONL file, which is one shard, and to a dataset of
100 shards. The first benchmark resumes a stream from the position that a checkpoint would store, and measures the time
until it yields the next row. The second runs several processes that encode their shares of the dataset in parallel:

    OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false python benchmarks/streams.py
"""

import json
import os
import tempfile
import time
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from trivium.data import DataArguments, load_data, numbers_corpus
from trivium.data.arguments import has_shards
from trivium.data.columns import PAIR
from trivium.data.shares import EncodedStream, RowReader
from trivium.recipe import load_recipe
from trivium.tasks import encode_stream
from trivium.training import load_or_build

SHARDS = 100


def write_data(folder: Path, rows: int) -> dict[str, DataArguments]:
    """Write the rows to a single file and to `SHARDS` shards; return the data arguments of both, keyed by name."""
    (folder / "shards").mkdir()
    pairs = [{"en": row["source"], "de": row["target"]} for row in numbers_corpus()["train"]]
    lines = cycle([f"{json.dumps(pair)}\n" for pair in pairs])
    with open(folder / "train.jsonl", "w") as whole:
        for index in range(SHARDS):
            part = list(islice(lines, -(-rows // SHARDS)))
            whole.writelines(part)
            (folder / "shards" / f"train-{index:05}.jsonl").write_text("".join(part))
    return {
        "one file": DataArguments(train=f"{folder}/train.jsonl", streaming=True),
        f"{SHARDS} shards": DataArguments(name=f"{folder}/shards", train="train", streaming=True),
    }


def stream_of(args: DataArguments) -> EncodedStream:
    """Return a stream over the training split that does not encode its rows."""
    return EncodedStream(load_data(args, PAIR)["train"], has_shards=has_shards(args))


def positions_of(args: DataArguments, rows: list[int]) -> dict[int, Any]:
    """Read a stream, and return the stream position from which to resume after each of the given row numbers."""
    reader = RowReader(load_data(args, PAIR)["train"], 0, 1, has_shards(args))
    positions = {}
    for number, _ in enumerate(reader, start=1):
        if number in rows:
            positions[number] = reader.place
        if number == max(rows):
            break
    return positions


def seconds_to_resume(args: DataArguments, position: Any) -> tuple[float, float]:
    """Resume a stream at a position; return the elapsed and the CPU seconds until it yields its first row."""
    start, cpu = time.perf_counter(), time.process_time()
    next(stream_of(args).read_share(0, 1, position))
    return time.perf_counter() - start, time.process_time() - cpu


def encode_share(queue: Any, barrier: Any, stream: EncodedStream, share: int, num_shares: int) -> None:
    """Encode one share; put its pair count, token count, start time, end time and CPU seconds into the queue."""
    barrier.wait()
    start, cpu, pairs, tokens = time.time(), time.process_time(), 0, 0
    for placed in stream.read_share(share, num_shares):
        pairs += 1
        tokens += len(placed.row["input_ids"]) + len(placed.row["labels"])
    queue.put((pairs, tokens, start, time.time(), time.process_time() - cpu))


def throughput(stream: EncodedStream, processes: int) -> tuple[float, float, float]:
    """Return the combined pairs and tokens per second of all processes, and their pairs per CPU second."""
    context = get_context("fork")
    queue, barrier = context.Queue(), context.Barrier(processes)
    started = [
        context.Process(target=encode_share, args=(queue, barrier, stream, i, processes)) for i in range(processes)
    ]
    for process in started:
        process.start()
    results = [queue.get() for _ in started]
    for process in started:
        process.join()
    pairs, tokens, starts, ends, cpu = zip(*results, strict=True)
    seconds = max(ends) - min(starts)
    return sum(pairs) / seconds, sum(tokens) / seconds, sum(pairs) / sum(cpu)


def main(
    rows: Annotated[int, typer.Option(help="Rows to write; the stream resumes 100 rows before the last.")] = 1_000_100,
    encoded: Annotated[int, typer.Option(help="Rows that the processes encode.")] = 100_000,
    rounds: Annotated[int, typer.Option(help="Interleaved repetitions.")] = 3,
) -> None:
    """Run both benchmarks and print their tables."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        print(f"load {os.getloadavg()[0]:.1f}\n\n| stream | row | seconds to resume | of CPU time |")
        print("| --- | --- | --- | --- |")
        sources = write_data(folder, rows)
        depths = [10, rows - 100]
        positions = {name: positions_of(args, depths) for name, args in sources.items()}
        seconds: dict[tuple[str, int], list[tuple[float, float]]] = {
            (name, row): [] for name in sources for row in depths
        }
        for _ in range(rounds):
            for name, row in seconds:
                seconds[name, row].append(seconds_to_resume(sources[name], positions[name][row]))
        for (name, row), measured in seconds.items():
            times, cpu = zip(*measured, strict=True)
            spread = f"{median(times):.2f} ({min(times):.2f} to {max(times):.2f})"
            print(f"| {name} | {row:,} | {spread} | {median(cpu):.2f} |", flush=True)

        (folder / "encoded").mkdir()
        args = write_data(folder / "encoded", encoded)[f"{SHARDS} shards"]
        recipe = load_recipe("numbers")
        model, tokenizer = load_or_build(recipe, load_data(recipe.data, PAIR)["train"])
        stream = encode_stream(
            load_data(args, PAIR)["train"], recipe.kind, tokenizer, model.config, recipe.inputs, has_shards(args)
        )
        print(f"\nload {os.getloadavg()[0]:.1f}\n")
        print("| processes | pairs per second | tokens per second | pairs per second of CPU |")
        print("| --- | --- | --- | --- |")
        rates: dict[int, list[tuple[float, float, float]]] = {1: [], 2: [], 4: []}
        for _ in range(rounds):
            for processes, samples in rates.items():
                samples.append(throughput(stream, processes))
        for processes, samples in rates.items():
            pairs, tokens, per_cpu = zip(*samples, strict=True)
            spread = f"{median(pairs):,.0f} ({min(pairs):,.0f} to {max(pairs):,.0f})"
            print(f"| {processes} | {spread} | {median(tokens):,.0f} | {median(per_cpu):,.0f} |")
        print(f"\nload {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    typer.run(main)
