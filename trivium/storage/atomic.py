"""Write files and folders atomically: completely or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

PARTIAL = "_partial"  # prefix of the names of temporary folders


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file atomically: to a temporary name, which is then renamed."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    sync(partial)
    partial.replace(path)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk, so that they survive a power failure."""
    if path.is_file() or hasattr(os, "O_DIRECTORY"):  # Windows cannot open folders.
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_free(output: Path) -> None:
    """Check that an output folder is empty or does not exist.

    Raises:
        ValueError: The folder is not empty, or it is a file.
    """
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ValueError(f"output is {output}, which already exists. Choose a new or an empty folder.")


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `output` on success, and deleted on failure."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as temporary:
        partial = Path(temporary) / output.name
        partial.mkdir()
        yield partial
        if output.exists():  # The folder is empty, but not every operating system lets a rename replace it.
            output.rmdir()
        partial.rename(output)


@contextmanager
def whole_files(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder whose files are moved into `folder` on success, each of them atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{PARTIAL}-", dir=folder) as temporary:
        yield Path(temporary)
        move_files(Path(temporary), folder)


def move_files(source: Path, folder: Path) -> None:
    """Sync all files below `source` to the disk, and move each of them atomically to the same place in `folder`."""
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        sync(path)
        place = folder / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.replace(place)
