"""Read a stream in shares, one per process, starting at a position that a checkpoint stores."""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import datasets
from torch.utils.data import IterableDataset

Row = dict[str, Any]
Place = dict[str, Any]  # contains only values that survive a JSON round trip

READ_ROWS = 1000  # number of rows to read at once; resuming rereads fewer rows than this
ENCODED_ROWS = 1000  # number of rows to encode at once; their texts are packed together


class PlacedRow(NamedTuple):
    """An encoded row and its position in the stream.

    Attributes:
        row: The columns of the row.
        place: Position before the block of rows that were encoded together.
        number: Index of the row among the encoded rows of that block.
    """

    row: Row
    place: Place
    number: int


class RowReader:
    """Read the rows of one share of a dataset, in order.

    With at least as many shards as shares, a share consists of every `num_shares`-th shard, and no other shard is
    read. With fewer shards, all rows are read, and a share consists of every `num_shares`-th row.

    A position consists of the state of the dataset before the current block of rows and the number of rows taken from
    that block. It is only exact for a dataset that is not shuffled by `datasets`, whose state omits the shuffle
    buffer.
    """

    def __init__(
        self, rows: datasets.IterableDataset, share: int, num_shares: int, has_shards: bool, place: Place | None = None
    ) -> None:
        """Start at a position, without reading any row.

        Args:
            rows: The dataset.
            share: Index of the share.
            num_shares: Number of shares.
            has_shards: False if `rows` must not be read by shards, because rows are counted across all shards.
            place: Position to start from, as returned by `place`; None for the first row.
        """
        by_shards = has_shards and rows.num_shards >= num_shares
        # `shard` copies the dataset, so that no other reader changes its state.
        self._rows = rows.shard(num_shares, share, contiguous=False) if by_shards else rows.shard(1, 0)
        self._step, self._offset = (1, 0) if by_shards else (num_shares, share)
        place = place or {"state": None, "rows": 0, "taken": 0}
        self._state, self._count = place["state"], place["rows"]
        if self._state is not None:
            self._rows.load_state_dict(self._state)
        # Do not use `iter(self._rows)`: in a DataLoader worker, it skips the shards assigned to other workers.
        self._reads = self._rows.iter(READ_ROWS)
        self._read: list[Row] | None = None
        self._taken = 0
        self._start = place["taken"]

    @property
    def place(self) -> Place:
        """Return the position after the last row that was taken."""
        taken = self._start if self._read is None else self._taken
        return {"state": self._state, "rows": self._count, "taken": taken}

    def __iter__(self) -> Iterator[Row]:
        while True:
            if self._read is None:
                columns = next(self._reads, None)
                if columns is None:
                    return
                rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
                self._read_count = len(rows)
                self._read = rows[(self._offset - self._count) % self._step :: self._step]
                self._taken, self._start = self._start, 0
            while self._taken < len(self._read):
                self._taken += 1
                yield self._read[self._taken - 1]
            self._count += self._read_count
            self._state, self._read, self._taken = self._rows.state_dict(), None, 0


class EncodedStream(IterableDataset):
    """Stream of rows that are encoded lazily; each share can be read independently.

    Attributes:
        rows: The rows before encoding.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        encode: Callable[[dict[str, list[Any]]], Mapping[str, list[Any]]] = lambda columns: columns,
        has_shards: bool = True,
    ) -> None:
        """Store the arguments, without reading any row.

        Args:
            rows: The rows before encoding.
            encode: Function that maps columns to encoded columns; the number of rows may change.
            has_shards: As in `RowReader`.
        """
        self.rows, self._encode, self._has_shards = rows, encode, has_shards

    def __iter__(self) -> Iterator[Row]:
        return (placed.row for placed in self.read_share(0, 1))

    def first_row(self) -> Row:
        """Return the first row, without encoding any other row."""
        [row] = islice(RowReader(self.rows, 0, 1, self._has_shards), 1)
        columns = self._encode({name: [value] for name, value in row.items()})
        return {name: values[0] for name, values in columns.items()}

    def read_share(
        self, share: int, num_shares: int, place: Place | None = None, number: int = 0
    ) -> Iterator[PlacedRow]:
        """Yield the encoded rows of a share from a position, skipping the first `number` of them."""
        reader = RowReader(self.rows, share, num_shares, self._has_shards, place)
        rows, place = iter(reader), reader.place
        while block := list(islice(rows, ENCODED_ROWS)):
            columns = self._encode({name: [row[name] for row in block] for name in block[0]})
            encoded = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
            for index, row in enumerate(encoded):
                if index >= number:
                    yield PlacedRow(row, place, index)
            place, number = reader.place, 0
