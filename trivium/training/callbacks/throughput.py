"""Callback that measures training throughput: tokens per second, padding, TFLOP/s and MFU."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from trivium.training.flops import COUNTED, TokenCounts, count_tokens, peak_flops, training_flops
from trivium.training.streaming import FILLER

logger = logging.getLogger(__name__)

MAX_WAIT = 0.2  # fraction of the time spent waiting for batches above which a warning is logged


@dataclass
class Work:
    """Tokens, FLOPs and time of a sequence of training steps.

    Attributes:
        tokens: Input and target tokens without padding.
        padded: Input and target tokens including padding.
        flops: Model FLOPs of the tokens without padding (`trivium.training.flops`).
        seconds: Duration of the steps, including waiting for their batches, but not evaluation, saving, or skipping
            batches on resumption.
        waiting: Part of `seconds` that this process spent waiting for its batches.
    """

    tokens: int = 0
    padded: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    waiting: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.tokens + other.tokens,
            self.padded + other.padded,
            self.flops + other.flops,
            self.seconds + other.seconds,
            self.waiting + other.waiting,
        )


class Throughput(TrainerCallback, ExportableState):
    """Measure training throughput, and store the totals in `trainer_state.json`, under `stateful_callbacks`.

    The Trainer must pass the batches of every step to `begin_step` and add `since_last_log()` to its logs, as
    `trivium.training.RunTrainer` does. Counts are summed over all processes, but all-reduced only when logging or
    saving.

    Attributes:
        work: Totals of the run, including the earlier sessions of a resumed run.
    """

    def __init__(self) -> None:
        self.work = Work()
        self._model: PreTrainedModel | None = None
        self._counts: torch.Tensor | None = None  # counts of this process since the last all-reduce
        self._seconds = self._waiting = 0.0
        self._since_last_log = Work()
        self._peak: float | None = None
        self._has_warned = False
        self._step_start: float | None = None
        self._is_first = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the totals from the checkpoint, or start from zero."""
        self._model = kwargs["model"]
        saved = state.stateful_callbacks.get(type(self).__name__, {}).get("attributes", {})
        self.work = Work(**saved.get("work", {}))
        self._counts, self._seconds, self._waiting, self._is_first = None, 0.0, 0.0, True
        self._since_last_log = Work()
        peak = peak_flops(args.device)
        self._peak = None if peak is None else peak * args.world_size * max(1, args.n_gpu)
        state.stateful_callbacks[type(self).__name__] = self.state()

    def begin_step(self, batches: Sequence[dict[str, torch.Tensor]], start: float) -> None:
        """Start timing an optimizer step, and count the tokens in its batches.

        Args:
            batches: The batches of the step, one per gradient accumulation step.
            start: Value of `time.perf_counter()` before the batches were loaded.
        """
        # Exclude the time before the first step, when workers start and a resumed run skips batches.
        loaded = time.perf_counter()
        self._step_start, self._is_first = (loaded if self._is_first else start), False
        self._waiting += loaded - self._step_start
        assert self._model is not None  # set by `on_train_begin`
        for batch in batches:
            if "input_ids" in batch and "labels" in batch:
                # Fillers count as zero tokens, so that a process with only fillers still takes part in the all-reduce.
                counts = count_tokens(batch, self._model) * (FILLER not in batch)
                self._counts = counts if self._counts is None else self._counts + counts

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop the clock of the step."""
        if self._step_start is not None:
            self._seconds += time.perf_counter() - self._step_start
            self._step_start = None
        self.on_epoch_end(args, state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """All-reduce the counts if the Trainer is about to log or save."""
        if control.should_log or control.should_save:
            self._all_reduce_counts(args)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """All-reduce the last counts, and store the totals for `Trainer.save_state`."""
        self._all_reduce_counts(args)
        state.stateful_callbacks[type(self).__name__] = self.state()

    def since_last_log(self) -> dict[str, float]:
        """Return the throughput since the last call, and reset it.

        Returns:
            `tokens_per_second`: input and target tokens of all processes, without padding; `padding`: the fraction of
            padding among all tokens; `data_wait`: the fraction of time that this process spent waiting for batches (a
            warning is logged once if it is large); `model_tflops_per_second`; and, if the peak of the devices is
            known, `mfu`: the model FLOPs as a fraction of their peak bf16 throughput. Empty if there was no step.
        """
        work, self._since_last_log = self._since_last_log, Work()
        if not work.padded or not work.seconds:
            return {}
        if work.waiting > MAX_WAIT * work.seconds and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "Training waited for batches in %.0f %% of the time since the last log. Load them in the background "
                "(training.dataloader_num_workers=1 or more), or, if the data are a stream, tokenize them once with "
                "`trivium prepare`.",
                100 * work.waiting / work.seconds,
            )
        flops_per_second = work.flops / work.seconds
        rates = {
            "tokens_per_second": work.tokens / work.seconds,
            "padding": 1 - work.tokens / work.padded,
            "data_wait": work.waiting / work.seconds,
            "model_tflops_per_second": flops_per_second / 1e12,
        }
        return rates if self._peak is None else {**rates, "mfu": flops_per_second / self._peak}

    def state(self) -> dict[str, Any]:
        """Return the totals in the format of `ExportableState`."""
        return {"args": {}, "attributes": {"work": asdict(self.work)}}

    def _all_reduce_counts(self, args: TrainingArguments) -> None:
        """Sum the counts over all processes, and add them to the totals."""
        if self._counts is None or self._model is None:
            return
        if args.world_size > 1:
            torch.distributed.all_reduce(self._counts)
        counts = TokenCounts(**dict(zip(COUNTED, self._counts.tolist(), strict=True)))
        work = Work(counts.tokens, counts.padded, training_flops(counts, self._model), self._seconds, self._waiting)
        self._since_last_log += work
        self.work += work
        self._counts, self._seconds, self._waiting = None, 0.0, 0.0


class DataReport(TrainerCallback):
    """Log statistics of the training data when training begins, as the Trainer logs losses."""

    def __init__(self, statistics: dict[str, float], log: Callable[[dict[str, float]], None]) -> None:
        self._statistics, self._log = statistics, log

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log the statistics."""
        self._log(dict(self._statistics))
