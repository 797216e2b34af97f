"""Loading of sentence pairs: from the Hub, from local files, or the embedded corpus.

Whatever the origin, the result has two columns of text, `source` and `target`. Every pair is checked on its way in: a
sentence that is missing, empty or garbled stops the loading with its place, rather than teach the model something odd.
"""

import codecs
import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    IterableDataset,
    IterableDatasetDict,
    NamedSplit,
    Value,
    load_dataset,
)
from datasets.exceptions import DatasetGenerationError

from trivium.data.numbers import numbers_corpus

SPLITS = ("train", "validation", "test")
PAIR_FEATURES = Features({"source": Value("string"), "target": Value("string")})

Row = Mapping[str, Any]
PlacedRow = tuple[str, Row]


@dataclass
class DataArguments:
    """Where the sentence pairs come from: the `data:` section of a recipe.

    Either `name` is given, or local files are. A local file is known by its ending, `.jsonl`, `.json` (one object a
    line, both), `.csv`, `.tsv` (no quoting) or `.parquet`; anything else is the prefix of parallel text, so that
    `train="corpus/train"` reads `corpus/train.en` and `corpus/train.de`, line by line.

    Attributes:
        name: `numbers` for the embedded corpus, or a data set of the Hub, or a folder in the Hub's layout.
        config_name: The configuration of the Hub data set, if it has several.
        train: A local file to train on; with `name`, the split to use as such, e.g. `train[:90%]`.
        validation: The same for validation.
        test: The same for testing.
        source: The language to translate from: the column, the key under `translation`, or the ending of the file.
        target: The language to translate into, likewise.
        streaming: Read lazily, for what does not fit on the disk or into memory.
        max_train_samples: Keep only the first ones for training.
        max_validation_samples: Keep only the first ones for validation.
        max_test_samples: Keep only the first ones for testing.
    """

    name: str | None = None
    config_name: str | None = None
    train: str | None = None
    validation: str | None = None
    test: str | None = None
    source: str = "en"
    target: str = "de"
    streaming: bool = False
    max_train_samples: int | None = None
    max_validation_samples: int | None = None
    max_test_samples: int | None = None


def load_parallel(args: DataArguments) -> DatasetDict | IterableDatasetDict:
    """Loads sentence pairs.

    Args:
        args: Where they come from.

    Returns:
        Those of the splits `train`, `validation` and `test` that exist, with the columns `source` and `target`.

    Raises:
        FileNotFoundError: If there is no such file or data set.
        ValueError: If the arguments contradict each other; or if a pair lacks a side, is empty, or is not UTF-8: the
            message names the file and the line. With `streaming` this is raised when the line is reached.
    """
    given = {split: getattr(args, split) for split in SPLITS if getattr(args, split) is not None}
    if args.name == "numbers":
        splits = _load_numbers(args, given)
    elif args.name is not None:
        splits = _load_named(args, given)
    elif given:
        splits = {split: _load_file(path, split, args) for split, path in given.items()}
    else:
        raise ValueError("no data: set `name` (`numbers`, or a data set of the Hub), or local files, at least `train`")

    for split in splits:
        limit = getattr(args, f"max_{split}_samples")
        if limit is not None:
            if limit < 1:
                raise ValueError(f"max_{split}_samples must be at least 1, or null for all; got {limit}")
            splits[split] = splits[split].take(limit)
    return IterableDatasetDict(splits) if args.streaming else DatasetDict(splits)


def read_lines(path: str | Path) -> Iterator[str]:
    r"""Yields the lines of a text file, without their ends.

    Only "\n" (or "\r\n") ends a line: characters like U+2028 or U+0085, at which `str.splitlines` also breaks, occur
    inside of sentences and would shift everything below against the other language.

    Args:
        path: The file, in UTF-8, with or without a byte order mark.

    Yields:
        One line after the other; empty ones too.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is empty or a line is not UTF-8.
    """
    number = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                found = f"byte 0x{line[error.start]:02x} at position {error.start + 1}"
                raise ValueError(f"{path}, line {number}: {found} is not UTF-8, the only encoding allowed") from error
            yield text.removesuffix("\n").removesuffix("\r")
    if not number:
        raise ValueError(f"{path}: the file is empty")


# --- The three origins -----------------------------------------------------------------------------------------------


def _load_numbers(args: DataArguments, given: dict[str, str]) -> dict[str, Any]:
    if given:
        raise ValueError(f"the embedded corpus `numbers` has its own splits; remove {given}")
    corpus = numbers_corpus()
    if (args.source, args.target) == ("de", "en"):
        corpus = corpus.rename_columns({"source": "target", "target": "source"})
    elif (args.source, args.target) != ("en", "de"):
        raise ValueError(f"`numbers` is English and German (en, de), got {args.source!r} and {args.target!r}")
    return {split: pairs.to_iterable_dataset() if args.streaming else pairs for split, pairs in corpus.items()}


def _load_named(args: DataArguments, given: dict[str, str]) -> dict[str, Any]:
    if given:
        loaded = {
            split: load_dataset(args.name, args.config_name, split=expression, streaming=args.streaming)
            for split, expression in given.items()
        }
    else:
        found = load_dataset(args.name, args.config_name, streaming=args.streaming)
        loaded = {split: found[split] for split in SPLITS if split in found}
        if not loaded:
            raise ValueError(f"{args.name} has the splits {list(found)}, none of {SPLITS}: say which is `train`")
    return {
        split: rows.map(
            _pair_of_row,
            with_indices=True,
            fn_kwargs={"source": args.source, "target": args.target, "origin": f"{args.name} ({split})"},
            remove_columns=rows.column_names or list(next(iter(rows), {})),  # unknown in some streams
            features=PAIR_FEATURES,
        )
        for split, rows in loaded.items()
    }


def _load_file(path: str, split: str, args: DataArguments) -> Dataset | IterableDataset:
    files = (path,) if Path(path).suffix in READERS else (f"{path}.{args.source}", f"{path}.{args.target}")
    for file in files:
        if not Path(file).is_file():
            hint = f" (leave off {Path(path).suffix})" if Path(path).is_file() else ""
            raise FileNotFoundError(
                f"{file}: no such file{hint}; allowed are files that end in {', '.join(READERS)}, or else the prefix "
                f"of parallel text (here PREFIX.{args.source} and PREFIX.{args.target})"
            )
    content: dict[str, Any] = {"files": files, "source": args.source, "target": args.target}
    kind: dict[str, Any] = {"features": PAIR_FEATURES, "split": NamedSplit(split)}
    if args.streaming:
        return IterableDataset.from_generator(_pairs_of_files, gen_kwargs=content, **kind)
    # The cache of `datasets` goes by these arguments alone: without the versions a changed file would go unnoticed.
    content["versions"] = tuple((stat.st_mtime_ns, stat.st_size) for stat in map(os.stat, files))
    try:
        return Dataset.from_generator(_pairs_of_files, gen_kwargs=content, **kind)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise


# --- From rows to pairs ----------------------------------------------------------------------------------------------


def _pair(row: Row, source: str, target: str, place: str) -> dict[str, str]:
    translation = row.get("translation")
    columns = translation if isinstance(translation, dict) else row
    pair = {}
    for side, column in (("source", source), ("target", target)):
        if column not in columns:
            raise ValueError(f"{place}: there is no {column!r}, only {list(columns)}; set `source` and `target`")
        text = columns[column]
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{place}: {column!r} is {text!r}; every pair needs a sentence on both sides")
        pair[side] = text
    return pair


def _pair_of_row(row: Row, index: int, source: str, target: str, origin: str) -> dict[str, str]:
    return _pair(row, source, target, f"{origin}, row {index + 1}")


def _pairs_of_files(
    files: tuple[str, ...], source: str, target: str, versions: tuple[tuple[int, int], ...] = ()
) -> Iterator[dict[str, str]]:
    ending = Path(files[0]).suffix
    rows = READERS[ending](files[0]) if ending in READERS else _text_rows(files, source, target)
    place = None
    for place, row in rows:
        yield _pair(row, source, target, place)
    if place is None:
        raise ValueError(f"{files[0]}: there are no sentence pairs in this file")


# --- One reader for each kind of file: they yield rows and their places ----------------------------------------------


def _text_rows(files: tuple[str, ...], source: str, target: str) -> Iterator[PlacedRow]:
    source_file, target_file = files
    lines = zip_longest(read_lines(source_file), read_lines(target_file))
    for number, (source_line, target_line) in enumerate(lines, start=1):
        if source_line is None or target_line is None:
            longer, shorter = (source_file, target_file) if target_line is None else (target_file, source_file)
            count = number + sum(1 for _ in lines)
            raise ValueError(
                f"{shorter} ends after line {number - 1}, but {longer} has {count} lines; line N of one file must "
                "be the translation of line N of the other"
            )
        yield f"{source_file} and {target_file}, line {number}", {source: source_line, target: target_line}


def _json_rows(file: str) -> Iterator[PlacedRow]:
    for number, line in enumerate(read_lines(file), start=1):
        place = f"{file}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place}: not JSON ({error}); every line must be one JSON object") from error
        if not isinstance(row, dict):
            raise ValueError(f"{place}: found {type(row).__name__}; every line must be one JSON object")
        yield place, row


def _csv_rows(file: str) -> Iterator[PlacedRow]:
    lines = (line + "\n" for line in read_lines(file))
    # A tab-separated file has no need of quotes, so there they are part of the sentence.
    if Path(file).suffix == ".tsv":
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(lines, strict=True)
    try:
        header = next(reader)
        for cells in reader:
            place = f"{file}, line {reader.line_num}"
            if len(cells) != len(header):
                raise ValueError(f"{place}: found {len(cells)} cells; line 1 announces {len(header)}: {header}")
            yield place, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise ValueError(f"{file}, line {reader.line_num}: {error}") from error


def _parquet_rows(file: str) -> Iterator[PlacedRow]:
    try:
        table = pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{file}: not a Parquet file ({error})") from error
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
