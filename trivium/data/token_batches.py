"""Batches with a token budget instead of a number of rows (Vaswani et al. 2017, section 5.1), with little padding."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow.compute
from datasets import Dataset
from torch.utils.data import IterableDataset, Sampler

from trivium.configuration import TriviumConfig


class TokenBatchSampler(Sampler[list[int]]):
    """Sample batches of rows of similar length with at most `max_tokens` tokens, in a new order in each epoch.

    The tokens of a batch include padding: its number of rows times its longest text, source or target. A row that is
    longer than `max_tokens` forms a batch of its own.

    Each epoch shuffles the batches, and swaps rows of identical lengths between them. All epochs therefore have the
    same number of batches, of the same shapes, so that training that fits into memory in the first epoch fits in all.
    The order depends only on seed and epoch: all processes sample the same batches, and a resumed run continues with
    the batches of an uninterrupted one.

    Pass it to a `DataLoader` as `batch_sampler`. Accelerate distributes the batches over the processes; if their
    number is not divisible, the last step repeats the first batches of the epoch.

    Attributes:
        batch_size: None, because the number of rows per batch varies (read by Accelerate).
        drop_last: False, because no batch is dropped (read by Accelerate).
        mean_rows: Mean number of rows per batch.
        mean_tokens: Mean number of tokens per batch, as counted for `max_tokens`.
        padding: Fraction of padding among all source and target tokens.
    """

    batch_size = None
    drop_last = False

    def __init__(
        self, lengths: Sequence[np.ndarray], max_tokens: int, seed: int = 0, epoch: Callable[[], int] = lambda: 0
    ) -> None:
        """Compute the shapes of the batches.

        Args:
            lengths: Lengths of all rows in tokens: one array of shape (rows,), or two, for sources and targets.
            max_tokens: Maximum number of tokens per batch.
            seed: Seed of the order.
            epoch: Function that returns the current epoch; Accelerate does not forward `set_epoch` to the sampler if
                several processes resume inside an epoch.
        """
        self._lengths, self._max_tokens = lengths, max_tokens
        self._seed, self._epoch = seed, epoch
        batches = token_batches(lengths, max_tokens, np.random.default_rng(seed))
        rows = np.array([len(batch) for batch in batches])
        longest = [np.array([side[batch].max() for batch in batches]) for side in lengths]
        self._count = len(batches)
        self.mean_rows = float(rows.mean())
        self.mean_tokens = float((rows * np.max(longest, axis=0)).mean())
        self.padding = float(1 - np.sum(lengths) / np.sum(rows * longest))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng((self._seed, self._epoch()))
        batches = token_batches(self._lengths, self._max_tokens, rng)
        for index in rng.permutation(len(batches)):
            yield batches[index].tolist()


class TokenBatchStream(IterableDataset):
    """Form token batches from a stream, whose lengths are not known in advance, within buffers of `buffer_size` rows.

    Batches are formed as in `TokenBatchSampler`, but rows are grouped by length, and batches are shuffled, only within
    a buffer: a larger buffer takes more memory, needs less padding and shuffles better. Buffers follow the order of
    the stream. The batches depend only on stream, seed and epoch; every process forms all of them, without
    communication.

    The number of batches per epoch is a multiple of `multiple`, so that they can be distributed over processes and
    accumulation steps without a remainder: at the end of the stream, as many batches as necessary are halved. Every
    row is therefore used exactly once, for any number of processes. Rows are used twice only if the last buffer has
    fewer rows than the number of additional batches needed.

    The position in an epoch is the number of batches so far. Resuming forms the skipped batches again, which takes as
    long as reading and encoding their rows.
    """

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any]],
        columns: Sequence[str],
        max_tokens: int,
        buffer_size: int,
        multiple: int = 1,
        seed: int = 0,
    ) -> None:
        """Store the arguments, without reading any row.

        Args:
            rows: A stream, or another iterable that returns the same rows in each iteration.
            columns: Columns whose lengths are counted: the source column and, if there is one, the target column.
            max_tokens: Maximum number of tokens per batch.
            buffer_size: Number of rows to buffer.
            multiple: Number of batches per optimizer step, over all processes and accumulation steps.
            seed: Seed of the order.
        """
        self._rows, self._columns = rows, columns
        self._max_tokens, self._buffer_size, self._multiple, self._seed = max_tokens, buffer_size, multiple, seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration; by default, each iteration advances the epoch by one."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[Mapping[str, Any]]]:
        num_batches = 0
        for number, (buffer, is_last) in enumerate(self._buffers()):
            rng = np.random.default_rng((self._seed, self._epoch, number))
            lengths = [np.array([len(row[column]) for row in buffer]) for column in self._columns]
            batches = token_batches(lengths, self._max_tokens, rng)
            if is_last:
                batches = add_batches(batches, -(num_batches + len(batches)) % self._multiple)
            num_batches += len(batches)
            for index in rng.permutation(len(batches)):
                yield [buffer[row] for row in batches[index]]
        self._epoch += 1  # `set_epoch` does not reach the copy in a persistent worker.

    def _buffers(self) -> Iterator[tuple[list[Mapping[str, Any]], bool]]:
        """Yield the rows of each buffer, and whether it is the last buffer."""
        rows = iter(self._rows)
        next_row = list(islice(rows, 1))
        while next_row:
            buffer = [*next_row, *islice(rows, self._buffer_size - 1)]
            next_row = list(islice(rows, 1))
            yield buffer, not next_row


def token_batches(lengths: Sequence[np.ndarray], max_tokens: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Return the row indices of each batch, from the shortest rows to the longest.

    Args:
        lengths: Lengths of all rows in tokens: one array of shape (rows,), or two, for sources and targets.
        max_tokens: Maximum number of tokens per batch: its rows times its longest text.
        rng: Random generator that shuffles rows of identical lengths.
    """
    longest = np.max(lengths, axis=0)
    difference = lengths[-1] - lengths[0]  # together with the maximum, it determines both lengths
    order = np.lexsort((rng.random(len(longest)), difference, longest))
    starts: list[int] = []
    for index, length in enumerate(longest[order].tolist()):  # ascending, so `length` is the maximum of the batch
        if not starts or (index + 1 - starts[-1]) * length > max_tokens:
            starts.append(index)
    return np.split(order, starts[1:])


def add_batches(batches: list[np.ndarray], missing: int) -> list[np.ndarray]:
    """Return `missing` more batches of the same rows by halving the largest; repeat batches if none can be halved."""
    batches = list(batches)
    for number in range(missing):
        largest = max(range(len(batches)), key=lambda i: len(batches[i]))
        halves = np.array_split(batches[largest], 2)
        if len(halves[1]):
            batches[largest : largest + 1] = halves
        else:
            batches.append(batches[number % len(batches)])
    return batches


def token_columns(config: TriviumConfig) -> list[str]:
    """Return the names of the columns that contain the source and the target tokens of encoded rows."""
    return ["input_ids", "labels"] if config.is_encoder_decoder else ["input_ids"]


def tokens_of(rows: Dataset, config: TriviumConfig) -> int:
    """Return the number of tokens of encoded rows, including the padding of packed ones."""
    return sum(int(lengths_of(rows, column).sum()) for column in token_columns(config))


def lengths_of(rows: Dataset, column: str) -> np.ndarray:
    """Return the number of tokens of each row in `column`, without loading the tokens."""
    return pyarrow.compute.list_value_length(rows.with_format("arrow")[column][:]).to_numpy()
