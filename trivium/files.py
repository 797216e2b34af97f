"""Files and folders that are written whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    partial.replace(path)


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
