"""An exponential average of the weights along the training."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trivium.storage.names import checkpoint_of

TRAINED_WEIGHTS_FILE = "trained_weights.safetensors"  # beside the averaged ones, in a checkpoint


class ExponentialAverage(TrainerCallback):
    """Makes of the weights after every step an exponential average, which is the model that a training gives.

    After step t, average = decay * average + (1 - decay) * weights, with a decay of (1 + t) / (10 + t) while that is
    less: the weights of the beginning are soon forgotten. The average goes into nothing but itself: training goes on
    with its own weights. For that the model has them from the beginning of a step to its end, and the averaged ones
    at all other times. So what is evaluated, saved, pushed, chosen as the best and left at the end is the average; a
    checkpoint keeps the trained weights beside it, in `trained_weights.safetensors`, and resuming from it gives the
    same, to the bit, as if nothing had been. For any Trainer: `Trainer(..., callbacks=[ExponentialAverage(0.999)])`.

    Only what is trained is averaged, tied weights once; buffers are as training left them. This takes the memory of
    one more copy. Of several processes each makes the same average, of the same weights, and the first one saves it;
    FSDP and DeepSpeed, which give a process only pieces of the weights, are refused.

    Args:
        decay: Between 0 and 1: the average reaches back about 1 / (1 - decay) steps.

    Raises:
        ValueError: `decay` is not between 0 and 1. When training begins: the weights are of a type too coarse to be
            averaged, or in pieces, or those of the checkpoint are another run's.
        FileNotFoundError: Training is resumed from a checkpoint without an average, or from another folder.
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay is {decay}, but must be greater than 0 and less than 1.")
        self.decay = decay
        self._parameters: dict[str, nn.Parameter] = {}
        self._put_by: dict[str, torch.Tensor] = {}  # the weights that the model does not have now
        self._in_step = False
        self._kept_at: int | None = None  # the step whose checkpoint has the trained weights

    @staticmethod
    def check_arguments(args: TrainingArguments, in_pieces: bool = False) -> None:
        """Refuse FSDP and DeepSpeed.

        Raises:
            ValueError: They are asked for, or the weights are `in_pieces`.
        """
        if in_pieces or args.fsdp or args.deepspeed_plugin:
            raise ValueError("An exponential average needs whole weights, but FSDP or DeepSpeed has them in pieces.")

    @staticmethod
    def check_weights(model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the weights that are trained, by their names.

        Raises:
            ValueError: They are of a type too coarse to be averaged.
        """
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        for name, weight in trained.items():
            if weight.dtype not in (torch.float32, torch.float64):
                raise ValueError(
                    f"{name} is {weight.dtype}, too coarse for an exponential average: load the model with "
                    "dtype=torch.float32; bf16=True in the training arguments computes in bfloat16 all the same."
                )
        return trained

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin with the model's own weights, or go on from a checkpoint."""
        self.check_arguments(args, in_pieces=isinstance(kwargs["model"], FSDPModule))
        trained = self.check_weights(kwargs["model"])
        self._parameters, self._in_step, self._kept_at = trained, False, None
        if state.global_step == 0:
            self._put_by = {name: weight.detach().clone() for name, weight in trained.items()}
        else:
            self._put_by = self._load(checkpoint_of(args, state), state)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give the model the trained weights."""
        if not self._in_step:  # a step may begin anew, if the epoch ends before its last batch
            self._swap()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Update the average, and give it to the model."""
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        weights = [weight.data for weight in self._parameters.values()]
        get_ema_multi_avg_fn(decay)(list(self._put_by.values()), weights, None)
        self._swap()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give the model the average, if the epoch ended within a step."""
        if self._in_step:
            self._swap()

    def on_push_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Complete the checkpoint: it may be about to be pushed, and this comes before `on_save`."""
        self.on_save(args, state, control)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Keep the trained weights beside the averaged ones, which the Trainer saved, unless they are there."""
        folder = checkpoint_of(args, state)
        if args.should_save and folder.is_dir() and self._put_by and self._kept_at != state.global_step:
            self.keep_trained(folder, state)

    def keep_trained(self, folder: Path, state: TrainerState) -> None:
        """Write the trained weights into the folder of a checkpoint."""
        partial = folder / f"{TRAINED_WEIGHTS_FILE}.partial"
        weights = {name: weight.contiguous() for name, weight in self._put_by.items()}
        save_file(weights, partial, metadata={"format": "pt"})
        partial.replace(folder / TRAINED_WEIGHTS_FILE)
        self._kept_at = state.global_step

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget the trained weights; the model has the average, or the best that there was."""
        self._parameters, self._put_by = {}, {}

    def _swap(self) -> None:
        for name, weight in self._parameters.items():  # by reference: nothing is copied, what is tied stays tied
            weight.data, self._put_by[name] = self._put_by[name], weight.data
        self._in_step = not self._in_step

    def _load(self, folder: Path, state: TrainerState) -> dict[str, torch.Tensor]:
        """The trained weights of the checkpoint that is resumed, which the Trainer does not name to its callbacks."""
        path = folder / TRAINED_WEIGHTS_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no {path}: to go on with an exponential average, resume from a checkpoint in the output "
                "folder of this training that was made with one."
            )
        saved = load_file(path)
        told = TrainerState.load_from_json(str(folder / "trainer_state.json")).log_history
        shapes = {name: weight.shape for name, weight in self._parameters.items()}
        if str(told) != str(state.log_history) or shapes != {name: weight.shape for name, weight in saved.items()}:
            raise ValueError(f"{path} is not of the run that is resumed, but of another one in the output folder.")
        return {name: saved[name].to(weight.device, weight.dtype) for name, weight in self._parameters.items()}
