"""Batch a stream: each process batches its own rows, and can resume from a checkpoint."""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from trivium.data.shares import EncodedStream, Place, Row
from trivium.data.token_batches import token_batches


class PlacedBatch(NamedTuple):
    """A batch and the position after it.

    Attributes:
        rows: The rows of the batch.
        place: Position after the batch: its `share` and `epoch`, the number and start of its `buffer`, and how many
            batches of that buffer have been taken, including this one.
    """

    rows: list[Row]
    place: Place


class BatchStream(IterableDataset):
    """Batch the shares of a stream that this process reads.

    The stream is divided into shares once, when a run starts, with one share for each process or dataloader worker. A
    share is read in buffers. With `max_tokens`, the rows of a buffer are grouped by length as in `TokenBatchSampler`,
    and its batches are shuffled; without it, a buffer is one batch. Every row is in exactly one batch of an epoch.

    A process takes one batch from each of its shares in turn, regardless of the number of workers. The order depends
    only on the stream, the seed, the epoch and the shares.

    Attributes:
        rows: The stream.
        epoch: The epoch of the next iteration; by default, each iteration advances the epoch by one.
        num_shares: Number of shares of the stream, over all processes.
        shares: Indices of the shares that this process reads.
        places: Positions to resume from, by share. Shares with the lowest `turn` are read first; positions of other
            epochs are ignored.
    """

    def __init__(
        self,
        rows: EncodedStream,
        buffer_size: int,
        max_tokens: int | None = None,
        columns: Sequence[str] = ("input_ids",),
        seed: int = 0,
    ) -> None:
        """Store the arguments, without reading any row.

        Args:
            rows: The stream.
            buffer_size: Number of rows to buffer.
            max_tokens: Maximum number of tokens per batch; None for batches of `buffer_size` rows.
            columns: Columns whose lengths count toward `max_tokens`.
            seed: Seed of the order of batches.
        """
        self.rows, self._columns, self._seed = rows, columns, seed
        self._buffer_size, self._max_tokens = buffer_size, max_tokens
        self.epoch, self.num_shares, self.shares = 0, 1, [0]
        self.places: dict[int, Place] = {}

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[PlacedBatch]:
        places = {share: place for share, place in self.places.items() if place["epoch"] == self.epoch}
        shares = sorted(self.shares, key=lambda share: (places[share]["turn"] if share in places else -1, share))
        worker = get_worker_info()
        if worker is not None:
            shares = shares[worker.id :: worker.num_workers]
        turns = deque(self._batches(share, places.get(share)) for share in shares)
        while turns:
            batches = turns.popleft()
            batch = next(batches, None)
            if batch is not None:
                yield batch
                turns.append(batches)
        self.epoch += 1  # needed because `set_epoch` does not reach the copy in a persistent worker

    def _batches(self, share: int, place: Place | None) -> Iterator[PlacedBatch]:
        """Yield the batches of a share, starting at a position."""
        number, done = (0, 0) if place is None else (place["buffer"], place["batch"])
        start = (None, 0) if place is None else (place["rows"], place["number"])
        rows = self.rows.read_share(share, self.num_shares, *start)
        while buffer := list(islice(rows, self._buffer_size)):
            first = buffer[0]
            batches = self._divide([placed.row for placed in buffer], number)
            for count, batch in enumerate(batches[done:], start=done + 1):
                after: Place = {"buffer": number, "batch": count, "rows": first.place, "number": first.number}
                after |= {"share": share, "epoch": self.epoch}
                yield PlacedBatch([buffer[index].row for index in batch], after)
            number, done = number + 1, 0

    def _divide(self, rows: list[Row], number: int) -> list[Sequence[int]]:
        """Divide the rows of buffer `number` into batches, and return the row indices of each batch."""
        if self._max_tokens is None:
            return [range(len(rows))]
        # Use the same order in all shares, so that their batches of a step tend to have similar lengths.
        rng = np.random.default_rng((self._seed, self.epoch, number))
        lengths = [np.array([len(row[column]) for row in rows]) for column in self._columns]
        batches = token_batches(lengths, self._max_tokens, rng)
        return [batches[index].tolist() for index in rng.permutation(len(batches))]
