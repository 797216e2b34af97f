"""Read a stream in shares, one for each process, from a place that a checkpoint stores."""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import datasets
from torch.utils.data import IterableDataset

Row = dict[str, Any]
Place = dict[str, Any]  # Only values that JSON keeps.

READ_ROWS = 1000  # number of rows to read at once; resuming reads fewer than that again
ENCODED_ROWS = 1000  # number of rows to encode at once; the texts among them are packed together


class PlacedRow(NamedTuple):
    """An encoded row, with its place.

    Attributes:
        row: The columns of the row.
        place: The place before the rows that were encoded together.
        number: Index among the encoded rows of these.
    """

    row: Row
    place: Place
    number: int


class RowReader:
    """Read the rows of one share of a dataset, in order.

    With at least as many shards as shares, a share consists of every `num_shares`-th shard, and no other shard is
    read. With fewer shards, all rows are read, and a share consists of every `num_shares`-th row.

    The place is the state of the dataset before the rows that were read at once, and the number of them that were
    taken since. It is that of the dataset itself, without datasets' own shuffling, whose buffer its state leaves out.
    """

    def __init__(
        self, rows: datasets.IterableDataset, share: int, num_shares: int, has_shards: bool, place: Place | None = None
    ) -> None:
        """Start at a place, without reading any row.

        Args:
            rows: The dataset.
            share: Index of the share.
            num_shares: Number of shares.
            has_shards: False if `rows` must not be read by shards, because its rows are counted over all of them.
            place: Place to start from, as `place` returned it; None for the first row.
        """
        by_shards = has_shards and rows.num_shards >= num_shares
        # `shard` copies the dataset: its state is then that of this reader alone.
        self._rows = rows.shard(num_shares, share, contiguous=False) if by_shards else rows.shard(1, 0)
        self._step, self._offset = (1, 0) if by_shards else (num_shares, share)
        place = place or {"state": None, "rows": 0, "taken": 0}
        self._state, self._count = place["state"], place["rows"]
        if self._state is not None:
            self._rows.load_state_dict(self._state)
        # Not `iter(self._rows)`: in a worker of a DataLoader, that leaves out the shards of other workers.
        self._reads = self._rows.iter(READ_ROWS)
        self._read: list[Row] | None = None
        self._taken = 0
        self._start = place["taken"]

    @property
    def place(self) -> Place:
        """Return the place after the last row that was taken."""
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
    """A stream of rows that are encoded when they are read; each share of it can be read on its own.

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
            encode: Function from columns to encoded columns, whose number of rows may differ.
            has_shards: As in `RowReader`.
        """
        self.rows, self._encode, self._has_shards = rows, encode, has_shards

    def __iter__(self) -> Iterator[Row]:
        return (placed.row for placed in self.read_share(0, 1))

    def first_row(self) -> Row:
        """Return the first row, without encoding others."""
        [row] = islice(RowReader(self.rows, 0, 1, self._has_shards), 1)
        columns = self._encode({name: [value] for name, value in row.items()})
        return {name: values[0] for name, values in columns.items()}

    def read_share(
        self, share: int, num_shares: int, place: Place | None = None, number: int = 0
    ) -> Iterator[PlacedRow]:
        """Yield the encoded rows of a share from a place, and those before `number` among its first ones not."""
        reader = RowReader(self.rows, share, num_shares, self._has_shards, place)
        rows, place = iter(reader), reader.place
        while block := list(islice(rows, ENCODED_ROWS)):
            columns = self._encode({name: [row[name] for row in block] for name in block[0]})
            encoded = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
            for index, row in enumerate(encoded):
                if index >= number:
                    yield PlacedRow(row, place, index)
            place, number = reader.place, 0
