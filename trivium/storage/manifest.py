"""The manifest of a run: which files in its folder training wrote, so that overwriting deletes no others.

`_trivium/manifest.json` lists files by their names in the folder of the run; a checkpoint lists its own
(`trivium.storage.checksums`). A name is recorded before its file is written, so that a run that is killed leaves
nothing behind that it does not know. Files with the checkpoints' and the manifest's own folder are known by where
they are. A Trainer pushes nothing whose name begins with an underscore.

A manifest may come from elsewhere, with a copied folder: it may name relative paths inside of the run only, and
links are never followed or deleted.
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

from trivium.storage.atomic import sync, write_whole
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

ROOM = "_trivium"  # the folder in a run's for what only Trivium reads
MANIFEST, LOCK = Path(ROOM, "manifest.json"), Path(ROOM, "lock")
BROKEN = "_broken"  # the folder in a run's for checkpoints that cannot be used
CARD = Path("README.md")  # somebody may have written it beforehand: it is pushed, and not written over
REPORTS = ("evaluation_*.json", "predictions_*.txt")  # of `trivium evaluate`
LOGS = "events.out.tfevents.*"  # of TensorBoard: never in the way, and never deleted
OLD_PARTIAL = "_partial"  # began the names of what was not whole yet, before there were manifests


def read_manifest(run: Path) -> set[str] | None:
    """Return the names of the files that a run wrote, or None if it has no manifest.

    Raises:
        ValueError: The file is no manifest, or names something outside of the run.
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
            f"{path} is no manifest of a run: {error!r}. Set another training.output_dir; or, if the folder is your "
            "own, delete the file, and runs are recognised by the names of their files."
        ) from error
    for name in names:
        check_relative(name, path)
    return set(names)


def start_manifest(run: Path, names: Iterable[str]) -> None:
    """Write the manifest of a run anew."""
    (run / MANIFEST).parent.mkdir(parents=True, exist_ok=True)
    write_whole(run / MANIFEST, json.dumps({"version": 1, "files": sorted(names)}, indent=1) + "\n")


def record(run: Path, *names: str) -> None:
    """Add files that are about to be written to the manifest, if the folder has one."""
    known = read_manifest(run)
    if known is not None and not known.issuperset(names):
        start_manifest(run, known.union(names))


@contextmanager
def run_files(run: Path) -> Iterator[Path]:
    """Give a folder whose files, when all are written, are recorded and moved into the folder of the run."""
    room = run / ROOM
    room.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="files-", dir=room) as temporary:
        yield Path(temporary)
        files = sorted(path for path in Path(temporary).rglob("*") if path.is_file())
        record(run, *(path.relative_to(temporary).as_posix() for path in files))
        for path in files:
            sync(path)
            place = run / path.relative_to(temporary)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)
    with suppress(OSError):  # a Trainer without a manifest leaves no empty folder
        room.rmdir()


# --- What is in the folder of a run ----------------------------------------------------------------------------------


class RunFolder:
    """The files in the folder of a run, told apart: its own and foreign ones. Looking changes nothing.

    A run from before there were manifests is recognised by a recipe.yaml and a trainer_state.json; its files then by
    the names that a run gives, and evaluations by their content.

    Attributes:
        run: The folder; it need not exist.
        is_run: Whether training wrote into it before.
        own: The files that training wrote, relative to the folder.
        foreign: All others, links included, but for the lock, a model card and TensorBoard's logs.

    Raises:
        ValueError: There is a manifest, but none that a run writes.
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
        """The foreign files that a new run would replace, or take for its own."""
        return [path for path in self.foreign if path.parts[0] in (ROOM, BROKEN) or self._is_reserved(path)]

    @property
    def outdated(self) -> list[Path]:
        """Own files that resuming deletes: evaluations of the weights before, and what was not written to its end."""
        unfinished = [path for path in self.own if path.parts[0] == ROOM and path != MANIFEST]
        old_unfinished = [path for path in self.own if path.parts[0].startswith(OLD_PARTIAL)]
        reports = [path for path in self.own if matches(path.as_posix(), REPORTS)]
        return [*unfinished, *old_unfinished, *reports]

    def adopt(self) -> None:
        """Write the manifest, of a run from before there were any too."""
        start_manifest(
            self.run,
            (path.as_posix() for path in self.own if path.parts[0] not in (ROOM, BROKEN) and not _checkpoint_in(path)),
        )

    def delete(self, files: Iterable[Path]) -> None:
        """Delete files in the folder, and the folders that become empty."""
        for path in files:
            (self.run / path).unlink(missing_ok=True)
            for folder in list(path.parents)[:-1]:
                with suppress(OSError):
                    (self.run / folder).rmdir()

    def _is_reserved(self, path: Path) -> bool:
        """Return whether a run gives this name, or has this checkpoint."""
        if len(path.parts) == 1:
            is_link = _checkpoint_in(path / "in it") is not None  # for a folder has files
            return is_link or path.name in self._code or matches(path.name, (*MODEL_FILES, RECIPE_FILE))
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
        """Return whether `trivium evaluate` wrote an evaluation, or the one that predictions go with."""
        report = self.run / f"evaluation_{path.stem.partition('_')[2]}.json"
        try:
            content = json.loads(report.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(content, dict) and {"scores", "data", "rows", "generation", "versions"} <= content.keys()


def own_files_of_checkpoint(checkpoint: Path) -> set[Path]:
    """Return the files that training wrote into a checkpoint, relative to it: those it lists, or by their names."""
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
    """Delete a checkpoint that training wrote; one that holds anything else stays, with a warning."""
    foreign = [] if checkpoint.is_symlink() else sorted(set(walk(checkpoint)) - own_files_of_checkpoint(checkpoint))
    if foreign or checkpoint.is_symlink():
        held = f"holds {foreign[0]}" if foreign else "is a link"
        logger.warning("%s is old, but stays: it %s, which training did not write.", checkpoint, held)
        return
    shutil.rmtree(checkpoint)


def walk(folder: Path) -> list[Path]:
    """Return all files below a folder, relative to it, and links as if they were files: none is followed."""
    found = list[Path]()
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if Path(place, name).is_symlink()]
        found += [Path(place, name).relative_to(folder) for name in (*files, *links)]
    return sorted(found)


def _checkpoint_in(path: Path) -> Path | None:
    """Return the checkpoint that a file lies in, set aside or not, relative to the run; None if it lies in none."""
    depth = 2 if path.parts[0] == BROKEN else 1
    if len(path.parts) > depth and re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-\d+(-\d+)?", path.parts[depth - 1]):
        return Path(*path.parts[:depth])
    return None
