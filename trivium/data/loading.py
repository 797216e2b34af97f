"""Loading of texts, sentence pairs and labelled texts: from the Hub, from local files, or the embedded corpus.

Whatever the origin, the result has the same columns: `text` for a language model, `source` and `target` for a
translator, `text` and `label` for a classifier. Every row is checked on its way in: a text that is missing, empty or
garbled stops the loading with its place, rather than teach the model something odd.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from trivium.data.readers import READERS, PlacedRow, Row, document_rows, parallel_rows

SPLITS = ("train", "validation", "test")
PAIR = ("source", "target")
TEXT = ("text",)
LABELLED_TEXT = ("text", "label")
WORDS = re.compile(r"\w+|[^\w\s]")  # and marks, which count as words
SLICE = re.compile(r"([^\[\]+]+)\[(\d*):(\d*)\]")  # such as `train[1000:]`


@dataclass
class DataArguments:
    """Where the data come from: the `data:` section of a recipe.

    Either `name` is given, or local files are. A local file is known by its ending, `.jsonl`, `.json` (one object a
    line, both), `.csv`, `.tsv` (no quoting) or `.parquet`. Anything else is plain text: for a language model a file
    with a text a line; for sentence pairs the prefix of two files, so that `train="corpus/train"` reads
    `corpus/train.en` and `corpus/train.de`, line by line.

    Attributes:
        name: `numbers` for the embedded corpus, or a data set of the Hub, or a folder in the Hub's layout.
        config_name: The configuration of the Hub data set, if it has several.
        train: A local file to train on; with `name`, the split to use as such, e.g. `train[:90%]`; of a stream rows
            are counted, e.g. `train[1000:]`.
        validation: The same for validation.
        test: The same for testing.
        source: The language to translate from: the column, the key under `translation`, or the ending of the file.
        target: The language to translate into, likewise.
        text: The column of texts, where there are no pairs.
        label: The column of labels: a string or a whole number; a list of them, where several can hold; or a
            fraction, to be predicted as such.
        whole_files: Whether a plain text file is one text, instead of one a line.
        streaming: Read lazily, for what does not fit on the disk or into memory.
        max_ratio: Do not train on pairs of which one side has more than so many times the words of the other, or has
            none; a mark is a word. None: train on all, and refuse those with an empty side.
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
    text: str = "text"
    label: str = "label"
    whole_files: bool = False
    streaming: bool = False
    max_ratio: float | None = None
    max_train_samples: int | None = None
    max_validation_samples: int | None = None
    max_test_samples: int | None = None


def load_data(args: DataArguments, columns: Sequence[str] = PAIR) -> DatasetDict | IterableDatasetDict:
    """Load data of one kind.

    Args:
        args: Where they come from.
        columns: What is wanted of every row: `source` and `target`, or `text`, or `text` and `label`.

    Returns:
        Those of the splits `train`, `validation` and `test` that exist, with these columns.

    Raises:
        FileNotFoundError: There is no such file or data set.
        ValueError: The arguments contradict each other; or a row lacks a column, is empty, or is not UTF-8: the
            message names the file and the line. With `streaming` this is raised when the line is reached.
    """
    given = {split: getattr(args, split) for split in SPLITS if getattr(args, split) is not None}
    wanted = {column: getattr(args, column) for column in columns}
    if args.max_ratio is not None and (args.max_ratio < 1 or tuple(columns) != PAIR):
        raise ValueError(
            f"max_ratio is {args.max_ratio}, but must be at least 1, and for sentence pairs only, or null."
        )
    if args.name == "numbers":
        splits = _load_numbers(args, given, wanted)
    elif args.name is not None:
        splits = _load_named(args, given, wanted)
    elif given:
        splits = {split: _load_file(path, split, args, wanted) for split, path in given.items()}
    else:
        raise ValueError(
            "There is no data: set data.name (`numbers`, or a data set of the Hub), or local files, at least "
            "data.train."
        )

    if args.max_ratio is not None and "train" in splits:
        splits["train"] = splits["train"].filter(_is_within, fn_kwargs={"max_ratio": args.max_ratio})
    for split in splits:
        limit = getattr(args, f"max_{split}_samples")
        if limit is not None:
            if limit < 1:
                raise ValueError(f"max_{split}_samples is {limit}, but must be at least 1, or null for all.")
            splits[split] = splits[split].take(limit)
    return IterableDatasetDict(splits) if args.streaming else DatasetDict(splits)


# --- The three origins -----------------------------------------------------------------------------------------------


def _load_numbers(args: DataArguments, given: dict[str, str], wanted: dict[str, str]) -> dict[str, Any]:
    if given:
        names = ", ".join(f"data.{name}" for name in given)
        raise ValueError(f"The embedded corpus `numbers` has its own splits: leave out {names}.")
    if tuple(wanted) != PAIR:
        raise ValueError(
            f"The corpus `numbers` has sentence pairs, no {' and '.join(wanted)}: it is for translation or completion."
        )
    corpus = numbers_corpus()
    if (args.source, args.target) == ("de", "en"):
        corpus = corpus.rename_columns({"source": "target", "target": "source"})
    elif (args.source, args.target) != ("en", "de"):
        raise ValueError(
            f"data.source and data.target are {args.source!r} and {args.target!r}, but the corpus `numbers` is "
            "English and German: say en and de, or de and en."
        )
    return {split: pairs.to_iterable_dataset() if args.streaming else pairs for split, pairs in corpus.items()}


def _load_named(args: DataArguments, given: dict[str, str], wanted: dict[str, str]) -> dict[str, Any]:
    if given:
        loaded = {split: _load_split(args, expression) for split, expression in given.items()}
    else:
        found = load_dataset(args.name, args.config_name, streaming=args.streaming)
        loaded = {split: found[split] for split in SPLITS if split in found}
        if not loaded:
            raise ValueError(f"{args.name} has the splits {list(found)}, none of {SPLITS}: say which is `train`.")
    return {split: _as_examples(rows, args, wanted, split) for split, rows in loaded.items()}


def _load_split(args: DataArguments, expression: str) -> Dataset | IterableDataset:
    """Load a split of a named data set, or a part of it, which `load_dataset` does not cut out of a stream."""
    cut = SLICE.fullmatch(expression) if args.streaming else None
    rows = load_dataset(args.name, args.config_name, split=cut[1] if cut else expression, streaming=args.streaming)
    if cut is None:
        return rows
    start, end = int(cut[2] or 0), cut[3]
    rows = rows.skip(start)
    return rows.take(max(0, int(end) - start)) if end else rows


def _as_examples(
    rows: Dataset | IterableDataset, args: DataArguments, wanted: dict[str, str], split: str
) -> Dataset | IterableDataset:
    # Of a `ClassLabel` the rows have indices; its names make a better label.
    label_names = getattr((rows.features or {}).get(args.label), "names", None) if "label" in wanted else None
    return rows.map(
        _numbered_example,
        with_indices=True,
        fn_kwargs={
            "wanted": wanted,
            "origin": f"{args.name} ({split})",
            "label_names": label_names,
            "may_be_blank": _may_be_blank(args, split),
        },
        remove_columns=rows.column_names or list(next(iter(rows), {})),  # unknown in some streams
        features=_features(wanted, label_names),
    )


def files_of(path: str, args: DataArguments, columns: Iterable[str]) -> tuple[str, ...]:
    """Return the file that `path` names, or the two of parallel text."""
    if Path(path).suffix in READERS or "source" not in columns:
        return (path,)
    return f"{path}.{args.source}", f"{path}.{args.target}"


def _load_file(path: str, split: str, args: DataArguments, wanted: dict[str, str]) -> Dataset | IterableDataset:
    files = files_of(path, args, wanted)
    is_prefix = len(files) > 1
    for file in files:
        if not Path(file).is_file():
            hint = f" (leave off {Path(path).suffix})" if Path(path).is_file() else ""
            plain = {
                PAIR: f", or else the prefix of parallel text (here PREFIX.{args.source} and PREFIX.{args.target})",
                TEXT: ", or else plain text",
            }.get(tuple(wanted), "")
            raise FileNotFoundError(
                f"{file}: no such file{hint}; allowed are files that end in {', '.join(READERS)}{plain}."
            )
    if not is_prefix and Path(path).suffix not in READERS and tuple(wanted) != TEXT:
        raise ValueError(f"{path}: plain text has no labels; give a file that ends in {', '.join(READERS)}.")
    content: dict[str, Any] = {"files": files, "wanted": wanted, "whole": args.whole_files}
    content["may_be_blank"] = _may_be_blank(args, split)
    kind: dict[str, Any] = {"features": _features(wanted), "split": NamedSplit(split)}
    if args.streaming:
        return IterableDataset.from_generator(_examples_of_files, gen_kwargs=content, **kind)
    # The cache of `datasets` goes by these arguments alone: without the versions a changed file would go unnoticed.
    content["versions"] = tuple((stat.st_mtime_ns, stat.st_size) for stat in map(os.stat, files))
    try:
        return Dataset.from_generator(_examples_of_files, gen_kwargs=content, **kind)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise


def _features(wanted: Mapping[str, str], label_names: list[str] | None = None) -> Features | None:
    """Return the types of the columns: strings; None for labels without names, which the first rows tell."""
    if "label" in wanted and not label_names:
        return None
    return Features(dict.fromkeys(wanted, Value("string")))


# --- From rows to examples -------------------------------------------------------------------------------------------


def _may_be_blank(args: DataArguments, split: str) -> bool:
    """Return whether blank texts are left out later, by their length."""
    return split == "train" and args.max_ratio is not None


def _is_within(pair: Row, max_ratio: float) -> bool:
    shorter, longer = sorted(len(WORDS.findall(pair[side] or "")) for side in PAIR)
    return 0 < longer <= max_ratio * shorter


def _example(row: Row, wanted: Mapping[str, str], place: str, may_be_blank: bool) -> dict[str, Any]:
    translation = row.get("translation")
    columns = translation if isinstance(translation, dict) and "source" in wanted else row
    example = {}
    for name, column in wanted.items():
        if column not in columns:
            names = " and ".join(f"`{name}`" for name in wanted)
            raise ValueError(f"{place}: there is no {column!r}, only {list(columns)}; set {names}.")
        value = columns[column]
        if name == "label" and (value is None or value == "" or value != value):  # the last is NaN
            raise ValueError(f"{place}: {column!r} is {value!r}; every text needs a label.")
        is_blank = value is None or (isinstance(value, str) and not value.strip())
        if name != "label" and (not isinstance(value, str | None) or (is_blank and not may_be_blank)):
            needs = "every pair needs a sentence on both sides" if name in PAIR else "every row needs a text"
            raise ValueError(f"{place}: {column!r} is {value!r}; {needs}.")
        example[name] = value
    return example


def _numbered_example(
    row: Row, index: int, wanted: Mapping[str, str], origin: str, label_names: list[str] | None, may_be_blank: bool
) -> dict[str, Any]:
    example = _example(row, wanted, f"{origin}, row {index + 1}", may_be_blank)
    if label_names:
        if example["label"] < 0:  # as test parts have that keep their labels to themselves
            raise ValueError(f"{origin}, row {index + 1}: {wanted['label']!r} is missing; every text needs a label.")
        example["label"] = label_names[example["label"]]
    return example


def _examples_of_files(
    files: tuple[str, ...],
    wanted: Mapping[str, str],
    whole: bool,
    may_be_blank: bool,
    versions: tuple[tuple[int, int], ...] = (),
) -> Iterator[dict[str, Any]]:
    place = None
    for place, row in _rows(files, wanted, whole):
        yield _example(row, wanted, place, may_be_blank)
    if place is None:
        kind = "sentence pairs" if "source" in wanted else "texts"
        raise ValueError(f"{files[0]}: there are no {kind} in this file.")


def _rows(files: tuple[str, ...], wanted: Mapping[str, str], whole: bool) -> Iterator[PlacedRow]:
    ending = Path(files[0]).suffix
    if ending in READERS:
        return READERS[ending](files[0])
    if "source" in wanted:
        return parallel_rows(files[0], files[1], wanted["source"], wanted["target"])
    return document_rows(files[0], wanted["text"], whole)
