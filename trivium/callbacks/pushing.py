"""Whole folders on the Hub, whenever a Trainer pushes."""

import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trivium.callbacks.checkpoints import checkpoint_of

TRAINING_ARGUMENTS_FILE = "training_args.bin"  # the Trainer's, a pickle


class CompletePush(TrainerCallback):
    """Makes every push of a Trainer to the Hub a folder that loads, without anything to unpickle.

    A push while training goes on has weights and configuration of the last checkpoint, but not the model's code,
    which `auto_map` in the configuration refers to; and it has the Trainer's own arguments, as a pickle, with the
    token of `hub_token` if that was given. With this callback it has the code, and a `.gitignore` that keeps the
    pickle on this machine. `trivium.training.train` uses it; in a Trainer of your own:
    `Trainer(..., callbacks=[CompletePush()])`.
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
        ignored = folder / ".gitignore"  # the Hub leaves out what it says
        lines = ignored.read_text().splitlines() if ignored.exists() else []
        if TRAINING_ARGUMENTS_FILE not in lines:
            ignored.write_text("\n".join([*lines, TRAINING_ARGUMENTS_FILE, ""]))
