"""The mean of several saved models, such as the last checkpoints of a run (Vaswani et al. 2017, section 6.1)."""

import json
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
from trivium.storage.names import RECIPE_FILE

# What a saved model is made of, but for its weights: no scores, logs or optimizer states.
COPIED = ("*config.json", "*token*.json", "vocab.*", "merges.txt", "*.model", "*.spm", "*.jinja", "*.py", "LICENSE*")


def average(folders: Sequence[str | Path], output: str | Path, *, show_progress: bool = False) -> None:
    """Average the weights of saved models into a new one, which takes all else from the last of them.

    Sums are in float64, and the mean is saved in the type that the weights have. Only one tensor at a time is read of
    each model, and written are files as large as the models'. What is tied stays tied, for it is saved once.

    Args:
        folders: Saved models of one configuration and one vocabulary; they stay as they are.
        output: A new or an empty folder. It will have the weights, configuration, generation settings, tokenizer, code
            and recipe, but no scores, which were another model's.
        show_progress: Whether to show a progress bar.

    Raises:
        FileNotFoundError: A folder has no model, or not all of its weights.
        ValueError: The models differ in configuration, vocabulary, or the names, shapes or types of their tensors, or
            in tensors that have no mean, as of integers; a file is broken; or `output` is there already. The message
            names the folder and what is wrong, and nothing is written.
    """
    if not folders:
        raise ValueError("folders is empty: name at least one saved model.")
    paths, output = [Path(folder) for folder in folders], Path(output)
    check_free(output)
    if len(set(paths)) < len(paths):
        raise ValueError(f"folders names one twice: {', '.join(map(str, paths))}.")
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
    """The folders of a run's last checkpoints, in the order of their steps.

    Args:
        run: The folder of the run.
        count: How many; None: all there are.

    Raises:
        ValueError: There are not so many, or none.
    """
    numbered = {
        int(found[1]): path
        for path in Path(run).glob("*")
        if (found := re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name)) and path.is_dir()
    }
    paths = [numbered[step] for step in sorted(numbered)]
    if len(paths) < (count or 1):
        there = ", ".join(path.name for path in paths) or "none"
        raise ValueError(
            f"{run} was to have {count or 1} checkpoints or more, but there are: {there}. A run keeps as many as "
            "training.save_total_limit says, one every training.save_steps."
        )
    return paths[-(count or 0) :]


def _write_mean(checkpoints: dict[Path, Checkpoint], last: Path, output: Path, show_progress: bool) -> None:
    """Write the mean into files of the same names and with the same tensors as those of `last`."""
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
    (first, checkpoint), *others = checkpoints.items()
    tensor = checkpoint[name]
    total = tensor.double() if tensor.is_floating_point() else tensor
    for path, other in others:
        summand = other[name]
        if summand.dtype != tensor.dtype:
            raise ValueError(f"{name} is {tensor.dtype} in {first}, but {summand.dtype} in {path}: they must agree.")
        if tensor.is_floating_point():
            total = total + summand.double()
        elif not torch.equal(tensor, summand):
            raise ValueError(
                f"{name} is {tensor.dtype}, of which there is no mean, and differs in {first} and {path}."
            )
    return (total / len(checkpoints)).to(tensor.dtype) if tensor.is_floating_point() else tensor


def _check_same_fields(folder: Path, other: Path) -> None:
    here, there = _read_json(folder / "config.json"), _read_json(other / "config.json")
    for name in sorted(here.keys() | there.keys()):
        if name != "transformers_version" and here.get(name) != there.get(name):
            raise ValueError(
                f"{name} is {here.get(name)!r} in {folder}, but {there.get(name)!r} in {other}: only models of one "
                "configuration have a mean."
            )


def _check_same_vocabulary(folder: Path, other: Path) -> None:
    for path in folder.glob("*tokenizer.json"):
        if not (other / path.name).is_file():
            continue
        here, there = _read_json(path), _read_json(other / path.name)
        if any(here.get(part) != there.get(part) for part in ("model", "added_tokens")):
            raise ValueError(
                f"{path.name} has another vocabulary in {folder} than in {other}: only models of one vocabulary have "
                "a mean."
            )


def _check_same_shapes(folder: Path, other: Path, checkpoints: dict[Path, Checkpoint]) -> None:
    here, there = checkpoints[folder].shapes, checkpoints[other].shapes
    for name in sorted(here.keys() | there.keys()):
        if here.get(name) != there.get(name):
            shapes = [f"of shape {found[name]}" if name in found else "not there" for found in (here, there)]
            raise ValueError(f"{name} is {shapes[0]} in {folder}, but {shapes[1]} in {other}: they must agree.")


def _copy_recipe(folder: Path, output: Path) -> None:
    """A checkpoint has none of its own: it is its run's."""
    is_checkpoint = folder.name.startswith(f"{PREFIX_CHECKPOINT_DIR}-")
    for place in (folder, folder.parent) if is_checkpoint else (folder,):
        if (place / RECIPE_FILE).is_file():
            shutil.copy(place / RECIPE_FILE, output)
            return


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} is not a saved model: it has no {path.name}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold an object of JSON, but holds a {type(content).__name__}.")
    return content
