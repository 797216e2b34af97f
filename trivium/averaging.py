"""Average the weights of saved models, such as the last checkpoints of a run (Vaswani et al. 2017, section 6.1)."""

import re
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from trivium.interop.checkpoint import Checkpoint, weight_files
from trivium.storage.atomic import check_free, whole_folder
from trivium.storage.json_object import read_json_object
from trivium.storage.names import RECIPE_FILE

# Files of a saved model besides its weights; scores, logs and optimizer states are not copied.
COPIED = ("*config.json", "*token*.json", "vocab.*", "merges.txt", "*.model", "*.spm", "*.jinja", "*.py", "LICENSE*")


def average(folders: Sequence[str | Path], output: str | Path, *, show_progress: bool = False) -> None:
    """Average the weights of saved models into a new model; all other files are copied from the last model.

    Sums are accumulated in float64, and the mean is saved in the dtype of the weights. One tensor per model is in
    memory at a time, and the weights are sharded like the last model's. Tied weights stay tied, since they are saved
    once.

    Args:
        folders: Saved models with the same configuration and vocabulary; they are not modified.
        output: A new or empty folder. It receives weights, configuration, generation config, tokenizer, code and
            recipe. Scores are not copied because they do not apply to the averaged model.
        show_progress: Whether to show a progress bar.

    Raises:
        FileNotFoundError: A folder has no model, or lacks some of its weights.
        ValueError: The models differ in configuration, vocabulary, tensor names, shapes or dtypes, or in the values of
            integer tensors, which cannot be averaged; a file is corrupt; or `output` exists and is not empty. The
            message names the folder and the mismatch, and nothing is written.
    """
    if not folders:
        raise ValueError("folders is empty, but must name at least one saved model.")
    paths, output = [Path(folder) for folder in folders], Path(output)
    check_free(output)
    if len(set(paths)) < len(paths):
        raise ValueError(f"folders is {', '.join(map(str, paths))}, but must name each folder once.")
    last = paths[-1]
    for path in paths:
        _check_same_fields(path, last)
        _check_same_vocabulary(path, last)
    with ExitStack() as stack, whole_folder(output) as partial:
        checkpoints = {path: stack.enter_context(Checkpoint(path)) for path in paths}
        for path in paths:
            _check_same_shapes(path, last, checkpoints)
        _write_mean(checkpoints, last, partial, show_progress)
        for file in {file for pattern in COPIED for file in last.glob(pattern)}:
            shutil.copy(file, partial)
        _copy_recipe(last, partial)


def last_checkpoints(run: str | Path, count: int | None = None) -> list[Path]:
    """Return the folders of a run's last checkpoints, sorted by step.

    Args:
        run: The folder of the run.
        count: Number of checkpoints; None for all.

    Raises:
        ValueError: The run has fewer checkpoints than `count`, or none.
    """
    numbered = {
        int(found[1]): path
        for path in Path(run).glob("*")
        if (found := re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name)) and path.is_dir()
    }
    paths = [numbered[step] for step in sorted(numbered)]
    if len(paths) < (count or 1):
        names = ", ".join(path.name for path in paths) or "none"
        raise ValueError(
            f"{run} must have at least {count or 1} checkpoints, but has: {names}. A run saves one checkpoint every "
            "training.save_steps and keeps the last training.save_total_limit."
        )
    return paths[-(count or 0) :]


def _write_mean(checkpoints: dict[Path, Checkpoint], last: Path, output: Path, show_progress: bool) -> None:
    """Write the averaged weights into files with the same names and tensors as the files of `last`."""
    with tqdm(total=len(checkpoints[last]), desc="Averaging", unit=" tensors", disable=not show_progress) as progress:
        for path in weight_files(last):
            with safe_open(path, framework="pt") as file:
                names, metadata = list(file.keys()), file.metadata()
            means = dict[str, torch.Tensor]()
            for name in names:
                means[name] = _mean(name, checkpoints)
                progress.update()
            save_file(means, output / path.name, metadata=metadata)
    if (last / SAFE_WEIGHTS_INDEX_NAME).is_file():
        shutil.copy(last / SAFE_WEIGHTS_INDEX_NAME, output)


def _mean(name: str, checkpoints: dict[Path, Checkpoint]) -> torch.Tensor:
    """Average one tensor over all checkpoints; integer tensors must be equal.

    Raises:
        ValueError: The dtypes differ, or integer tensors have different values.
    """
    (first, checkpoint), *remaining = checkpoints.items()
    tensor = checkpoint[name]
    total = tensor.double() if tensor.is_floating_point() else tensor
    for path, other in remaining:
        summand = other[name]
        if summand.dtype != tensor.dtype:
            raise ValueError(
                f"{name} is {tensor.dtype} in {first}, but {summand.dtype} in {path}: both must be equal."
            )
        if tensor.is_floating_point():
            total = total + summand.double()
        elif not torch.equal(tensor, summand):
            raise ValueError(
                f"{name} is {tensor.dtype}, which cannot be averaged, and differs between {first} and {path}: "
                "it must be equal in all folders."
            )
    return (total / len(checkpoints)).to(tensor.dtype) if tensor.is_floating_point() else tensor


def _check_same_fields(folder: Path, other: Path) -> None:
    here, there = _read_json(folder / "config.json"), _read_json(other / "config.json")
    for name in sorted(here.keys() | there.keys()):
        if name != "transformers_version" and here.get(name) != there.get(name):
            raise ValueError(
                f"{name} is {here.get(name)!r} in {folder}, but {there.get(name)!r} in {other}: only models with the "
                "same configuration can be averaged."
            )


def _check_same_vocabulary(folder: Path, other: Path) -> None:
    for path in folder.glob("*tokenizer.json"):
        if not (other / path.name).is_file():
            continue
        here, there = _read_json(path), _read_json(other / path.name)
        if any(here.get(part) != there.get(part) for part in ("model", "added_tokens")):
            raise ValueError(
                f"{path.name} has different vocabularies in {folder} and {other}: only models with the same "
                "vocabulary can be averaged."
            )


def _check_same_shapes(folder: Path, other: Path, checkpoints: dict[Path, Checkpoint]) -> None:
    here, there = checkpoints[folder].shapes, checkpoints[other].shapes
    for name in sorted(here.keys() | there.keys()):
        if here.get(name) != there.get(name):
            shapes = [f"of shape {found[name]}" if name in found else "missing" for found in (here, there)]
            raise ValueError(f"{name} is {shapes[0]} in {folder}, but {shapes[1]} in {other}: they must be equal.")


def _copy_recipe(folder: Path, output: Path) -> None:
    """Copy the recipe of a saved model. For a checkpoint, the recipe is copied from the run folder."""
    is_checkpoint = folder.name.startswith(f"{PREFIX_CHECKPOINT_DIR}-")
    for place in (folder, folder.parent) if is_checkpoint else (folder,):
        if (place / RECIPE_FILE).is_file():
            shutil.copy(place / RECIPE_FILE, output)
            return


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} is not a saved model: it has no {path.name}.")
    return read_json_object(path)
