"""Check the Hub arguments of a Trainer, and complete its pushes with the model's code."""

import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import HubStrategy

from trivium.storage.names import checkpoint_of

# Pickles, such as training arguments and optimizer states, and TensorBoard logs, whose names contain the host name.
UNPUBLISHED = ("*.bin", "*.pt", "*.pth", "events.out.tfevents.*")


def check_hub_arguments(args: TrainingArguments) -> None:
    """Reject training arguments that would publish a secret or pickles.

    Raises:
        ValueError: The message names the argument, its value and what is allowed.
    """
    if args.hub_token:  # The recipe is saved with the run and pushed.
        raise ValueError(
            "training.hub_token is set, but a recipe is not the place for a secret, because it is saved and pushed. "
            "Remove it, and log in with `hf auth login`."
        )
    if args.push_to_hub and args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        raise ValueError(
            f"training.hub_strategy is '{args.hub_strategy.value}', but a checkpoint holds pickles (optimizer.pt, "
            "scheduler.pt, rng_state.pth), which are never published. Set training.hub_strategy=every_save, which "
            "pushes the model of every checkpoint as a commit of its own, or training.hub_strategy=end."
        )


class CompletePush(TrainerCallback):
    """Complete the pushes of a plain Trainer: add the model's code, and exclude pickles and TensorBoard logs.

    During training, a Trainer pushes the weights and the configuration of the last checkpoint, but not the model's
    code, which `auto_map` in the configuration refers to. It also pushes pickles, one of which contains `hub_token`.
    This callback adds the code, and a `.gitignore` that excludes the pickles and logs. A checkpoint that is pushed
    with `hub_strategy` "checkpoint" or "all_checkpoints" can therefore be loaded, but not resumed from.

    Use it as `Trainer(..., callbacks=[CompletePush()])`. `trivium.training.train` does not need it, because it already
    pushes the files that `trivium push` publishes.
    """

    def on_push_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Copy the code from the checkpoint that is about to be pushed, and update `.gitignore`."""
        folder = Path(args.output_dir)
        if not state.is_world_process_zero or not folder.is_dir():
            return
        for file in checkpoint_of(args, state).glob("*.py"):
            shutil.copy(file, folder)
        gitignore = folder / ".gitignore"  # Files listed in .gitignore are left out of the commit.
        lines = gitignore.read_text().splitlines() if gitignore.exists() else []
        if missing := [pattern for pattern in UNPUBLISHED if pattern not in lines]:
            gitignore.write_text("\n".join([*lines, *missing, ""]))
