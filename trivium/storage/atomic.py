"""Files and folders that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

PARTIAL = "_partial"  # begins the names of what is not whole yet


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    sync(partial)
    partial.replace(path)


def sync(path: Path) -> None:
    """Wait until the disk has a file, or a folder's list of names: a power cut is not to take them back."""
    if path.is_file() or hasattr(os, "O_DIRECTORY"):  # elsewhere, folders cannot be opened
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_free(output: Path) -> None:
    """Refuse a folder that has something in it.

    Raises:
        ValueError: It has, or it is a file.
    """
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ValueError(f"output is {output}, but that is there already: name a new or an empty folder.")


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """Give a folder beside `output` that takes its place when all is written, or else leaves nothing behind."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as temporary:
        partial = Path(temporary) / output.name
        partial.mkdir()
        yield partial
        if output.exists():  # empty, but not every system replaces it
            output.rmdir()
        partial.rename(output)


@contextmanager
def whole_files(folder: Path) -> Iterator[Path]:
    """Give a folder whose files, when all are written, take the places of those in `folder`, one after the other."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{PARTIAL}-", dir=folder) as temporary:
        yield Path(temporary)
        for path in [path for path in Path(temporary).rglob("*") if path.is_file()]:
            sync(path)
            place = folder / path.relative_to(temporary)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)
