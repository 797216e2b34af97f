"""Where a Trainer keeps its checkpoints."""

import re
from pathlib import Path

from transformers import TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


def checkpoint_of(args: TrainingArguments, state: TrainerState) -> Path:
    """The folder that the Trainer writes the present step's checkpoint to."""
    assert args.output_dir is not None  # the Trainer has set it
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def checkpoints_of(run: Path) -> list[Path]:
    """The folders of a run's checkpoints, whole or not, in the order of their steps."""
    numbered = {
        int(found[1]): path
        for path in run.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if (found := re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name)) and path.is_dir()
    }
    return [numbered[step] for step in sorted(numbered)]
