"""Convert rows of files and data sets to examples with the columns of a task, and check them."""

import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

from trivium.data.columns import FIELDS, PAIR, QUESTION
from trivium.data.compressed import content_suffix
from trivium.data.conll import conll_rows
from trivium.data.readers import (
    READERS,
    FileFormat,
    PlacedRow,
    Row,
    document_rows,
    parallel_rows,
    separator_hint,
)
from trivium.data.structured import READ, as_text, check_example, name_tags

# Control characters except tabs and line breaks; those above U+007F are often text in cp1252 read as Latin-1.
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")

logger = logging.getLogger(__name__)


def _lookup(cells: Mapping[str, Any], column: str) -> Any:
    """Return the value of a column, which may be nested, such as `doc.text`; raise a KeyError if it is missing."""
    if column in cells:
        return cells[column]
    name, dot, rest = column.partition(".")
    if not dot:
        raise KeyError(column)
    nested = cells[name]
    if nested is None:
        return None
    if not isinstance(nested, Mapping):
        raise KeyError(column)
    return _lookup(nested, rest)


def example_of(row: Row, columns: Mapping[str, str], place: str, allow_blank: bool) -> dict[str, Any]:
    """Convert a row to an example with the columns of a task.

    Args:
        row: Values by column; sentence pairs may be nested in an object `translation`.
        columns: Maps each column of the task to a column of the row.
        place: Location of the row, for error messages.
        allow_blank: Accept blank texts, which a filter drops later.

    Raises:
        ValueError: A column is missing, or a value is blank or of another type.
    """
    translation = row.get("translation")
    cells = translation if isinstance(translation, dict) and "source" in columns else row
    example = {}
    for name, column in columns.items():
        try:
            value = _lookup(cells, column)
        except KeyError as error:
            names = " and ".join(f"data.{FIELDS.get(name, name)}" for name in columns)
            advice = "name the columns as SQuAD does" if name in QUESTION else f"set {names}"
            raise ValueError(
                f"{place}: there is no column {column!r}, only {list(cells)}; {advice}.{separator_hint(list(cells))}"
            ) from error
        if name in READ:
            example[name] = READ[name](value, f"{place}: {column!r}")
            continue
        if name == "label" and (value is None or value == "" or value != value):  # NaN is not equal to itself.
            raise ValueError(f"{place}: {column!r} is {value!r}; every text needs a label.")
        is_blank = value is None or (isinstance(value, str) and not value.strip())
        if name != "label" and (not isinstance(value, str | None) or (is_blank and not allow_blank)):
            needs = "every pair needs a sentence on both sides" if name in PAIR else "every row needs a text"
            raise ValueError(f"{place}: {column!r} is {value!r}; {needs}.{_advice(name, column, value, cells)}")
        example[name] = "" if value is None else value
    check_example(example, place)
    return example


def _advice(name: str, column: str, value: Any, cells: Mapping[str, Any]) -> str:
    """Say what to do about a value that is blank or no text."""
    if isinstance(value, Mapping):
        fields = [f"data.{FIELDS.get(name, name)}={column}.{key}" for key in value]
        return f" Set {' or '.join(fields)} for nested texts." if fields else ""
    if isinstance(value, str):
        return " Set data.drop_empty=true to drop such rows."
    if value is not None:
        return ""
    others = [key for key, cell in cells.items() if cell is not None]
    return f" The row has {others}. Set data.drop_empty=true to drop such rows, or choose other columns."


def numbered_example(
    row: Row, index: int, columns: Mapping[str, str], origin: str, label_names: list[str] | None, allow_blank: bool
) -> dict[str, Any]:
    """Convert a row of a named dataset to an example, with labels and tags as names instead of indices."""
    example = example_of(row, columns, f"{origin}, row {index + 1}", allow_blank)
    if label_names and "tags" in example:
        example["tags"] = name_tags(example["tags"], label_names, f"{origin}, row {index + 1}")
    elif label_names:
        if example["label"] < 0:  # Test splits with withheld labels use -1.
            raise ValueError(f"{origin}, row {index + 1}: {columns['label']!r} is missing; every text needs a label.")
        example["label"] = label_names[example["label"]]
    return example


def examples_of_files(
    files: tuple[str, ...],
    columns: Mapping[str, str],
    whole: bool,
    form: FileFormat,
    allow_blank: bool,
    versions: tuple[tuple[int, int], ...] = (),
) -> Iterator[dict[str, Any]]:
    """Yield the examples of local files, and log the locations of control characters; `versions` is for caching."""
    place, first, count = None, "", 0
    for place, example in placed_examples(files, columns, whole, form, allow_blank):
        if found := find_control(example):
            count += 1
            first = first or f"{place}: {found}"
        yield example
    if place is None:
        contents = "sentence pairs" if "source" in columns else "texts"
        raise ValueError(f"{files[0]}: there are no {contents} in this file.")
    if count:
        logger.warning("%s. %s rows have control characters; they are kept.", first, f"{count:,}")


def find_control(example: Mapping[str, Any]) -> str | None:
    """Describe the first control character in the texts of a row and its position; None if there is none."""
    for name, value in example.items():
        if name not in ("label", "answers") and (match := CONTROL.search(as_text(value))):
            return f"the {name} has the control character U+{ord(match[0]):04X} at position {match.start() + 1}"
    return None


def placed_examples(
    files: tuple[str, ...], columns: Mapping[str, str], whole: bool, form: FileFormat, allow_blank: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a local file, or of two files of parallel text, each with its location for messages."""
    for place, row in _rows(files, columns, whole, form):
        yield place, example_of(row, columns, place, allow_blank)


def _rows(files: tuple[str, ...], columns: Mapping[str, str], whole: bool, form: FileFormat) -> Iterator[PlacedRow]:
    suffix = content_suffix(files[0])
    if "tags" in columns and (suffix == ".tsv" or suffix not in READERS):
        return conll_rows(files[0], columns["words"], columns["tags"], form.encoding)
    if suffix in READERS:
        return READERS[suffix](files[0], form)
    if len(files) > 1:
        source, target = columns.values()
        return parallel_rows(files[0], files[1], source, target, form.encoding)
    return document_rows(files[0], columns["text"], whole, form.encoding)
