"""Samplers that group rows of similar length, in an order that depends only on seed and epoch."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from transformers.trainer_pt_utils import BatchRebalanceSampler, LengthGroupedSampler


class SeededLengthGroupedSampler(LengthGroupedSampler):
    """Group rows of similar length as transformers does, in an order that depends only on seed and epoch.

    The Trainer's own sampler draws from torch's global generator. Its order may therefore differ between processes,
    and it does differ after resuming in the middle of a later epoch.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int, epoch: Callable[[], int]) -> None:
        """Initialize with the lengths of the rows.

        Args:
            lengths: Length of each row.
            batch_size: Number of rows per optimizer step; these rows have similar lengths.
            seed: Seed of the order.
            epoch: Function that returns the current epoch. It is called whenever an epoch begins, because Accelerate
                does not forward `set_epoch` to this sampler.
        """
        super().__init__(batch_size, lengths=lengths)
        self._seed, self._epoch = seed, epoch

    def __iter__(self) -> Iterator[int]:
        [seed] = np.random.SeedSequence((self._seed, self._epoch())).generate_state(1)
        self.generator = torch.Generator().manual_seed(int(seed))
        return super().__iter__()


class SeededBatchRebalanceSampler(BatchRebalanceSampler):
    """Balance batch lengths over processes as transformers does, in an order that depends only on seed and epoch.

    Accelerate does not forward `set_epoch` to the Trainer's own sampler when several processes resume in the middle of
    an epoch.
    """

    def __init__(self, *args: Any, epoch: Callable[[], int], **kwargs: Any) -> None:
        """Accept the arguments of `BatchRebalanceSampler`, and `epoch` as in `SeededLengthGroupedSampler`."""
        super().__init__(*args, **kwargs)
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        self.set_epoch(self._epoch())
        return super().__iter__()
