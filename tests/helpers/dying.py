"""Trainings in processes of their own, killed at a chosen moment: forked from one that has imported all it takes."""

import os
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import transformers.modeling_utils
from forks import FORKS
from transformers import TrainerState

import trivium.training.callbacks.ema
from trivium.recipe import load_recipe
from trivium.training import train
from trivium.training.trainer import RunTrainer

# When a training dies: after so many seconds; or when it has written half of a file, which stays so, the first whose
# path ends so; or when Python is about to do something to a path that ends so.
Moment = float | tuple[str, str]


def trained(settings: list[str], resume: bool = False, dies: Moment | None = None, largest: int | None = None) -> int:
    """Train the recipe `numbers` in a process of its own.

    Args:
        settings: Fields of the recipe to replace.
        resume: Whether to go on from the last checkpoint.
        dies: When it is killed; None: never.
        largest: How many bytes a file can have: as if the disk were full then.

    Returns:
        How it ended: 0, or 1 after an error, or -9 for SIGKILL. What it said is in `said_by(folder)`.
    """
    process = FORKS.Process(target=_train, args=(settings, resume, dies, largest))
    process.start()
    process.join(300)
    assert process.exitcode is not None
    return process.exitcode


def folder_of(settings: list[str]) -> Path:
    return Path(load_recipe("numbers", settings).training["output_dir"])


def said_by(folder: Path) -> Path:
    """The file, beside the run's folder, with what its training printed."""
    return folder.with_name(f"{folder.name}-said.txt")


def _train(settings: list[str], resume: bool, dies: Moment | None, largest: int | None) -> None:
    torch.set_num_threads(1)
    recipe = load_recipe("numbers", settings)
    said = os.open(said_by(folder_of(settings)), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    RunTrainer.training_step = drawing(RunTrainer.training_step)
    if isinstance(dies, float):
        threading.Thread(target=lambda: (time.sleep(dies), die()), daemon=True).start()
    elif dies is not None and dies[0] == "half":
        die_in_writing(dies[1])
    elif dies is not None:
        sys.addaudithook(lambda event, args: die() if event == dies[0] and str(args[0]).endswith(dies[1]) else None)
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    train(recipe, resume=resume, overwrite=not resume)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # a thread of it may live on for a moment


def drawing(step: Callable[..., Any]) -> Callable[..., Any]:
    """A step that draws from every generator there is: a model of ours draws only from torch's."""

    def draw(*args: Any, **kwargs: Any) -> Any:
        return step(*args, **kwargs) * (1 + 0 * (random.random() + np.random.rand()))

    return draw


def die_in_writing(ending: str) -> None:
    """Let whatever writes a file write half of those that end so, and be killed."""

    def half(write: Callable[..., Any], which: int) -> Callable[..., Any]:
        def writing(*args: Any, **kwargs: Any) -> Any:
            result = write(*args, **kwargs)
            if str(path := args[which]).removesuffix(".partial").endswith(ending):
                os.truncate(path, os.path.getsize(path) // 2)
                die()
            return result

        return writing

    torch.save = half(torch.save, 1)
    transformers.modeling_utils.safe_save_file = half(safetensors.torch.save_file, 1)
    trivium.training.callbacks.ema.save_file = half(safetensors.torch.save_file, 1)
    TrainerState.save_to_json = half(TrainerState.save_to_json, 1)
