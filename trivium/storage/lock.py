"""A lock on the folder of a run: one training at a time."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from trivium.storage.manifest import LOCK, ROOM


@contextmanager
def lock_folder(run: Path) -> Iterator[None]:
    """Hold the lock of a run's folder, which is created if it is missing.

    The operating system releases the lock when the process ends, however it ends. Folders that were created for it and
    are still empty in the end are removed.

    Raises:
        ValueError: Another training holds the lock.
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
                f"{run} is in use: another training holds {run / LOCK}. Wait until it ends, stop it, or set "
                "another training.output_dir."
            ) from None
        try:
            yield
        finally:
            with suppress(OSError):  # while it is held: who waits for it notices that it is gone (filelock)
                (run / LOCK).unlink()
            lock.release()
    finally:
        for folder in dict.fromkeys((room, *missing)):
            with suppress(OSError):
                folder.rmdir()
