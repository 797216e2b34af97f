"""How fast a training goes, and how much of it is for nothing."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from trivium.data.token_batches import TokenBatchSampler
from trivium.training.flops import COUNTED, TokenCounts, count_tokens, peak_flops, training_flops


@dataclass
class Work:
    """What was done, and how long it took.

    Attributes:
        tokens: Real ones, source and target.
        padded: With those that filled up batches.
        flops: The arithmetic that the real ones needed (`trivium.training.flops`).
        seconds: Of the steps, with waiting for their batches; evaluating, saving and, after resuming, finding the
            place in the data are not in it.
    """

    tokens: int = 0
    padded: int = 0
    flops: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.tokens + other.tokens,
            self.padded + other.padded,
            self.flops + other.flops,
            self.seconds + other.seconds,
        )


class Throughput(TrainerCallback, ExportableState):
    """Counts what a training computes on; kept in every `trainer_state.json`, under `stateful_callbacks`.

    A Trainer must tell it of every step's batches (`begin_step`), and add `since_last_log()` to what it logs, as
    `trivium.training.RunTrainer` does. Counts are of all processes, which come together only where something is logged
    or saved.

    Attributes:
        work: Of a resumed run that of all its sessions.
    """

    def __init__(self) -> None:
        self.work = Work()
        self._model: PreTrainedModel | None = None
        self._counts: torch.Tensor | None = None  # of this process, since they came together
        self._seconds = 0.0
        self._since_last_log = Work()
        self._peak: float | None = None
        self._began: float | None = None
        self._is_first = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on from the checkpoint's counts, if there is one."""
        self._model = kwargs["model"]
        kept = state.stateful_callbacks.get(type(self).__name__, {}).get("attributes", {})
        self.work = Work(**kept.get("work", {}))
        self._counts, self._seconds, self._is_first = None, 0.0, True
        self._since_last_log = Work()
        peak = peak_flops(args.device)
        self._peak = None if peak is None else peak * args.world_size * max(1, args.n_gpu)
        state.stateful_callbacks[type(self).__name__] = self.state()

    def begin_step(self, batches: Sequence[dict[str, torch.Tensor]], since: float) -> None:
        """Count a step's batches, accumulated ones together; `since` is the time at which they were asked for."""
        # Before the first ones a resumed run has looked for its place.
        self._began, self._is_first = (time.perf_counter() if self._is_first else since), False
        assert self._model is not None  # the Trainer has told that training begins
        for batch in batches:
            if "input_ids" in batch and "labels" in batch:
                counts = count_tokens(batch, self._model)
                self._counts = counts if self._counts is None else self._counts + counts

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop the clock."""
        if self._began is not None:
            self._seconds += time.perf_counter() - self._began
            self._began = None
        self.on_epoch_end(args, state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Have all counts, if something is to be logged or saved now."""
        if control.should_log or control.should_save:
            self._come_together(args)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Have the last counts; `Trainer.save_state` writes what it is told here."""
        self._come_together(args)
        state.stateful_callbacks[type(self).__name__] = self.state()

    def since_last_log(self) -> dict[str, float]:
        """What happened since this was last asked: `tokens_per_second`, `padding`, `model_tflops_per_second`, `mfu`.

        Tokens are real ones, of source and target, of all processes; `padding` is a share of all that was computed;
        `mfu` that of the devices' peak in bf16, if it is known, which the arithmetic for the real tokens took.
        """
        done, self._since_last_log = self._since_last_log, Work()
        if not done.padded or not done.seconds:
            return {}
        flops_per_second = done.flops / done.seconds
        rates = {
            "tokens_per_second": done.tokens / done.seconds,
            "padding": 1 - done.tokens / done.padded,
            "model_tflops_per_second": flops_per_second / 1e12,
        }
        return rates if self._peak is None else {**rates, "mfu": flops_per_second / self._peak}

    def state(self) -> dict[str, Any]:
        """The work until now, as the Trainer keeps them."""
        return {"args": {}, "attributes": {"work": asdict(self.work)}}

    def _come_together(self, args: TrainingArguments) -> None:
        """Add up the counts of all processes, in each."""
        if self._counts is None or self._model is None:
            return
        if args.world_size > 1:
            torch.distributed.all_reduce(self._counts)
        counts = TokenCounts(**dict(zip(COUNTED, self._counts.tolist(), strict=True)))
        done = Work(counts.tokens, counts.padded, training_flops(counts, self._model), self._seconds)
        self._since_last_log += done
        self.work += done
        self._counts, self._seconds = None, 0.0


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
