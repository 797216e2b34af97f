"""Checksums of a checkpoint: written when it is committed, compared before it is resumed from."""

import hashlib
import json
from pathlib import Path

import xxhash

from trivium.storage.atomic import write_whole
from trivium.storage.names import check_relative
from trivium.storage.pickles import TRAINING_ARGUMENTS_FILE

CHECKSUMS_FILE = "manifest.json"  # in a checkpoint
ALGORITHM = "xxh3_128"  # Not cryptographic, since an attacker could replace the checksums as well.


def checksum(path: Path) -> str:
    """Return the checksum of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def write_checksums(checkpoint: Path) -> None:
    """Write `manifest.json`, with the checksum of every file of a checkpoint."""
    files = {
        path.relative_to(checkpoint).as_posix(): checksum(path)
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name not in (CHECKSUMS_FILE, TRAINING_ARGUMENTS_FILE)
    }
    content = json.dumps({"version": 1, "algorithm": ALGORITHM, "files": files}, indent=1)
    write_whole(checkpoint / CHECKSUMS_FILE, content + "\n")


def read_checksums(checkpoint: Path) -> dict[str, str] | None:
    """Read the checksums of a checkpoint, keyed by relative path, or None if it has no `manifest.json`.

    Raises:
        ValueError: The file is not a list of checksums, or names a path outside the checkpoint.
    """
    path = checkpoint / CHECKSUMS_FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        files, algorithm = content["files"], content["algorithm"]
        if not all(isinstance(name, str) and isinstance(value, str) for name, value in files.items()):
            raise TypeError("files must map names to checksums")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is not a list of checksums: {error!r}.") from error
    if algorithm != ALGORITHM:
        raise ValueError(f"{path} has checksums of {algorithm!r}, but this version supports only {ALGORITHM}.")
    for name in files:
        check_relative(name, path)
    return files


def find_changed_file(checkpoint: Path) -> str | None:
    """Return which file of a checkpoint differs from its checksum, or None if all match or there are no checksums."""
    try:
        files = read_checksums(checkpoint)
    except ValueError as error:
        return str(error)
    for name, expected in (files or {}).items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if checksum(path) != expected:
            return f"{name} has changed since it was written: its checksum differs"
    return None
