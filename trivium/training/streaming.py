"""Train on a stream in several processes: equal steps, and a position that checkpoints store."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trivium.data.batch_stream import BatchStream
from trivium.storage.atomic import write_whole
from trivium.storage.json_object import read_json_object
from trivium.storage.names import STREAM_FILES

Batch = dict[str, Any]

PLACE = "place"  # key in a DataLoader batch that holds its position, as JSON
FILLER = "is_filler"  # key that marks a batch of weight zero


class StreamSteps:
    """Take the batches of an optimizer step from the stream of this process, and keep the position in the stream.

    All processes take the same number of batches. A process that has fewer batches than another process, or than the
    step needs, gets fillers, which are batches of weight zero. An epoch ends when no process has a batch left.

    Attributes:
        stream: The stream of this process.
        is_epoch_done: True if no process has a batch left in this epoch.
    """

    def __init__(self, stream: BatchStream, rank: int, num_processes: int, num_workers: int) -> None:
        """Divide the stream into shares for new runs: one for each process and worker.

        Args:
            stream: The stream of this process, whose shares are set.
            rank: Index of this process.
            num_processes: Number of processes that read different data.
            num_workers: Number of dataloader workers of each process.
        """
        self.stream, self.is_epoch_done = stream, False
        self._rank, self._num_processes = rank, num_processes
        self._epoch, self._turn = 0, 0
        self._places: dict[int, dict[str, Any]] = {}
        # Communicate over the CPU, so that the exchange in each step does not wait for the accelerator.
        self._group = distributed.new_group(backend="gloo") if distributed.is_initialized() else None
        self._divide(num_processes * max(1, num_workers))

    def _divide(self, num_shares: int) -> None:
        self.stream.num_shares = num_shares
        self.stream.shares = list(range(self._rank, num_shares, self._num_processes))

    def begin_epoch(self, epoch: int) -> None:
        """Discard the positions of other epochs."""
        if epoch != self._epoch:
            self._epoch, self._turn, self._places = epoch, 0, {}
        self.is_epoch_done = False

    def take(
        self, batches: Iterator[Batch], count: int, is_exhausted: Callable[[], bool], make_filler: Callable[[], Batch]
    ) -> list[Batch]:
        """Return the `count` batches of a step, or no batches at the end of an epoch.

        Args:
            batches: The batches of this process.
            count: Number of batches per step.
            is_exhausted: Function that returns True if `batches` has no batch left.
            make_filler: Function that returns a batch of weight zero.
        """
        if self.is_epoch_done:
            return []
        taken: list[Batch] = []
        for batch in batches:
            place = json.loads(batch.pop(PLACE))
            self._places[place.pop("share")] = {**place, "turn": self._turn + len(taken)}
            taken.append(batch)
            if len(taken) == count:
                break
        has_more = len(taken) == count and not is_exhausted()
        num_taken, has_more = self._maxima(len(taken), has_more)
        self.is_epoch_done = not has_more
        if not num_taken:
            return []
        self._turn += count
        return taken + [make_filler() for _ in range(count - len(taken))]

    def _maxima(self, num_taken: int, has_more: bool) -> tuple[int, bool]:
        """Return the maximum of each value over all processes."""
        if self._group is None:
            return num_taken, has_more
        maxima = torch.tensor([num_taken, has_more])
        distributed.all_reduce(maxima, distributed.ReduceOp.MAX, self._group)
        return int(maxima[0]), bool(maxima[1])

    def save(self, checkpoint: Path) -> None:
        """Write the position of this process to a checkpoint."""
        position = {
            "num_shares": self.stream.num_shares,
            "epoch": self._epoch,
            "is_epoch_done": self.is_epoch_done,
            "turn": self._turn,
            "places": {str(share): self._places[share] for share in sorted(self._places)},
        }
        write_whole(checkpoint / STREAM_FILES.replace("*", str(self._rank)), json.dumps(position))

    def load(self, checkpoint: Path) -> bool:
        """Resume from the position in a checkpoint, even if a different number of processes wrote it.

        Returns:
            False if the checkpoint has no position.

        Raises:
            ValueError: As in `load_positions`.
        """
        positions = load_positions(checkpoint, self._num_processes)
        if not positions:
            self._divide(1)  # as in earlier versions, which stored no position
            return False
        self._divide(positions[0]["num_shares"])
        self._epoch, self._turn = positions[0]["epoch"], positions[0]["turn"]
        self.is_epoch_done = positions[0]["is_epoch_done"]
        places = {int(share): place for position in positions for share, place in position["places"].items()}
        self._places = {share: places[share] for share in self.stream.shares if share in places}
        self.stream.places = dict(self._places)
        return True


class EpochOffset(TrainerCallback):
    """Correct the logged epoch of a run resumed in mid-epoch; the Trainer counts from the start of the epoch.

    Attributes:
        offset: Fraction of the epoch that was completed before the checkpoint.
    """

    def __init__(self) -> None:
        self.offset = 0.0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add the offset to the epoch."""
        if self.offset:
            state.epoch = (state.epoch or 0) + self.offset

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Reset the offset: later epochs are counted correctly by the Trainer."""
        self.offset = 0.0


def load_positions(checkpoint: Path, num_processes: int) -> list[dict[str, Any]]:
    """Load the stream positions that the processes of a run wrote to a checkpoint.

    Args:
        checkpoint: The checkpoint.
        num_processes: Number of processes that resume from the checkpoint.

    Raises:
        ValueError: The checkpoint has fewer shares than there are processes, or no positions although there are
            several processes.
    """
    positions = [read_json_object(path) for path in sorted(checkpoint.glob(STREAM_FILES))]
    if not positions and num_processes > 1:
        raise ValueError(
            f"{checkpoint} has no position in the stream, because an earlier version wrote it. Resume it in one "
            f"process, which reads the stream again, with {num_processes} times training.gradient_accumulation_steps."
        )
    if positions and positions[0]["num_shares"] < num_processes:
        shares = positions[0]["num_shares"]
        raise ValueError(
            f"The run divided its stream into {shares} shares, one for each process or worker that it started with, "
            f"but there are {num_processes} processes now. Resume with at most {shares}."
        )
    return positions
