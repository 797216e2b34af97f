"""Batches by their tokens instead of their sentences, as in the paper (section 5.1), with little padding."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow.compute
from datasets import Dataset
from torch.utils.data import IterableDataset, Sampler


class TokenBatchSampler(Sampler[list[int]]):
    """Batches of rows of like length, of at most `max_tokens` each, in another order in each epoch.

    A batch counts as it is computed, padding included: its rows times its longest text; where a row has two texts,
    source and target, the longest of all. A row that is longer than `max_tokens` is a batch of its own.

    From one epoch to the next, batches change places, and so do rows of the very same lengths. Every epoch has
    therefore as many batches, of the same shapes, and what memory holds in the first it holds in all. Only seed and
    epoch decide the order: all processes have the same batches, and a resumed run goes on as it would have.

    Give it to a `DataLoader` as `batch_sampler`; Accelerate deals the batches out to the processes and, where that
    does not come out even, lets the last step repeat the epoch's first batches.

    Attributes:
        batch_size: None, which tells Accelerate that a batch has any number of rows.
        drop_last: False, which tells Accelerate that no batch is left out.
        mean_rows: Of a batch.
        mean_tokens: Of a batch, as `max_tokens` counts them.
        padding: The share of padding in all that is computed, source and target.
    """

    batch_size = None
    drop_last = False

    def __init__(
        self, lengths: Sequence[np.ndarray], max_tokens: int, seed: int = 0, epoch: Callable[[], int] = lambda: 0
    ) -> None:
        """Decide the shapes of the batches.

        Args:
            lengths: Of all rows, in tokens; where they have two texts, of the sources and of the targets.
            max_tokens: What a batch may have.
            seed: Of the order.
            epoch: Which one begins. It is asked, because a `set_epoch` does not reach a sampler that is both dealt out
                to processes and resumed within an epoch.
        """
        self._lengths, self._max_tokens = lengths, max_tokens
        self._seed, self._epoch = seed, epoch
        batches = token_batches(lengths, max_tokens, np.random.default_rng(seed))
        rows = np.array([len(batch) for batch in batches])
        longest = [np.array([each[batch].max() for batch in batches]) for each in lengths]
        self._count = len(batches)
        self.mean_rows = float(rows.mean())
        self.mean_tokens = float((rows * np.max(longest, axis=0)).mean())
        self.padding = float(1 - np.sum(lengths) / np.sum(rows * longest))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng((self._seed, self._epoch()))
        batches = token_batches(self._lengths, self._max_tokens, random)
        for place in random.permutation(len(batches)):
            yield batches[place].tolist()


class TokenBatchStream(IterableDataset):
    """The same from a stream, whose rows are not known before: batches of each `buffer_size` rows that come.

    Batches are as those of a `TokenBatchSampler`, but rows of like length are looked for, and batches change places,
    only within a buffer: a larger one takes more memory, has less padding, and mixes more. The order of the buffers is
    that of the stream. Only stream, seed and epoch decide the batches, and every process makes all of them, without a
    word to the others.

    An epoch has a multiple of `multiple` batches, so that they can be dealt out to processes, and accumulated, in
    whole steps: at the end of the stream as many batches are halved as it takes. So every row comes once, however many
    processes there are; unless the last buffer has fewer rows than batches are missing, and some come twice.

    The place in an epoch is the number of its batches until then: who goes on from there makes those before again,
    which takes the time to read and encode their rows.
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
        """Nothing is read yet.

        Args:
            rows: A stream, or anything else that gives the same rows each time it is read.
            columns: Of a row those whose lengths count: that of the source, and of the target if there is one.
            max_tokens: What a batch may have.
            buffer_size: Rows that are read before batches are made of them.
            multiple: Batches of a step, of all processes.
            seed: Of the order.
        """
        self._rows, self._columns = rows, columns
        self._max_tokens, self._buffer_size, self._multiple, self._seed = max_tokens, buffer_size, multiple, seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins; without a word, the next one does."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[Mapping[str, Any]]]:
        made = 0
        for number, (buffer, is_last) in enumerate(self._buffers()):
            random = np.random.default_rng((self._seed, self._epoch, number))
            lengths = [np.array([len(row[column]) for row in buffer]) for column in self._columns]
            batches = token_batches(lengths, self._max_tokens, random)
            if is_last:
                batches = with_more(batches, -(made + len(batches)) % self._multiple)
            made += len(batches)
            for place in random.permutation(len(batches)):
                yield [buffer[i] for i in batches[place]]
        self._epoch += 1  # of a worker that lives on, to which `set_epoch` does not reach

    def _buffers(self) -> Iterator[tuple[list[Mapping[str, Any]], bool]]:
        """The rows of each buffer, and whether it is the last one."""
        rows = iter(self._rows)
        ahead = list(islice(rows, 1))
        while ahead:
            buffer = [*ahead, *islice(rows, self._buffer_size - 1)]
            ahead = list(islice(rows, 1))
            yield buffer, not ahead


def token_batches(lengths: Sequence[np.ndarray], max_tokens: int, random: np.random.Generator) -> list[np.ndarray]:
    """The indices of the rows of each batch, from the shortest rows to the longest.

    Args:
        lengths: Of all rows; where they have two texts, of the sources and of the targets.
        max_tokens: What a batch may have: rows times the longest text.
        random: Decides the order of rows of the very same lengths.
    """
    longest = np.max(lengths, axis=0)
    difference = lengths[-1] - lengths[0]  # with the longest, it says how long both are
    order = np.lexsort((random.random(len(longest)), difference, longest))
    starts: list[int] = []
    for place, length in enumerate(longest[order].tolist()):  # rising: each would be the batch's longest
        if not starts or (place + 1 - starts[-1]) * length > max_tokens:
            starts.append(place)
    return np.split(order, starts[1:])


def with_more(batches: list[np.ndarray], missing: int) -> list[np.ndarray]:
    """The same rows in so many batches more, by halving the largest; with none to halve, some come twice."""
    batches = list(batches)
    for number in range(missing):
        largest = max(range(len(batches)), key=lambda i: len(batches[i]))
        halves = np.array_split(batches[largest], 2)
        if len(halves[1]):
            batches[largest : largest + 1] = halves
        else:
            batches.append(batches[number % len(batches)])
    return batches


def lengths_of(rows: Dataset, column: str) -> np.ndarray:
    """How many tokens each row has in `column`, without reading them."""
    return pyarrow.compute.list_value_length(rows.with_format("arrow")[column][:]).to_numpy()
