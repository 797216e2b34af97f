"""Read files row by row, with the location of each row for error messages."""

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from trivium.data.compressed import content_suffix, open_binary
from trivium.data.tmx import tmx_rows

Row = Mapping[str, Any]
PlacedRow = tuple[str, Row]
SEPARATORS = (";", "\t", ",", "|")  # delimiters suggested in error messages


@dataclass(frozen=True)
class FileFormat:
    """Format of a file, beyond what its suffix implies.

    Attributes:
        languages: Languages to read from a translation memory.
        delimiter: Delimiter of a CSV or TSV file; None for the default of the suffix.
        encoding: Encoding of a text file, by its Python name.
    """

    languages: tuple[str, ...] = ()
    delimiter: str | None = None
    encoding: str = "utf-8"


def read_lines(path: str | Path, encoding: str | None = None) -> Iterator[str]:
    r"""Yield the lines of a text file, without line endings.

    Only "\n" (or "\r\n") ends a line. `str.splitlines` also splits at characters such as U+2028 or U+0085, which occur
    inside sentences: that would misalign all following lines of parallel text.

    Args:
        path: A text file, with or without a byte order mark; it may be compressed.
        encoding: Encoding by its Python name; None for UTF-8.

    Yields:
        Each line, including empty lines.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is empty, or a line cannot be decoded.
    """
    for line in _whole_lines(path, encoding):
        yield line.removesuffix("\n").removesuffix("\r")


def decode_lines(lines: Iterable[bytes], name: str) -> Iterator[str]:
    """Decode lines of bytes as `read_lines` does; `name` identifies the file in error messages.

    Raises:
        ValueError: A line is not UTF-8.
    """
    for line in _decode(lines, name):
        yield line.removesuffix("\n").removesuffix("\r")


def _decode(lines: Iterable[bytes], name: str | Path, encoding: str | None = None) -> Iterator[str]:
    codec = codecs.lookup(encoding or "utf-8").name
    for number, line in enumerate(lines, start=1):
        if number == 1 and codec == "utf-8":
            line = line.removeprefix(codecs.BOM_UTF8)
        try:
            yield line.decode(codec)
        except UnicodeDecodeError as error:
            byte = f"byte 0x{line[error.start]:02x} at position {error.start + 1} is not {codec.upper()}"
            advice = (
                ", the only encoding allowed. Convert the file, for example with iconv."
                if encoding is None
                else ". Set data.encoding to the encoding of the file, such as cp1252 or utf-16."
            )
            raise ValueError(f"{name}, line {number}: {byte}{advice}") from error


def _decode_wide(file: Any, name: str | Path, encoding: str) -> Iterator[str]:
    """Decode the lines of a UTF-16 or UTF-32 file, which cannot be split at line feed bytes."""
    number = 0
    try:
        for line in io.TextIOWrapper(file, encoding=encoding, newline="\n"):
            number += 1
            yield line
    except UnicodeError as error:
        raise ValueError(
            f"{name}, after line {number}: not {encoding} ({error}). Set data.encoding to the encoding of the file."
        ) from error


def _whole_lines(path: str | Path, encoding: str | None = None) -> Iterator[str]:
    line = None
    codec = codecs.lookup(encoding or "utf-8").name
    is_wide = codec.startswith(("utf-16", "utf-32"))
    with open_binary(path) as file:
        for line in _decode_wide(file, path, codec) if is_wide else _decode(file, path, encoding):
            yield line
    if line is None:
        raise ValueError(f"{path}: the file is empty.")


def parallel_rows(
    source_file: str, target_file: str, source: str, target: str, encoding: str | None = None
) -> Iterator[PlacedRow]:
    """Yield the aligned lines of two files as rows with the columns `source` and `target`.

    Raises:
        ValueError: One file has more lines than the other.
    """
    lines = zip_longest(read_lines(source_file, encoding), read_lines(target_file, encoding))
    for number, (source_line, target_line) in enumerate(lines, start=1):
        if source_line is None or target_line is None:
            longer, shorter = (source_file, target_file) if target_line is None else (target_file, source_file)
            count = number + sum(1 for _ in lines)
            raise ValueError(
                f"{shorter} ends after line {number - 1}, but {longer} has {count} lines; line N of one file must "
                "be the translation of line N of the other."
            )
        yield f"{source_file} and {target_file}, line {number}", {source: source_line, target: target_line}


def document_rows(file: str, text: str, whole: bool, encoding: str | None = None) -> Iterator[PlacedRow]:
    """Yield the nonblank lines of a file as rows with the column `text`, or the `whole` file as one row."""
    if whole:
        yield file, {text: "".join(_whole_lines(file, encoding))}
        return
    for number, line in enumerate(read_lines(file, encoding), start=1):
        if line.strip():
            yield f"{file}, line {number}", {text: line}


def _json_rows(file: str, form: FileFormat) -> Iterator[PlacedRow]:
    for number, line in enumerate(read_lines(file, form.encoding), start=1):
        place = f"{file}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place}: not JSON ({error}); every line must be one JSON object.") from error
        if not isinstance(row, dict):
            raise ValueError(f"{place}: found {type(row).__name__}; every line must be one JSON object.")
        yield place, row


def _csv_rows(file: str, form: FileFormat) -> Iterator[PlacedRow]:
    lines = (line + "\n" for line in read_lines(file, form.encoding))
    # In a tab-separated file, quotes are part of the text.
    if content_suffix(file) == ".tsv":
        reader = csv.reader(lines, delimiter=form.delimiter or "\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(lines, delimiter=form.delimiter or ",", strict=True)
    try:
        header = next(reader)
        for cells in reader:
            place = f"{file}, line {reader.line_num}"
            if len(cells) != len(header):
                raise ValueError(
                    f"{place}: found {len(cells)} cells, but line 1 has {len(header)} columns: {header}."
                    f"{separator_hint(header)}"
                )
            yield place, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise ValueError(f"{file}, line {reader.line_num}: {error}.") from error


def separator_hint(header: Sequence[str]) -> str:
    """Return a hint for an error message if the delimiter of a table looks wrong, or an empty string."""
    found = [separator for separator in SEPARATORS if len(header) == 1 and separator in header[0]]
    return f" Are the columns separated by {found[0]!r}? Then set data.delimiter={found[0]!r}." if found else ""


def _parquet_rows(file: str, form: FileFormat) -> Iterator[PlacedRow]:
    try:
        table = pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{file}: not a Parquet file ({error}).") from error
    rows = (row for batch in table.iter_batches() for row in batch.to_pylist())
    for number, row in enumerate(rows, start=1):
        yield f"{file}, row {number}", row


def _tmx_rows(file: str, form: FileFormat) -> Iterator[PlacedRow]:
    return tmx_rows(file, form.languages)


READERS: dict[str, Callable[[str, FileFormat], Iterator[PlacedRow]]] = {
    ".jsonl": _json_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".parquet": _parquet_rows,
    ".tmx": _tmx_rows,
}
TABLES = (".csv", ".tsv")  # formats with a delimiter
BINARY = (".parquet", ".tmx")  # formats that declare their encoding
