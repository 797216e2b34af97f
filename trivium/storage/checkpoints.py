"""Validate, select, commit and delete the checkpoints of a run."""

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

# Parts of a checkpoint and glob patterns of their files: without sharding, with FSDP, and with DeepSpeed.
PARTS = {
    "weights": ("model.safetensors", "*.index.json", "**/adapter_model.safetensors", "pytorch_model*", "global_step*"),
    "optimizer": ("optimizer*", "global_step*"),
    "schedule": ("scheduler.pt", "global_step*"),
    "random states": ("rng_state*.pth",),
}


def find_defect(checkpoint: Path, extra_files: Iterable[str] = ()) -> str | None:
    """Return why a checkpoint cannot be resumed from, or None if it can.

    Check first for missing and truncated files, which a killed process or a full disk can leave behind; then compare
    the checksums, which requires reading all files; finally check for non-finite weights.

    Args:
        checkpoint: The folder of the checkpoint.
        extra_files: Names of files that are required in addition to those of the Trainer.

    Raises:
        OSError: A file exists, but cannot be read.
        UnsafePickleError: The metadata of FSDP shards names classes that do not belong in it.
    """
    if not (checkpoint / STATE_FILE).exists():
        return f"it has no {STATE_FILE}"
    try:
        if not isinstance(json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))["global_step"], int):
            return f"{STATE_FILE} has no global_step"
    except (ValueError, TypeError, KeyError):
        return f"{STATE_FILE} is not valid JSON"
    missing = [part for part, names in PARTS.items() if not any(any(checkpoint.glob(name)) for name in names)]
    if missing == list(PARTS)[1:]:
        return "it has only a model, because it was saved with training.save_only_model"
    if missing:
        return f"it has no {missing[0]}"
    for name in [*extra_files, *_shards_of(checkpoint)]:
        if not (checkpoint / name).exists():
            return f"it has no {name}"
    for path in sorted(checkpoint.rglob("*")):
        if not is_complete(path):
            return f"{path.relative_to(checkpoint)} is truncated"
    if defect := find_changed_file(checkpoint):
        return defect
    for folder in [folder for pattern in SHARD_FOLDERS for folder in sorted(checkpoint.glob(f"{pattern}/"))]:
        if defect := _find_missing_shard(folder):
            return defect
    return _find_non_finite(checkpoint)


def _shards_of(folder: Path) -> set[str]:
    """Return the files that a model's index lists; for a truncated index, a placeholder that never exists."""
    try:
        indices = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.index.json")]
        return {name for index in indices for name in index["weight_map"].values()}
    except (ValueError, KeyError):
        return {"complete index of its weights"}


def _find_missing_shard(folder: Path) -> str | None:
    """Return a description of a missing or truncated FSDP shard in a folder, or None if there is none.

    The shards are listed in `.metadata`, which is written last.
    """
    try:
        shards = read_shards(folder / ".metadata")
    except (FileNotFoundError, EOFError):
        return f"{folder.name} has no complete .metadata"
    for shard in shards:
        if not shard.is_complete:
            return f"{folder.name}/{shard.path.name} is missing or truncated"
    return None


def _find_non_finite(checkpoint: Path) -> str | None:
    """Return a description of the non-finite weights of a checkpoint, or None if all weights are finite."""
    for path in sorted(checkpoint.rglob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118, the file is not a dictionary
                if not is_finite(file.get_tensor(name)):
                    return f"{path.name} has weights that are not finite ({name})"
    for folder in checkpoint.glob("pytorch_model_fsdp_*/"):
        for shard in read_shards(folder / ".metadata"):
            if shard.is_tensor and not is_finite(shard.load()):
                return f"{folder.name} has weights that are not finite ({shard.name})"
    return None


def is_finite(tensor: torch.Tensor) -> torch.Tensor:
    """Return a boolean tensor on the same device: True if all elements are finite. No mask is materialized."""
    # `aminmax` does not support 8-bit floats, which occur only in quantized weights.
    if not tensor.numel() or not tensor.is_floating_point() or tensor.itemsize < 2:
        return torch.tensor(True, device=tensor.device)
    return torch.isfinite(torch.stack(tensor.aminmax())).all()


def is_complete(path: Path) -> bool:
    """Return False for a truncated safetensors or torch file; True for all other files and for folders.

    Raises:
        OSError: The file cannot be read.
    """
    if path.suffix not in (".safetensors", *PICKLE_SUFFIXES):
        return True
    # Raise the OSError here: safetensors and zipfile report an unreadable file as a truncated one.
    path.open("rb").close()
    if path.suffix != ".safetensors":
        return zipfile.is_zipfile(path)  # torch saves zip archives, whose central directory comes last.
    try:
        with safe_open(path, framework="pt"):
            return True
    except SafetensorError:
        return False


def last_valid_checkpoint(run: Path, extra_files: Iterable[str] = ()) -> tuple[Path | None, dict[Path, str]]:
    """Return the last valid checkpoint (None if there are no checkpoints), and the defects of later checkpoints.

    Args:
        run: The run folder.
        extra_files: Names of files that are required in addition to those of the Trainer.

    Raises:
        OSError: A file of a checkpoint exists, but cannot be read.
        UnsafePickleError: The checkpoint has a pickle that could run code.
        ValueError: All checkpoints are defective.
    """
    defects: dict[Path, str] = {}
    for checkpoint in reversed(checkpoints_of(run)):
        defect = find_defect(checkpoint, extra_files)
        if defect is None:
            check_pickles(checkpoint)
            return checkpoint, defects
        defects[checkpoint] = defect
    if defects:
        listed = "; ".join(f"{path.name}: {defect}" for path, defect in defects.items())
        raise ValueError(
            f"No checkpoint in {run} can be resumed from ({listed}). No file was changed. Start the run again "
            "(--overwrite, overwrite=True), or set another training.output_dir."
        )
    return None, defects


def set_aside(checkpoints: Iterable[Path]) -> None:
    """Move defective checkpoints to `_broken/`, appending a number if the name is already taken."""
    for checkpoint in checkpoints:
        folder = checkpoint.parent / BROKEN
        folder.mkdir(exist_ok=True)
        place, count = folder / checkpoint.name, 1
        while place.exists():
            count += 1
            place = folder / f"{checkpoint.name}-{count}"
        checkpoint.rename(place)


def delete_old_checkpoints(run: Path, limit: int | None, best: str | None) -> None:
    """Delete the oldest checkpoints beyond a limit, except the last, the best, and any that contain other files."""
    found = checkpoints_of(run)
    if not limit or limit < 0 or not found:
        return
    protected = {found[-1], *([] if best is None else [run / Path(best).name])} & set(found)
    surplus = len(found) - max(limit, len(protected))
    for checkpoint in [checkpoint for checkpoint in found if checkpoint not in protected][: max(0, surplus)]:
        delete_checkpoint(checkpoint)


def partial_of(checkpoint: Path) -> Path:
    """Return the temporary folder in which a checkpoint is written."""
    return checkpoint.parent / ROOM / "partial" / checkpoint.name


def commit_checkpoint(checkpoint: Path) -> None:
    """Write the checksums of a checkpoint, sync it to the disk, and rename it to its final name."""
    partial = partial_of(checkpoint)
    write_checksums(partial)
    for path in (*partial.rglob("*"), partial):
        sync(path)
    if checkpoint.exists():  # The existing checkpoint is defective: otherwise the run would have resumed from it.
        checkpoint.rename(partial.with_name("old"))
    partial.rename(checkpoint)
    sync(checkpoint.parent)
    shutil.rmtree(partial.parent)
    with suppress(OSError):  # Remove the folder if it is empty, as it is for a Trainer without a manifest.
        partial.parent.parent.rmdir()


@contextmanager
def explain_write_failure(what: str, run: Path) -> Iterator[None]:
    """Explain a write error: state what could not be written, the free disk space, and how to resume.

    Raises:
        OSError: Replaces the errors that a full disk causes: OSError, SafetensorError and torch's RuntimeError.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        free = shutil.disk_usage(run).free / 1e6
        advice = "start the run again, because it has no checkpoint yet"
        if found := checkpoints_of(run):
            advice = f"resume from {found[-1].name}, which is complete, with --resume (resume=True)"
        raise OSError(
            f"{what} could not be written to {run}: {error}. {free:,.1f} MB are free on the disk. No partial files "
            f"are left behind. Free some space, then {advice}."
        ) from error
