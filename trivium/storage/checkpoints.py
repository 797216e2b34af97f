"""Checkpoints of a run: which of them are whole, and how one is written whole or not at all."""

import json
import logging
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from trivium.storage.atomic import sync
from trivium.storage.checksums import find_changed_file, write_checksums
from trivium.storage.manifest import BROKEN, ROOM, delete_checkpoint
from trivium.storage.names import STATE_FILE, checkpoints_of
from trivium.storage.pickles import PICKLE_SUFFIXES, SHARD_FOLDERS, check_pickles, read_shards

logger = logging.getLogger(__name__)

# What training goes on from, and the files or folders that have it: of one process, FSDP or DeepSpeed.
PARTS = {
    "weights": ("model.safetensors", "*.index.json", "**/adapter_model.safetensors", "pytorch_model*", "global_step*"),
    "optimizer": ("optimizer*", "global_step*"),
    "schedule": ("scheduler.pt", "global_step*"),
    "random states": ("rng_state*.pth",),
}


def find_defect(checkpoint: Path, others: Iterable[str] = ()) -> str | None:
    """Return why training cannot go on from a checkpoint, or None if it can.

    Missing and truncated files come first, which a killed process or a full disk leave; then files that differ from
    their checksums, which all files are read for; then weights that are not finite.

    Args:
        checkpoint: Its folder.
        others: Names of files that there must be beside those of the Trainer.

    Raises:
        OSError: A file is there, but cannot be read.
        UnsafePickleError: A list of shards names what is no part of one.
    """
    if not (checkpoint / STATE_FILE).exists():
        return f"it has no {STATE_FILE}"
    try:
        if not isinstance(json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))["global_step"], int):
            return f"{STATE_FILE} has no global_step"
    except (ValueError, TypeError, KeyError):
        return f"{STATE_FILE} is no whole JSON"
    missing = [part for part, names in PARTS.items() if not any(any(checkpoint.glob(name)) for name in names)]
    if missing == list(PARTS)[1:]:
        return "it has a model, but not what training goes on from, as training.save_only_model asks for"
    if missing:
        return f"it has no {missing[0]}"
    for name in [*others, *_shards_of(checkpoint)]:
        if not (checkpoint / name).exists():
            return f"it has no {name}"
    for path in sorted(checkpoint.rglob("*")):
        if not has_end(path):
            return f"{path.relative_to(checkpoint)} has no end"
    if defect := find_changed_file(checkpoint):
        return defect
    for folder in [folder for pattern in SHARD_FOLDERS for folder in sorted(checkpoint.glob(f"{pattern}/"))]:
        if defect := _find_missing_piece(folder):
            return defect
    return _find_non_finite(checkpoint)


def _shards_of(folder: Path) -> set[str]:
    """The files that a model's index names; an index that is cut off names one that cannot be there."""
    try:
        indices = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.index.json")]
        return {name for index in indices for name in index["weight_map"].values()}
    except (ValueError, KeyError):
        return {"whole index of its weights"}


def _find_missing_piece(folder: Path) -> str | None:
    """Return what is missing of FSDP's pieces of a model or an optimizer, by their own list, which is written last."""
    try:
        shards = read_shards(folder / ".metadata")
    except (FileNotFoundError, EOFError):
        return f"{folder.name} has no whole .metadata"
    for shard in shards:
        if not shard.is_complete:
            return f"{folder.name}/{shard.path.name} is not all there"
    return None


def _find_non_finite(checkpoint: Path) -> str | None:
    """Return which weights of a checkpoint are not finite, or None."""
    for path in sorted(checkpoint.rglob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118, it is no dictionary
                if not is_finite(file.get_tensor(name)):
                    return f"{path.name} has weights that are not finite ({name})"
    for folder in checkpoint.glob("pytorch_model_fsdp_*/"):
        for shard in read_shards(folder / ".metadata"):
            if shard.is_tensor and not is_finite(shard.load()):
                return f"{folder.name} has weights that are not finite ({shard.name})"
    return None


def is_finite(tensor: torch.Tensor) -> torch.Tensor:
    """Return whether all elements are finite, on the tensor's device: in one pass, and without a copy of it."""
    if not tensor.numel() or not tensor.is_floating_point() or tensor.itemsize < 2:  # of one byte: quantized
        return torch.tensor(True, device=tensor.device)
    return torch.isfinite(torch.stack(tensor.aminmax())).all()


def has_end(path: Path) -> bool:
    """Whether a file of safetensors or torch was written to its end; others, and folders, are taken to have one.

    Raises:
        OSError: It cannot be read.
    """
    if path.suffix not in (".safetensors", *PICKLE_SUFFIXES):
        return True
    path.open("rb").close()  # safetensors and zipfile do not tell what cannot be read from what has no end
    if path.suffix != ".safetensors":
        return zipfile.is_zipfile(path)  # torch saves archives, whose directory comes last
    try:
        with safe_open(path, framework="pt"):
            return True
    except SafetensorError:
        return False


def last_whole_checkpoint(run: Path, others: Iterable[str] = ()) -> tuple[Path | None, dict[Path, str]]:
    """Return the checkpoint to resume from, or None, and of each later one why it cannot be resumed from.

    Args:
        run: The folder of the run.
        others: Names of files that each must have beside those of the Trainer.

    Raises:
        OSError: A file of a checkpoint is there, but cannot be read.
        UnsafePickleError: The checkpoint has a pickle that could run code.
        ValueError: There are checkpoints, but none is whole.
    """
    defects: dict[Path, str] = {}
    for checkpoint in reversed(checkpoints_of(run)):
        defect = find_defect(checkpoint, others)
        if defect is None:
            check_pickles(checkpoint)
            return checkpoint, defects
        defects[checkpoint] = defect
    if defects:
        found = "; ".join(f"{path.name}: {defect}" for path, defect in defects.items())
        raise ValueError(
            f"No checkpoint in {run} is whole ({found}), and nothing was changed: start the run again (--overwrite, "
            "overwrite=True), or set another training.output_dir."
        )
    return None, defects


def set_aside(checkpoints: Iterable[Path]) -> None:
    """Move checkpoints that cannot be used to `_broken/`, beside what lies there already."""
    for checkpoint in checkpoints:
        folder = checkpoint.parent / BROKEN
        folder.mkdir(exist_ok=True)
        place, count = folder / checkpoint.name, 1
        while place.exists():
            count += 1
            place = folder / f"{checkpoint.name}-{count}"
        checkpoint.rename(place)


def delete_old_checkpoints(run: Path, limit: int | None, best: str | None) -> None:
    """Delete the oldest checkpoints beyond a limit, but never the last one, the best one or foreign files."""
    found = checkpoints_of(run)
    if not limit or limit < 0 or not found:
        return
    protected = {found[-1], *([] if best is None else [run / Path(best).name])} & set(found)
    surplus = len(found) - max(limit, len(protected))
    for checkpoint in [checkpoint for checkpoint in found if checkpoint not in protected][: max(0, surplus)]:
        delete_checkpoint(checkpoint)


def partial_of(checkpoint: Path) -> Path:
    """Where a checkpoint is written until it is whole."""
    return checkpoint.parent / ROOM / "partial" / checkpoint.name


def put_in_place(checkpoint: Path) -> None:
    """Give a checkpoint its checksums and its name, now that all of it is on the disk and not on its way there."""
    partial = partial_of(checkpoint)
    write_checksums(partial)
    for path in (*partial.rglob("*"), partial):
        sync(path)
    if checkpoint.exists():  # not a whole one, or the run would have gone on from it
        checkpoint.rename(partial.with_name("old"))
    partial.rename(checkpoint)
    sync(checkpoint.parent)
    shutil.rmtree(partial.parent)
    with suppress(OSError):  # a Trainer without a manifest leaves no empty folder
        partial.parent.parent.rmdir()


@contextmanager
def failure_explained(what: str, run: Path) -> Iterator[None]:
    """Say of an error in writing what was written, how much space there is, and how the run goes on.

    Raises:
        OSError: Instead of those that a full disk makes: of the system, of safetensors, and torch's RuntimeError.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        free = shutil.disk_usage(run).free / 1e6
        way = "there is no checkpoint yet: start again"
        if found := checkpoints_of(run):
            way = f"{found[-1].name} is whole: go on from it with --resume (resume=True)"
        raise OSError(
            f"{what} could not be written to {run}: {error}. {free:,.1f} MB are free on its disk. Nothing "
            f"half-written is left. When there is room, {way}."
        ) from error
