"""The manifest of a run: the files that training wrote, so that overwriting a run deletes only those files.

`_trivium/manifest.json` lists files by their paths relative to the run folder; each checkpoint lists its own files
(`trivium.storage.checksums`). A path is recorded before its file is written, so that a killed run leaves no unknown
files. Files in checkpoints and in the folder of the manifest are not listed, but recognized by their location. The
folder begins with an underscore, because a Trainer does not push such files.

A manifest may be untrusted, as part of a copied folder: it may name only relative paths inside the run folder, and
symbolic links are never followed or deleted.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from trivium.storage.atomic import move_files, write_whole
from trivium.storage.checksums import CHECKSUMS_FILE, read_checksums
from trivium.storage.names import (
    CHECKPOINT_FILES,
    MODEL_FILES,
    RECIPE_FILE,
    STATE_FILE,
    check_relative,
    code_files,
    matches,
)
from trivium.storage.pickles import TRAINING_ARGUMENTS_FILE

logger = logging.getLogger(__name__)

ROOM = "_trivium"  # folder inside a run folder for Trivium's internal files
MANIFEST, LOCK = Path(ROOM, "manifest.json"), Path(ROOM, "lock")
BROKEN = "_broken"  # folder inside a run folder for defective checkpoints
CARD = Path("README.md")  # A model card that a user wrote before training is pushed and never overwritten.
REPORTS = ("evaluation_*.json", "predictions_*.txt")  # written by `trivium evaluate`
LOGS = "events.out.tfevents.*"  # TensorBoard logs, which never block a run and are never deleted
OLD_PARTIAL = "_partial"  # prefix of temporary folders in versions before manifests


def read_manifest(run: Path) -> set[str] | None:
    """Read the relative paths of the files that a run wrote, or return None if it has no manifest.

    Raises:
        ValueError: The file is not a manifest, or names a path outside the run folder.
    """
    path = run / MANIFEST
    if not path.is_file():
        return None
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["files"]
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise TypeError("files must be a list of names")
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is not the manifest of a run: {error!r}. Set another training.output_dir, or, if you trust the "
            "folder, delete the file; the files of the run are then recognized by their names."
        ) from error
    for name in names:
        check_relative(name, path)
    return set(names)


def start_manifest(run: Path, names: Iterable[str]) -> None:
    """Write a new manifest that lists these paths, relative to the run folder."""
    (run / MANIFEST).parent.mkdir(parents=True, exist_ok=True)
    write_whole(run / MANIFEST, json.dumps({"version": 1, "files": sorted(names)}, indent=1) + "\n")


def record(run: Path, *names: str) -> None:
    """Add the names of files to the manifest before the files are written; do nothing if the run has no manifest."""
    known = read_manifest(run)
    if known is not None and not known.issuperset(names):
        start_manifest(run, known.union(names))


@contextmanager
def run_files(run: Path) -> Iterator[Path]:
    """Yield a temporary folder whose files are recorded in the manifest and moved into the run folder on success."""
    room = run / ROOM
    room.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="files-", dir=room) as temporary:
        yield Path(temporary)
        record(run, *(path.as_posix() for path in walk(Path(temporary))))
        move_files(Path(temporary), run)
    with suppress(OSError):  # Remove the folder if it is empty, as it is for a Trainer without a manifest.
        room.rmdir()


# --- Contents of a run folder ----------------------------------------------------------------------------------------


class RunFolder:
    """Classify the files in a run folder as own (written by training) or foreign (all others), without changing any.

    A run of an older version, which has no manifest, is recognized by its recipe.yaml and trainer_state.json. Its
    files are then recognized by their names, and its evaluation reports by their content.

    Attributes:
        run: The run folder, which does not have to exist.
        is_run: True if the folder holds a run.
        own: Files that training wrote, relative to the folder.
        foreign: All other files, including symbolic links, except the lock, a model card and TensorBoard logs.

    Raises:
        ValueError: The manifest is invalid.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self._recorded = read_manifest(run)
        files = walk(run)
        states = [path for path in files if path.name == STATE_FILE and (len(path.parts) == 1 or _checkpoint_in(path))]
        self.is_run = self._recorded is not None or (Path(RECIPE_FILE) in files and bool(states))
        self._code = code_files()
        self._checkpoints: dict[Path, set[Path]] = {}
        self.own = [path for path in files if self.is_run and self._is_own(path)]
        known = {*self.own, LOCK, CARD}
        self.foreign = [path for path in files if path not in known and not path.match(LOGS)]

    @property
    def in_the_way(self) -> list[Path]:
        """Return the foreign files that a new run would overwrite or mistake for its own."""
        return [path for path in self.foreign if path.parts[0] in (ROOM, BROKEN) or self._is_reserved(path)]

    @property
    def outdated(self) -> list[Path]:
        """Return the run's files to delete on resumption: evaluation reports of older weights, and partial files."""
        unfinished = [path for path in self.own if path.parts[0] == ROOM and path != MANIFEST]
        old_unfinished = [path for path in self.own if path.parts[0].startswith(OLD_PARTIAL)]
        reports = [path for path in self.own if matches(path.as_posix(), REPORTS)]
        return [*unfinished, *old_unfinished, *reports]

    def adopt(self) -> None:
        """Write a manifest that lists the run's own files, even for a run that had no manifest."""
        start_manifest(
            self.run,
            (path.as_posix() for path in self.own if path.parts[0] not in (ROOM, BROKEN) and not _checkpoint_in(path)),
        )

    def delete(self, files: Iterable[Path]) -> None:
        """Delete files in the run folder, and subfolders that become empty."""
        for path in files:
            (self.run / path).unlink(missing_ok=True)
            for folder in list(path.parents)[:-1]:
                with suppress(OSError):
                    (self.run / folder).rmdir()

    def _is_reserved(self, path: Path) -> bool:
        """Return True if runs use this file name, or if the file is inside a checkpoint."""
        if len(path.parts) == 1:
            # A link to a checkpoint folder is listed as a file; a real folder is listed by its files.
            is_checkpoint_link = _checkpoint_in(path / "file") is not None
            return is_checkpoint_link or path.name in self._code or matches(path.name, (*MODEL_FILES, RECIPE_FILE))
        return _checkpoint_in(path) is not None

    def _is_own(self, path: Path) -> bool:
        if (self.run / path).is_symlink() or path == LOCK:
            return False
        if path.parts[0] == ROOM:
            return self._recorded is not None
        if checkpoint := _checkpoint_in(path):
            if checkpoint not in self._checkpoints:
                self._checkpoints[checkpoint] = own_files_of_checkpoint(self.run / checkpoint)
            return path.relative_to(checkpoint) in self._checkpoints[checkpoint]
        if self._recorded is not None:
            return path.as_posix().removesuffix(".partial") in self._recorded
        if path.parts[0].startswith(OLD_PARTIAL):
            return matches(path.name, (*MODEL_FILES, *CHECKPOINT_FILES)) or path.name in self._code
        return self._is_report(path) if matches(path.as_posix(), REPORTS) else self._is_reserved(path)

    def _is_report(self, path: Path) -> bool:
        """Return True if `trivium evaluate` wrote this report, or the report that belongs to these predictions."""
        report = self.run / f"evaluation_{path.stem.partition('_')[2]}.json"
        try:
            content = json.loads(report.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(content, dict) and {"scores", "data", "rows", "generation", "versions"} <= content.keys()


def own_files_of_checkpoint(checkpoint: Path) -> set[Path]:
    """Return the relative paths of the files that training wrote to a checkpoint.

    They are listed in its manifest; without one, they are recognized by their names.
    """
    files = [path for path in walk(checkpoint) if not (checkpoint / path).is_symlink()]
    try:
        listed = read_checksums(checkpoint)
    except ValueError:
        listed = None
    if listed is not None:
        names = {*listed, CHECKSUMS_FILE, TRAINING_ARGUMENTS_FILE}
        return {path for path in files if path.as_posix() in names}
    code = code_files()
    patterns = (*MODEL_FILES, *CHECKPOINT_FILES)
    return {path for path in files if path.parts[0] in code or matches(path.parts[0], patterns)}


def delete_checkpoint(checkpoint: Path) -> None:
    """Delete a checkpoint, or keep it with a warning if it contains files that training did not write."""
    foreign = [] if checkpoint.is_symlink() else sorted(set(walk(checkpoint)) - own_files_of_checkpoint(checkpoint))
    if foreign or checkpoint.is_symlink():
        reason = f"holds {foreign[0]}" if foreign else "is a link"
        logger.warning("%s is not deleted: it %s, which training did not write.", checkpoint, reason)
        return
    shutil.rmtree(checkpoint)


def walk(folder: Path) -> list[Path]:
    """Return all files below a folder, relative to it; symbolic links count as files and are not followed."""
    found = list[Path]()
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if Path(place, name).is_symlink()]
        found += [Path(place, name).relative_to(folder) for name in (*files, *links)]
    return sorted(found)


def _checkpoint_in(path: Path) -> Path | None:
    """Return the checkpoint folder (possibly in `_broken`) that contains a file, relative to the run, or None."""
    depth = 2 if path.parts[0] == BROKEN else 1
    if len(path.parts) > depth and re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-\d+(-\d+)?", path.parts[depth - 1]):
        return Path(*path.parts[:depth])
    return None
