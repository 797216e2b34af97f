"""Batches by their tokens instead of their sentences, as in the paper (section 5.1), with little padding."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow.compute
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


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
        self._longest = np.max(lengths, axis=0)
        self._difference = lengths[-1] - lengths[0]  # with the longest, it says how long both are
        self._seed, self._epoch = seed, epoch
        self._starts: list[int] = []
        for place, length in enumerate(np.sort(self._longest).tolist()):  # rising: each would be the batch's longest
            if not self._starts or (place + 1 - self._starts[-1]) * length > max_tokens:
                self._starts.append(place)

        order = np.lexsort((self._difference, self._longest))
        rows = np.diff([*self._starts, len(order)])
        tokens, *sides = (rows @ np.maximum.reduceat(each[order], self._starts) for each in (self._longest, *lengths))
        self.mean_rows = float(rows.mean())
        self.mean_tokens = float(tokens / len(rows))
        self.padding = float(1 - np.sum(lengths) / sum(sides))

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng((self._seed, self._epoch()))
        order = np.lexsort((random.random(len(self._longest)), self._difference, self._longest))
        batches = np.split(order, self._starts[1:])
        for place in random.permutation(len(batches)):
            yield batches[place].tolist()


def lengths_of(rows: Dataset, column: str) -> np.ndarray:
    """How many tokens each row has in `column`, without reading them."""
    return pyarrow.compute.list_value_length(rows.with_format("arrow")[column][:]).to_numpy()


class BatchReport(TrainerCallback):
    """Logs what the batches are like, when training begins."""

    def __init__(self, batches: TokenBatchSampler, log: Callable[[dict[str, float]], None]) -> None:
        self._batches, self._log = batches, log

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log it, as a Trainer logs losses: on the terminal, in `trainer_state.json`, to TensorBoard and the like."""
        facts = {"batches_per_epoch": len(self._batches), "tokens_per_batch": self._batches.mean_tokens}
        self._log({**facts, "padding": self._batches.padding})
