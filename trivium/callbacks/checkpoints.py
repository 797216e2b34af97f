"""Where a Trainer keeps its checkpoints."""

from pathlib import Path

from transformers import TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


def checkpoint_of(args: TrainingArguments, state: TrainerState) -> Path:
    """The folder that the Trainer writes the present step's checkpoint to."""
    assert args.output_dir is not None  # the Trainer has set it
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
