"""Batches of a stream: each process forms those of its own rows, and goes on where a checkpoint was written."""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from trivium.data.shares import EncodedStream, Place, Row
from trivium.data.token_batches import token_batches


class PlacedBatch(NamedTuple):
    """A batch, and the place after it.

    Attributes:
        rows: The rows of the batch.
        place: Its `share` and `epoch`; the place of the `buffer` that it comes from; and the number of batches of this
            buffer up to it.
    """

    rows: list[Row]
    place: Place


class BatchStream(IterableDataset):
    """Form batches of the shares of a stream that a process reads.

    The stream is divided into shares once, when a run starts: one for each process, or for each of its workers. A
    share is read in buffers. With `max_tokens`, the rows of a buffer are grouped by length as in `TokenBatchSampler`,
    and its batches are shuffled; without, a buffer is one batch. Every row is in exactly one batch of an epoch.

    A process takes one batch of each of its shares in turn, whatever the number of its workers. The order depends only
    on stream, seed, epoch and shares.

    Attributes:
        rows: The stream.
        epoch: The epoch of the next iteration; by default, each iteration advances the epoch by one.
        num_shares: Number of shares of the stream, over all processes.
        shares: Indices of the shares that this process reads.
        places: Place to start from for each share of which there is one, with its `turn`: the shares with the lowest
            turns come first. Those of other epochs are ignored.
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
            columns: Columns whose lengths count for `max_tokens`.
            seed: Seed of the order.
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
        self.epoch += 1  # `set_epoch` does not reach the copy in a persistent worker.

    def _batches(self, share: int, place: Place | None) -> Iterator[PlacedBatch]:
        """Yield the batches of a share from a place."""
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
        """Divide the rows of the buffer with this number into batches, and return the indices of each."""
        if self._max_tokens is None:
            return [range(len(rows))]
        # The same order in all shares: their batches of a step then tend to have similar lengths.
        rng = np.random.default_rng((self._seed, self.epoch, number))
        lengths = [np.array([len(row[column]) for row in rows]) for column in self._columns]
        batches = token_batches(lengths, self._max_tokens, rng)
        return [batches[index].tolist() for index in rng.permutation(len(batches))]
