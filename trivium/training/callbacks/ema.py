"""Callback that keeps an exponential moving average (EMA) of the weights."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trivium.storage.names import checkpoint_of

TRAINED_WEIGHTS_FILE = "trained_weights.safetensors"  # file in a checkpoint, next to the averaged weights


class ExponentialAverage(TrainerCallback):
    """Keep an exponential moving average (EMA) of the weights, which becomes the trained model.

    After step t, average = decay * average + (1 - decay) * weights, where the decay is at most (1 + t) / (10 + t), so
    that the initial weights are soon forgotten. The average does not affect training: the model holds the trained
    weights during a step, and the averaged weights at all other times. Evaluation, saving, pushing, the choice of the
    best checkpoint and the final model therefore use the average. A checkpoint also stores the trained weights, in
    `trained_weights.safetensors`, and training resumes from it bitwise identically. This works with any Trainer:
    `Trainer(..., callbacks=[ExponentialAverage(0.999)])`.

    Only trainable parameters are averaged, and tied weights only once; buffers keep their current values. The average
    requires memory for one additional copy of the weights. With several processes, each computes the same average, and
    the main process saves it. FSDP and DeepSpeed are rejected because they shard the weights.

    Args:
        decay: Decay between 0 and 1; the average covers about the last 1 / (1 - decay) steps.

    Raises:
        ValueError: `decay` is not between 0 and 1. When training begins: the weights have a dtype of too low precision
            or are sharded, or the trained weights of the checkpoint belong to another run.
        FileNotFoundError: Training is resumed from a checkpoint without an average, or from another folder.
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay is {decay}, but must be greater than 0 and less than 1.")
        self.decay = decay
        self._parameters: dict[str, nn.Parameter] = {}
        # The weights that are currently not in the model: the average during a step, otherwise the trained weights.
        self._swapped_out: dict[str, torch.Tensor] = {}
        self._in_step = False
        self._saved_step: int | None = None  # the step whose checkpoint contains the trained weights

    @staticmethod
    def check_arguments(args: TrainingArguments, is_sharded: bool = False) -> None:
        """Reject FSDP and DeepSpeed.

        Raises:
            ValueError: The arguments enable one of them, or the weights are sharded.
        """
        if is_sharded or args.fsdp or args.deepspeed_plugin:
            raise ValueError(
                "An exponential moving average needs whole weights, but FSDP or DeepSpeed shards them. Set "
                "ema_decay=null, or train without FSDP and DeepSpeed."
            )

    @staticmethod
    def check_weights(model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the trainable parameters, keyed by name.

        Raises:
            ValueError: Their dtype has too low precision to be averaged.
        """
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        for name, weight in trained.items():
            if weight.dtype not in (torch.float32, torch.float64):
                raise ValueError(
                    f"{name} is {weight.dtype}, which is too coarse for an exponential moving average. Load the model "
                    "with dtype=torch.float32, and set bf16=True in the training arguments to compute in bfloat16."
                )
        return trained

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Initialize the average with the weights of the model, or restore it from the checkpoint."""
        self.check_arguments(args, is_sharded=isinstance(kwargs["model"], FSDPModule))
        trained = self.check_weights(kwargs["model"])
        self._parameters, self._in_step, self._saved_step = trained, False, None
        if state.global_step == 0:
            self._swapped_out = {name: weight.detach().clone() for name, weight in trained.items()}
        else:
            self._swapped_out = self._load(checkpoint_of(args, state), state)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Swap the trained weights into the model."""
        if not self._in_step:  # If an epoch ends before the last batch of a step, that step begins a second time.
            self._swap()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Update the average, and swap it into the model."""
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        weights = [weight.data for weight in self._parameters.values()]
        get_ema_multi_avg_fn(decay)(list(self._swapped_out.values()), weights, None)
        self._swap()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Swap the average into the model if the epoch ended after a step began but before it was completed."""
        if self._in_step:
            self._swap()

    def on_push_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Complete the checkpoint before it is pushed; this event precedes `on_save`."""
        self.on_save(args, state, control)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save the trained weights in the checkpoint, next to the averaged weights, unless they are already there."""
        folder = checkpoint_of(args, state)
        if args.should_save and folder.is_dir() and self._swapped_out and self._saved_step != state.global_step:
            self.keep_trained(folder, state)

    def keep_trained(self, folder: Path, state: TrainerState) -> None:
        """Write the trained weights to a checkpoint folder."""
        partial = folder / f"{TRAINED_WEIGHTS_FILE}.partial"
        weights = {name: weight.contiguous() for name, weight in self._swapped_out.items()}
        save_file(weights, partial, metadata={"format": "pt"})
        partial.replace(folder / TRAINED_WEIGHTS_FILE)
        self._saved_step = state.global_step

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Release the trained weights; the model now contains the average or the best checkpoint."""
        self._parameters, self._swapped_out = {}, {}

    def _swap(self) -> None:
        for name, weight in self._parameters.items():  # Swap storage by reference: no copy, and ties are kept.
            weight.data, self._swapped_out[name] = self._swapped_out[name], weight.data
        self._in_step = not self._in_step

    def _load(self, folder: Path, state: TrainerState) -> dict[str, torch.Tensor]:
        """Load the trained weights of the checkpoint to resume from, after checking that it belongs to this run.

        The Trainer does not pass the checkpoint to its callbacks, so `folder` is inferred from the step.
        """
        path = folder / TRAINED_WEIGHTS_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no {path}. To resume with an exponential moving average, resume from a checkpoint in this "
                "output folder that was made with one."
            )
        saved = load_file(path)
        saved_log = TrainerState.load_from_json(str(folder / "trainer_state.json")).log_history
        shapes = {name: weight.shape for name, weight in self._parameters.items()}
        if str(saved_log) != str(state.log_history) or shapes != {name: w.shape for name, w in saved.items()}:
            raise ValueError(
                f"{path} does not belong to the run that is resumed, but to another one in the output folder. Resume "
                "from a checkpoint in the output folder, or set another output_dir."
            )
        return {name: saved[name].to(weight.device, weight.dtype) for name, weight in self._parameters.items()}
