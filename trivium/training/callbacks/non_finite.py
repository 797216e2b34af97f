"""Stop a training whose loss or gradients are no longer finite."""

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
    """Training has produced NaN or infinity and cannot recover."""


class NonFiniteGuard(TrainerCallback):
    """Stop after `MAX_NON_FINITE_STEPS` optimizer steps in a row with a non-finite loss or gradient norm.

    Steps that a float16 loss scaler skips do not count. The Trainer passes every loss and gradient norm to `observe`.
    The count is kept on their device. It is read after every step on one CPU, where that costs nothing; elsewhere
    after every tenth, for it waits for the device and for the other processes, which then stop together: up to nine
    steps later.

    Args:
        was_skipped: Whether the last optimizer step was skipped.

    Raises:
        NonFiniteError: After that many steps.
    """

    def __init__(self, was_skipped: Callable[[], bool]) -> None:
        self._was_skipped = was_skipped
        self._is_bad: torch.Tensor | None = None  # whether this step has had a value that is not finite
        self._bad_steps: torch.Tensor | int = 0  # in a row
        self._learning_rate = 0.0

    def observe(self, value: torch.Tensor | float) -> None:
        """Take a loss or a gradient norm of the present step; do not wait for the device."""
        local = value.to_local() if isinstance(value, DTensor) else torch.as_tensor(value)
        is_bad = ~torch.isfinite(local.detach()).all()
        self._is_bad = is_bad if self._is_bad is None else self._is_bad | is_bad.to(self._is_bad.device)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the learning rate of the step, for the error."""
        self._learning_rate = float(kwargs["optimizer"].param_groups[0]["lr"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count the step, and stop if there were too many."""
        is_bad, self._is_bad = self._is_bad, None
        if is_bad is None:
            return
        if not self._was_skipped():
            self._bad_steps = (self._bad_steps + 1) * is_bad
        is_cheap = args.device.type == "cpu" and args.world_size == 1
        if is_cheap or state.global_step % MAX_NON_FINITE_STEPS == 0:
            steps = _over_all_processes(torch.as_tensor(self._bad_steps, device=is_bad.device), "MAX")
            if steps >= MAX_NON_FINITE_STEPS:
                refuse_non_finite(
                    args, state, f"the loss or the gradient norm was not finite for {steps} optimizer steps in a row",
                    self._learning_rate,
                )  # fmt: skip


def has_finite_weights(model: nn.Module) -> bool:
    """Return whether all parameters are finite, in all processes, whichever pieces they hold."""
    flags = list[torch.Tensor]()
    with torch.no_grad():
        for parameter in model.parameters():
            local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            flags.append(is_finite(local))
    device = flags[0].device if flags else torch.device("cpu")
    finite = torch.stack([flag.to(device) for flag in flags]).all() if flags else torch.tensor(True)
    return bool(_over_all_processes(finite.int(), "MIN"))


def refuse_non_finite(args: TrainingArguments, state: TrainerState, what: str, rate: float | None = None) -> NoReturn:
    """Raise a NonFiniteError that says what to do.

    Raises:
        NonFiniteError: Always.
    """
    checkpoints = checkpoints_of(Path(args.output_dir or "."))
    kept = f" The last finite weights are in {checkpoints[-1]}: init_from takes them." if checkpoints else ""
    at = "" if rate is None else f", at a learning rate of {rate:.3g}"
    raise NonFiniteError(
        f"Training stopped at step {state.global_step}: {what}{at}. Start a new run with a lower "
        "training.learning_rate, more training.warmup_steps, training.max_grad_norm=1, or bf16 or float32 instead of "
        f"fp16.{kept}"
    )


def _over_all_processes(value: torch.Tensor, how: str) -> int:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        value = value.clone()
        torch.distributed.all_reduce(value, getattr(torch.distributed.ReduceOp, how))
    return int(value)
