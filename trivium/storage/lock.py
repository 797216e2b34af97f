"""A lock on a run folder, so that only one training process writes to it."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from trivium.storage.manifest import LOCK, ROOM


@contextmanager
def lock_folder(run: Path) -> Iterator[None]:
    """Hold the lock of a run folder, which is created if it does not exist.

    The operating system releases the lock when the process ends, even if it is killed. Folders that were created for
    the lock are removed on exit if they are still empty.

    Raises:
        ValueError: Another training process holds the lock.
    """
    room = run / ROOM
    missing = [folder for folder in (room, *room.parents) if not folder.exists()]
    room.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run / LOCK)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"{run} is in use: another training process holds {run / LOCK}. Wait until it ends, stop it, or set "
                "another training.output_dir."
            ) from None
        try:
            yield
        finally:
            with suppress(OSError):  # Delete the file while it is locked: filelock detects that in waiting processes.
                (run / LOCK).unlink()
            lock.release()
    finally:
        for folder in dict.fromkeys((room, *missing)):
            with suppress(OSError):
                folder.rmdir()
