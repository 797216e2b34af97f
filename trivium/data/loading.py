"""Load texts, sentence pairs and labeled texts from the Hub, from local files, or from the bundled corpus.

The columns do not depend on the origin: `text` for a language model, `source` and `target` for a translator, `text`
and `label` for a classifier. Every row is validated: a missing, empty or undecodable text raises an error with its
location, so that the model is not trained on corrupt data.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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

from trivium.data.mixing import MixArguments
from trivium.data.numbers import numbers_corpus
from trivium.data.readers import READERS, PlacedRow, Row, document_rows, parallel_rows

SPLITS = ("train", "validation", "test")
PAIR = ("source", "target")
TEXT = ("text",)
LABELED_TEXT = ("text", "label")
WORDS = re.compile(r"\w+|[^\w\s]")  # Each punctuation mark counts as a word.
SLICE = re.compile(r"([^\[\]+]+)\[(\d*):(\d*)\]")  # for example `train[1000:]`


@dataclass
class DataArguments:
    """Source of the data: the `data:` section of a recipe.

    Set either `name` or local files. The suffix of a local file determines its format: `.jsonl` or `.json` (both with
    one object per line), `.csv`, `.tsv` (without quoting) or `.parquet`. Any other file is plain text: for a language
    model, a file with one text per line; for sentence pairs, the common prefix of two files, so that
    `train="corpus/train"` reads aligned lines of `corpus/train.en` and `corpus/train.de`.

    To train on several sources, list them in `mix` instead of setting `train`.

    Attributes:
        name: `numbers` for the bundled corpus, a dataset on the Hub, or a folder in the Hub's layout.
        config_name: Configuration of the Hub dataset, if it has several.
        train: Local file to train on; with `name`, the split to train on, such as `train[:90%]`. Slices of a stream
            count rows, such as `train[1000:]`.
        validation: File or split for validation, in the same form.
        test: File or split for testing, in the same form.
        source: Source language: the column, the key in `translation`, or the suffix of the file.
        target: Target language, in the same form.
        text: Column of texts, for tasks without sentence pairs.
        label: Column of labels: strings or integers; lists of them for multi-label classification; or floats for
            regression.
        prepared: Folder of data that `trivium prepare` encoded, to train on them without encoding; None to encode them
            before training.
        whole_files: Treat a plain text file as one text instead of one text per line.
        streaming: Read data lazily, if they do not fit on the disk or into memory.
        max_ratio: Drop training pairs in which one side has more than this many times the words of the other, or no
            words; punctuation marks count as words. None keeps all pairs, and raises if a side is empty.
        max_train_samples: Number of training rows to keep, from the first; None for all.
        max_validation_samples: Number of validation rows to keep, from the first; None for all.
        max_test_samples: Number of test rows to keep, from the first; None for all.
        mix: Sources to train on together, with their weights; None for the single source `train`.
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
    prepared: str | None = None
    whole_files: bool = False
    streaming: bool = False
    max_ratio: float | None = None
    max_train_samples: int | None = None
    max_validation_samples: int | None = None
    max_test_samples: int | None = None
    mix: MixArguments | None = None


def load_data(args: DataArguments, columns: Sequence[str] = PAIR) -> DatasetDict | IterableDatasetDict:
    """Load the splits of a dataset with the columns of a task.

    Args:
        args: Source of the data.
        columns: Columns of the task: `source` and `target`, or `text`, or `text` and `label`.

    Returns:
        The existing splits among `train`, `validation` and `test`, with these columns.

    Raises:
        FileNotFoundError: A file or dataset does not exist.
        ValueError: The arguments contradict each other; or a row lacks a column, is empty, or is not UTF-8, in which
            case the message names the file and the line. With `streaming`, errors in rows are raised when the row is
            read.
    """
    requested = {split: getattr(args, split) for split in SPLITS if getattr(args, split) is not None}
    columns_by_name = {column: getattr(args, column) for column in columns}
    if args.mix is not None and (args.train or (args.name and not requested)):
        field = "data.train" if args.train else "data.name"
        raise ValueError(
            f"{field} is {args.train or args.name!r}, but data.mix is set, too, and only one can be the training "
            f"data. Move {field} into data.mix.sources, or set data.mix=null."
        )
    if args.max_ratio is not None and (args.max_ratio < 1 or tuple(columns) != PAIR):
        raise ValueError(
            f"data.max_ratio is {args.max_ratio}, but must be null or at least 1, and is only for sentence pairs."
        )
    if args.name == "numbers":
        splits = _load_numbers(args, requested, columns_by_name)
    elif args.name is not None:
        splits = _load_named(args, requested, columns_by_name)
    elif requested:
        splits = {split: _load_file(path, split, args, columns_by_name) for split, path in requested.items()}
    elif args.mix is not None:
        splits = {}
    else:
        raise ValueError(
            "data.name and data.train are both null, so there are no data. Set data.name to `numbers` or a dataset on "
            "the Hub, or data.train to a local file."
        )

    if args.max_ratio is not None and "train" in splits:
        splits["train"] = splits["train"].filter(_is_within, fn_kwargs={"max_ratio": args.max_ratio})
    if args.mix is not None:
        splits["train"] = args.mix.interleave([_load_source(source, columns) for source in sources_of(args)])
    for split in splits:
        limit = getattr(args, f"max_{split}_samples")
        if limit is not None:
            if limit < 1:
                raise ValueError(f"data.max_{split}_samples is {limit}, but must be at least 1, or null for all.")
            splits[split] = splits[split].take(limit)
    return IterableDatasetDict(splits) if args.streaming else DatasetDict(splits)


def has_shards(args: DataArguments) -> bool:
    """Return True if the shards of the streamed training split can be read separately.

    They cannot if rows are counted over all of them: to skip the first rows, or to stop after some.
    """
    has_slices = any(source.name and SLICE.fullmatch(source.train or "") for source in sources_of(args))
    return args.max_train_samples is None and not has_slices


def sources_of(args: DataArguments) -> list[DataArguments]:
    """Return the arguments of each training source: of `data.mix`, or else of the only one."""
    if args.mix is None:
        return [args]
    unset = dict.fromkeys(("name", "config_name", "train", "validation", "test", "max_train_samples", "mix"))
    return [replace(args, **{**unset, **source.arguments}) for source in args.mix.sources]


def _load_source(args: DataArguments, columns: Sequence[str]) -> Dataset | IterableDataset:
    """Load the training split of one source of a mixture."""
    splits = load_data(args, columns)
    if "train" not in splits:
        raise ValueError(
            f"data.mix.sources has {args.name}, which has the splits {', '.join(splits)}, but no training split. Set "
            "its `train` to the split to train on."
        )
    return splits["train"]


# --- The bundled corpus, datasets on the Hub, local files ------------------------------------------------------------


def _load_numbers(args: DataArguments, requested: dict[str, str], columns: dict[str, str]) -> dict[str, Any]:
    if requested:
        names = ", ".join(f"data.{name}" for name in requested)
        raise ValueError(f"data.name is `numbers`, a bundled corpus with fixed splits. Leave out {names}.")
    if tuple(columns) != PAIR:
        raise ValueError(
            f"data.name is `numbers`, which has sentence pairs, but the task needs {' and '.join(columns)}. Use the "
            "corpus for translation or completion."
        )
    corpus = numbers_corpus()
    if (args.source, args.target) == ("de", "en"):
        corpus = corpus.rename_columns({"source": "target", "target": "source"})
    elif (args.source, args.target) != ("en", "de"):
        raise ValueError(
            f"data.source and data.target are {args.source!r} and {args.target!r}, but the corpus `numbers` is in "
            "English and German. Set them to en and de, or to de and en."
        )
    return {split: pairs.to_iterable_dataset() if args.streaming else pairs for split, pairs in corpus.items()}


def _load_named(args: DataArguments, requested: dict[str, str], columns: dict[str, str]) -> dict[str, Any]:
    if requested:
        loaded = {split: _load_split(args, expression) for split, expression in requested.items()}
    else:
        available = load_dataset(args.name, args.config_name, streaming=args.streaming)
        loaded = {split: available[split] for split in SPLITS if split in available}
        if not loaded:
            raise ValueError(
                f"data.name is {args.name}, which has the splits {list(available)}, none of {', '.join(SPLITS)}. Set "
                "data.train to the split to train on."
            )
    return {split: _as_examples(rows, args, columns, split) for split, rows in loaded.items()}


def _load_split(args: DataArguments, expression: str) -> Dataset | IterableDataset:
    """Load a split, or a slice of one, of a named dataset; `load_dataset` does not support slices of streams."""
    sliced = SLICE.fullmatch(expression) if args.streaming else None
    split = sliced[1] if sliced else expression
    rows = load_dataset(args.name, args.config_name, split=split, streaming=args.streaming)
    if sliced is None:
        return rows
    start, end = int(sliced[2] or 0), sliced[3]
    rows = rows.skip(start)
    return rows.take(max(0, int(end) - start)) if end else rows


def _as_examples(
    rows: Dataset | IterableDataset, args: DataArguments, columns: dict[str, str], split: str
) -> Dataset | IterableDataset:
    # A `ClassLabel` column stores indices: convert them to names.
    label_names = getattr((rows.features or {}).get(args.label), "names", None) if "label" in columns else None
    return rows.map(
        _numbered_example,
        with_indices=True,
        fn_kwargs={
            "columns": columns,
            "origin": f"{args.name} ({split})",
            "label_names": label_names,
            "allow_blank": _allow_blank(args, split),
        },
        remove_columns=rows.column_names or list(next(iter(rows), {})),  # Some streams do not declare their columns.
        features=_features(columns, label_names),
    )


def files_of(path: str, args: DataArguments, columns: Iterable[str]) -> tuple[str, ...]:
    """Return the file that `path` names, or the two files of parallel text that it is the prefix of."""
    if Path(path).suffix in READERS or "source" not in columns:
        return (path,)
    return f"{path}.{args.source}", f"{path}.{args.target}"


def _load_file(path: str, split: str, args: DataArguments, columns: dict[str, str]) -> Dataset | IterableDataset:
    files = files_of(path, args, columns)
    is_prefix = len(files) > 1
    for file in files:
        if not Path(file).is_file():
            hint = f" (leave off {Path(path).suffix})" if Path(path).is_file() else ""
            plain_text = {
                PAIR: f", or the prefix of parallel text (PREFIX.{args.source} and PREFIX.{args.target})",
                TEXT: ", or plain text",
            }.get(tuple(columns), "")
            raise FileNotFoundError(
                f"data.{split} names {file}, but there is no such file{hint}. Allowed are files that end in "
                f"{', '.join(READERS)}{plain_text}."
            )
    if not is_prefix and Path(path).suffix not in READERS and tuple(columns) != TEXT:
        raise ValueError(
            f"data.{split} is {path}, but plain text has no labels. Use a file that ends in {', '.join(READERS)}."
        )
    gen_kwargs: dict[str, Any] = {"files": files, "columns": columns, "whole": args.whole_files}
    gen_kwargs["allow_blank"] = _allow_blank(args, split)
    options: dict[str, Any] = {"features": _features(columns), "split": NamedSplit(split)}
    if args.streaming:
        return IterableDataset.from_generator(_examples_of_files, gen_kwargs=gen_kwargs, **options)
    # The cache key of `datasets` depends only on these arguments, so they include the version of each file.
    gen_kwargs["versions"] = tuple((stat.st_mtime_ns, stat.st_size) for stat in map(os.stat, files))
    try:
        return Dataset.from_generator(_examples_of_files, gen_kwargs=gen_kwargs, **options)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise


def _features(columns: Mapping[str, str], label_names: list[str] | None = None) -> Features | None:
    """Return string features for the columns, or None to infer the type of labels without names from the data."""
    if "label" in columns and not label_names:
        return None
    return Features(dict.fromkeys(columns, Value("string")))


# --- From rows to examples -------------------------------------------------------------------------------------------


def _allow_blank(args: DataArguments, split: str) -> bool:
    """Return True if blank texts are accepted, because the filter by `max_ratio` drops them later."""
    return split == "train" and args.max_ratio is not None


def _is_within(pair: Row, max_ratio: float) -> bool:
    shorter, longer = sorted(len(WORDS.findall(pair[side] or "")) for side in PAIR)
    return 0 < longer <= max_ratio * shorter


def _example(row: Row, columns: Mapping[str, str], place: str, allow_blank: bool) -> dict[str, Any]:
    translation = row.get("translation")
    cells = translation if isinstance(translation, dict) and "source" in columns else row
    example = {}
    for name, column in columns.items():
        if column not in cells:
            names = " and ".join(f"data.{name}" for name in columns)
            raise ValueError(f"{place}: there is no column {column!r}, only {list(cells)}; set {names}.")
        value = cells[column]
        if name == "label" and (value is None or value == "" or value != value):  # NaN is not equal to itself.
            raise ValueError(f"{place}: {column!r} is {value!r}; every text needs a label.")
        is_blank = value is None or (isinstance(value, str) and not value.strip())
        if name != "label" and (not isinstance(value, str | None) or (is_blank and not allow_blank)):
            needs = "every pair needs a sentence on both sides" if name in PAIR else "every row needs a text"
            raise ValueError(f"{place}: {column!r} is {value!r}; {needs}.")
        example[name] = value
    return example


def _numbered_example(
    row: Row, index: int, columns: Mapping[str, str], origin: str, label_names: list[str] | None, allow_blank: bool
) -> dict[str, Any]:
    example = _example(row, columns, f"{origin}, row {index + 1}", allow_blank)
    if label_names:
        if example["label"] < 0:  # Test splits with withheld labels use -1.
            raise ValueError(f"{origin}, row {index + 1}: {columns['label']!r} is missing; every text needs a label.")
        example["label"] = label_names[example["label"]]
    return example


def _examples_of_files(
    files: tuple[str, ...],
    columns: Mapping[str, str],
    whole: bool,
    allow_blank: bool,
    versions: tuple[tuple[int, int], ...] = (),
) -> Iterator[dict[str, Any]]:
    place = None
    for place, row in _rows(files, columns, whole):
        yield _example(row, columns, place, allow_blank)
    if place is None:
        contents = "sentence pairs" if "source" in columns else "texts"
        raise ValueError(f"{files[0]}: there are no {contents} in this file.")


def _rows(files: tuple[str, ...], columns: Mapping[str, str], whole: bool) -> Iterator[PlacedRow]:
    suffix = Path(files[0]).suffix
    if suffix in READERS:
        return READERS[suffix](files[0])
    if "source" in columns:
        return parallel_rows(files[0], files[1], columns["source"], columns["target"])
    return document_rows(files[0], columns["text"], whole)
