"""Check and complete what a Trainer pushes to the Hub."""

import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import HubStrategy

from trivium.storage.names import checkpoint_of

# Pickles, such as the Trainer's own arguments and optimizers, and TensorBoard's files, which name the machine.
UNPUBLISHED = ("*.bin", "*.pt", "*.pth", "events.out.tfevents.*")


def check_hub_arguments(args: TrainingArguments) -> None:
    """Refuse training arguments that would publish a secret or pickles.

    Raises:
        ValueError: The message names the argument, its value and what is allowed.
    """
    if args.hub_token:  # the recipe is kept, and pushed
        raise ValueError("training.hub_token is set, but a recipe is no place for a secret: use `hf auth login`.")
    if args.push_to_hub and args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        raise ValueError(
            f"training.hub_strategy is '{args.hub_strategy.value}', but a checkpoint holds pickles (optimizer.pt, "
            "scheduler.pt, rng_state.pth), which are never published. Set training.hub_strategy=every_save, which "
            "pushes the model of every checkpoint as a commit of its own, or training.hub_strategy=end."
        )


class CompletePush(TrainerCallback):
    """Complete the pushes of a plain Trainer: add the model's code, and leave out pickles and TensorBoard's files.

    What a Trainer pushes during training has weights and configuration of the last checkpoint, but not the model's
    code, which `auto_map` in the configuration refers to; and it has pickles, one of them with the token of
    `hub_token`. This callback adds the code, and a `.gitignore` by which the Hub refuses the rest. A checkpoint that
    `hub_strategy` "checkpoint" or "all_checkpoints" pushes can therefore be loaded, but not resumed from.

    Use it as `Trainer(..., callbacks=[CompletePush()])`. `trivium.training.train` needs no such callback: its pushes
    hold what `trivium push` publishes.
    """

    def on_push_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Copy the code from the checkpoint that is about to be pushed."""
        folder = Path(args.output_dir)
        if not state.is_world_process_zero or not folder.is_dir():
            return
        for file in checkpoint_of(args, state).glob("*.py"):
            shutil.copy(file, folder)
        ignored = folder / ".gitignore"  # the Hub leaves out what it lists
        lines = ignored.read_text().splitlines() if ignored.exists() else []
        if missing := [pattern for pattern in UNPUBLISHED if pattern not in lines]:
            ignored.write_text("\n".join([*lines, *missing, ""]))
