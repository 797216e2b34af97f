"""Open compressed files, and find the compressed version of a file."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow


def _open_zstd(path: str | Path) -> io.BufferedReader:
    # The standard library has zstd only from Python 3.14; pyarrow is installed with `datasets`.
    return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))


OPENERS: dict[str, Callable[[str | Path], Any]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
    ".zst": _open_zstd,
}


def find_file(path: str) -> str | None:
    """Return `path`, or its compressed version if only that exists; None if neither exists."""
    candidates = (path, *(f"{path}{suffix}" for suffix in OPENERS))
    return next((candidate for candidate in candidates if Path(candidate).is_file()), None)


def content_suffix(path: str | Path) -> str:
    """Return the suffix of a file, ignoring a compression suffix: `.csv` for `train.csv.gz`."""
    path = Path(path)
    return (path.with_suffix("") if path.suffix in OPENERS else path).suffix


@contextmanager
def open_binary(path: str | Path) -> Iterator[Any]:
    """Open a file in binary mode, and decompress it if it has a compression suffix.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The compressed file is truncated or corrupt; raised while it is read.
    """
    suffix = Path(path).suffix
    if suffix not in OPENERS:
        with open(path, "rb") as file:
            yield file
        return
    try:
        with OPENERS[suffix](path) as file:
            yield file
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:  # such as a missing file
            raise
        raise ValueError(
            f"{path}: not a complete {suffix} file ({error}). Download or compress it again; its suffix must be that "
            "of its compression."
        ) from error
