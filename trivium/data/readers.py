"""Read files row by row, with the location of each row for error messages."""

import codecs
import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

Row = Mapping[str, Any]
PlacedRow = tuple[str, Row]


def read_lines(path: str | Path) -> Iterator[str]:
    r"""Yield the lines of a text file, without line endings.

    Only "\n" (or "\r\n") ends a line. `str.splitlines` also splits at characters such as U+2028 or U+0085, which occur
    inside sentences: that would misalign all following lines of parallel text.

    Args:
        path: A UTF-8 file, with or without a byte order mark.

    Yields:
        Each line, including empty lines.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is empty, or a line is not UTF-8.
    """
    for line in _whole_lines(path):
        yield line.removesuffix("\n").removesuffix("\r")


def decode_lines(lines: Iterable[bytes], name: str) -> Iterator[str]:
    """Decode lines of bytes as `read_lines` does; `name` identifies the file in error messages.

    Raises:
        ValueError: A line is not UTF-8.
    """
    for line in _decode(lines, name):
        yield line.removesuffix("\n").removesuffix("\r")


def _decode(lines: Iterable[bytes], name: str | Path) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            byte = f"byte 0x{line[error.start]:02x} at position {error.start + 1}"
            raise ValueError(f"{name}, line {number}: {byte} is not UTF-8, the only encoding allowed.") from error


def _whole_lines(path: str | Path) -> Iterator[str]:
    line = None
    with open(path, "rb") as file:
        for line in _decode(file, path):
            yield line
    if line is None:
        raise ValueError(f"{path}: the file is empty.")


def parallel_rows(source_file: str, target_file: str, source: str, target: str) -> Iterator[PlacedRow]:
    """Yield the aligned lines of two files as rows with the columns `source` and `target`.

    Raises:
        ValueError: One file has more lines than the other.
    """
    lines = zip_longest(read_lines(source_file), read_lines(target_file))
    for number, (source_line, target_line) in enumerate(lines, start=1):
        if source_line is None or target_line is None:
            longer, shorter = (source_file, target_file) if target_line is None else (target_file, source_file)
            count = number + sum(1 for _ in lines)
            raise ValueError(
                f"{shorter} ends after line {number - 1}, but {longer} has {count} lines; line N of one file must "
                "be the translation of line N of the other."
            )
        yield f"{source_file} and {target_file}, line {number}", {source: source_line, target: target_line}


def document_rows(file: str, text: str, whole: bool) -> Iterator[PlacedRow]:
    """Yield the nonblank lines of a file as rows with the column `text`, or the `whole` file as one row."""
    if whole:
        yield file, {text: "".join(_whole_lines(file))}
        return
    for number, line in enumerate(read_lines(file), start=1):
        if line.strip():
            yield f"{file}, line {number}", {text: line}


def _json_rows(file: str) -> Iterator[PlacedRow]:
    for number, line in enumerate(read_lines(file), start=1):
        place = f"{file}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place}: not JSON ({error}); every line must be one JSON object.") from error
        if not isinstance(row, dict):
            raise ValueError(f"{place}: found {type(row).__name__}; every line must be one JSON object.")
        yield place, row


def _csv_rows(file: str) -> Iterator[PlacedRow]:
    lines = (line + "\n" for line in read_lines(file))
    # In a tab-separated file, quotes are part of the text.
    if Path(file).suffix == ".tsv":
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(lines, strict=True)
    try:
        header = next(reader)
        for cells in reader:
            place = f"{file}, line {reader.line_num}"
            if len(cells) != len(header):
                raise ValueError(f"{place}: found {len(cells)} cells, but line 1 has {len(header)} columns: {header}.")
            yield place, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise ValueError(f"{file}, line {reader.line_num}: {error}.") from error


def _parquet_rows(file: str) -> Iterator[PlacedRow]:
    try:
        table = pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{file}: not a Parquet file ({error}).") from error
    rows = (row for batch in table.iter_batches() for row in batch.to_pylist())
    for number, row in enumerate(rows, start=1):
        yield f"{file}, row {number}", row


READERS: dict[str, Callable[[str], Iterator[PlacedRow]]] = {
    ".jsonl": _json_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".parquet": _parquet_rows,
}
