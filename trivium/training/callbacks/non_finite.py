"""Callback that stops training when the loss or the gradients are no longer finite."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trivium.storage.checkpoints import is_finite
from trivium.storage.names import checkpoints_of

MAX_NON_FINITE_STEPS = 10


class NonFiniteError(ValueError):
    """Raised when training has produced NaN or infinity and cannot recover."""


class NonFiniteGuard(TrainerCallback):
    """Stop after `MAX_NON_FINITE_STEPS` optimizer steps in a row with a non-finite loss or gradient norm.

    Steps that a float16 loss scaler skips do not count. The Trainer passes every loss and gradient norm to `observe`.
    The counter stays on the device of these values. With a single CPU process, where reading it is free, it is read
    after every step. Otherwise it is read every `MAX_NON_FINITE_STEPS` steps, because reading it synchronizes the
    device and all processes; training then stops up to nine steps later, on all processes at once.

    Args:
        was_skipped: Function that returns True if the last optimizer step was skipped.

    Raises:
        NonFiniteError: `MAX_NON_FINITE_STEPS` steps in a row were not finite.
    """

    def __init__(self, was_skipped: Callable[[], bool]) -> None:
        self._was_skipped = was_skipped
        self._is_bad: torch.Tensor | None = None  # True if a value of the current step is not finite
        self._bad_steps: torch.Tensor | int = 0  # number of consecutive non-finite steps so far
        self._learning_rate = 0.0

    def observe(self, value: torch.Tensor | float) -> None:
        """Record a loss or gradient norm of the current step, without synchronizing with the device."""
        local = value.to_local() if isinstance(value, DTensor) else torch.as_tensor(value)
        is_bad = ~torch.isfinite(local.detach()).all()
        self._is_bad = is_bad if self._is_bad is None else self._is_bad | is_bad.to(self._is_bad.device)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Store the learning rate of the step for the error message."""
        self._learning_rate = float(kwargs["optimizer"].param_groups[0]["lr"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Update the counter, and raise if it has reached the limit."""
        is_bad, self._is_bad = self._is_bad, None
        if is_bad is None:
            return
        if not self._was_skipped():
            self._bad_steps = (self._bad_steps + 1) * is_bad
        is_cheap = args.device.type == "cpu" and args.world_size == 1
        if is_cheap or state.global_step % MAX_NON_FINITE_STEPS == 0:
            steps = _all_reduce(torch.as_tensor(self._bad_steps, device=is_bad.device), "MAX")
            if steps >= MAX_NON_FINITE_STEPS:
                reason = f"the loss or the gradient norm was not finite for {steps} optimizer steps in a row"
                refuse_non_finite(args, state, reason, self._learning_rate)


def has_finite_weights(model: nn.Module) -> bool:
    """Return True if all parameters are finite on all processes, sharded or not."""
    flags = list[torch.Tensor]()
    with torch.no_grad():
        for parameter in model.parameters():
            local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            flags.append(is_finite(local))
    device = flags[0].device if flags else torch.device("cpu")
    finite = torch.stack([flag.to(device) for flag in flags]).all() if flags else torch.tensor(True)
    return bool(_all_reduce(finite.int(), "MIN"))


def refuse_non_finite(
    args: TrainingArguments, state: TrainerState, reason: str, learning_rate: float | None = None
) -> NoReturn:
    """Raise a NonFiniteError that names the step, the reason and the remedies.

    Raises:
        NonFiniteError: Always.
    """
    checkpoints = checkpoints_of(Path(args.output_dir or "."))
    at = "" if learning_rate is None else f", at a learning rate of {learning_rate:.3g}"
    restart = ""
    if checkpoints:
        restart = f" To start from the last finite weights, set init_from={checkpoints[-1]} model.preset=null."
    raise NonFiniteError(
        f"Training stopped at step {state.global_step}: {reason}{at}. Start a new run with a lower "
        "training.learning_rate, more training.warmup_steps, training.max_grad_norm=1, or bf16 or float32 instead of "
        f"fp16.{restart}"
    )


def _all_reduce(value: torch.Tensor, op: str) -> int:
    """Reduce an integer over all processes with a `ReduceOp`, given by name."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        value = value.clone()
        torch.distributed.all_reduce(value, getattr(torch.distributed.ReduceOp, op))
    return int(value)
