"""Train in subprocesses that are killed at a chosen moment; they are forked from a process with all imports done."""

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

# When to kill a run: after a number of seconds; when half of the first file with this path suffix has been written,
# leaving it truncated; or at an audit event for a path with this suffix.
KillMoment = float | tuple[str, str]


def run_training(
    settings: list[str], resume: bool = False, kill_at: KillMoment | None = None, max_file_size: int | None = None
) -> int:
    """Train the recipe `numbers` in a subprocess.

    Args:
        settings: Fields of the recipe to replace.
        resume: Resume from the last checkpoint.
        kill_at: Moment at which to kill the process; None to let it finish.
        max_file_size: Maximum file size in bytes, to simulate a full disk.

    Returns:
        The exit code: 0, 1 after an error, -9 after SIGKILL. Its output is in `log_of(folder)`.
    """
    process = FORKS.Process(target=_train, args=(settings, resume, kill_at, max_file_size))
    process.start()
    process.join(300)
    assert process.exitcode is not None
    return process.exitcode


def folder_of(settings: list[str]) -> Path:
    return Path(load_recipe("numbers", settings).training["output_dir"])


def log_of(folder: Path) -> Path:
    """Return the path of the captured training output, next to the run's folder."""
    return folder.with_name(f"{folder.name}-log.txt")


def _train(settings: list[str], resume: bool, kill_at: KillMoment | None, max_file_size: int | None) -> None:
    torch.set_num_threads(1)
    recipe = load_recipe("numbers", settings)
    log = os.open(log_of(folder_of(settings)), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    RunTrainer.training_step = draw_from_all_generators(RunTrainer.training_step)
    if isinstance(kill_at, float):
        threading.Thread(target=lambda: (time.sleep(kill_at), die()), daemon=True).start()
    elif kill_at is not None and kill_at[0] == "half":
        kill_while_writing(kill_at[1])
    elif kill_at is not None:
        sys.addaudithook(
            lambda event, args: die() if event == kill_at[0] and str(args[0]).endswith(kill_at[1]) else None
        )
    if max_file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_size, max_file_size))
    train(recipe, resume=resume, overwrite=not resume)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # Other threads of the process may still be exiting.


def draw_from_all_generators(step: Callable[..., Any]) -> Callable[..., Any]:
    """Make a training step also draw from the Python and NumPy RNGs, because Trivium's models only use torch's."""

    def draw(*args: Any, **kwargs: Any) -> Any:
        return step(*args, **kwargs) * (1 + 0 * (random.random() + np.random.rand()))

    return draw


def kill_while_writing(ending: str) -> None:
    """Patch all writers: write half of the first file whose path has this suffix, then kill the process."""

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
