"""Load texts, sentence pairs and labeled texts from the Hub, from local files, or from the bundled corpus.

The columns do not depend on the origin: `text` for a language model, `source` and `target` for a translator, `text`
and `label` for a classifier, `words` and `tags` for a tagger, `document` and `references` for a summarizer,
`question`, `context` and `answers` for question answering. Every row is validated: a missing, empty or undecodable
text raises an error with its location, so that no model is trained on corrupt data.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
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

from trivium.data.arguments import (
    SLICE,
    SPLITS,
    DataArguments,
    allows_blank,
    check_arguments,
    columns_by_name,
    filters_of,
    requested_splits,
    sources_of,
)
from trivium.data.columns import DOCUMENT, PAIR, TAGGED_WORDS, TEXT
from trivium.data.compressed import content_suffix, find_file
from trivium.data.directions import check_directions, load_directions
from trivium.data.examples import examples_of_files, numbered_example
from trivium.data.filters import filter_rows
from trivium.data.numbers import numbers_corpus
from trivium.data.readers import READERS, FileFormat
from trivium.data.structured import FEATURES


def load_data(args: DataArguments, columns: Sequence[str] = PAIR) -> DatasetDict | IterableDatasetDict:
    """Load the splits of a dataset with the columns of a task.

    Args:
        args: Source of the data.
        columns: Columns of the task: `source` and `target`, or `text`, or `text` and `label`.

    Returns:
        The existing splits among `train`, `validation` and `test`, with these columns.

    Raises:
        FileNotFoundError: A file or dataset does not exist.
        ValueError: The arguments contradict each other; or a row lacks a column, is empty, or cannot be decoded, in
            which case the message names the file and the line. With `streaming`, errors in rows are raised when the
            row is read.
    """
    return load_and_count(args, columns)[0]


def load_and_count(
    args: DataArguments, columns: Sequence[str] = PAIR
) -> tuple[DatasetDict | IterableDatasetDict, dict[str, Counter[str]]]:
    """Load splits as `load_data` does; also return the number of rows dropped from each split, by reason.

    The numbers are unknown for streamed data.
    """
    check_directions(args, columns)
    if args.directions is not None:
        return load_directions(args, columns, load_and_count)
    check_arguments(args, columns)
    splits = _load_splits(args, columns)
    if args.mix is not None:
        splits["train"] = args.mix.interleave([_load_source(source, columns) for source in sources_of(args)])
    dropped: dict[str, Counter[str]] = {}
    direction = f" ({args.source}-{args.target})" if tuple(columns) == PAIR else ""
    for split in splits:
        filters = filters_of(args, split, columns)
        splits[split], dropped[split] = filter_rows(splits[split], filters, f"data.{split}{direction}")
        limit = getattr(args, f"max_{split}_samples")
        if limit is not None:
            if limit < 1:
                raise ValueError(f"data.max_{split}_samples is {limit}, but must be at least 1, or null for all.")
            splits[split] = splits[split].take(limit)
    return (IterableDatasetDict(splits) if args.streaming else DatasetDict(splits)), dropped


def load_split(args: DataArguments, split: str, columns: Sequence[str] = PAIR) -> Dataset | IterableDataset:
    """Load a single split as `load_data` does; files of the remaining splits are not read and may be missing.

    Raises:
        FileNotFoundError: The file or dataset does not exist.
        ValueError: There is no such split; otherwise as in `load_data`.
    """
    requested = requested_splits(args)
    data: Mapping[str, Dataset | IterableDataset] = {}
    if not requested or split in requested:
        others: dict[str, Any] = {name: None for name in requested if name != split}
        data = load_data(replace(args, **others), columns)
    if split not in data:
        hint = f", or set data.{split}" if split in SPLITS else ""
        raise ValueError(f"split is {split!r}, but must be one of {', '.join(requested or data)}{hint}.")
    return data[split]


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


def _load_splits(args: DataArguments, columns: Sequence[str]) -> dict[str, Any]:
    """Load the splits that the arguments select, without the sources of a mixture."""
    requested, names = requested_splits(args), columns_by_name(args, columns)
    if args.name == "numbers":
        return _load_numbers(args, requested, names)
    if args.name is not None:
        return _load_named(args, requested, names)
    if not requested and args.mix is None:
        raise ValueError(
            "data.name and data.train are both null, so there are no data. Set data.name to `numbers` or a dataset on "
            "the Hub, or data.train to a local file."
        )
    return {split: _load_file(path, split, args, names) for split, path in requested.items()}


def _load_numbers(args: DataArguments, requested: dict[str, str], columns: dict[str, str]) -> dict[str, Any]:
    if requested:
        names = ", ".join(f"data.{name}" for name in requested)
        raise ValueError(
            f"data.name is `numbers`, a bundled corpus with fixed splits. Leave out {names}, or set data.name=null."
        )
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
        available = _load_dataset(args)
        loaded = {split: available[split] for split in SPLITS if split in available}
        if not loaded:
            raise ValueError(
                f"data.name is {args.name}, which has the splits {list(available)}, none of {', '.join(SPLITS)}. Set "
                "data.train to the split to train on."
            )
    return {split: _as_examples(rows, args, columns, split) for split, rows in loaded.items()}


def _load_dataset(args: DataArguments, **options: Any) -> Any:
    """Load a named dataset; `data.delimiter` and `data.encoding` are passed to readers that support them."""
    reader_options = {"sep": args.delimiter, "encoding": args.encoding}
    options |= {name: value for name, value in reader_options.items() if value is not None}
    try:
        return load_dataset(args.name, args.config_name, streaming=args.streaming, **options)
    except ValueError as error:
        if not re.search(r"BuilderConfig .* doesn't have a '(sep|encoding)' key", str(error)):
            raise
        raise ValueError(
            f"data.delimiter is {args.delimiter!r} and data.encoding is {args.encoding!r}, but the dataset "
            f"{args.name} is not in a format with such an option. Set them to null."
        ) from error


def _load_split(args: DataArguments, expression: str) -> Dataset | IterableDataset:
    """Load a split, or a slice of one, of a named dataset; `load_dataset` does not support slices of streams."""
    sliced = SLICE.fullmatch(expression) if args.streaming else None
    split = sliced[1] if sliced else expression
    rows = _load_dataset(args, split=split)
    if sliced is None:
        return rows
    start, end = int(sliced[2] or 0), sliced[3]
    rows = rows.skip(start)
    return rows.take(max(0, int(end) - start)) if end else rows


def _as_examples(
    rows: Dataset | IterableDataset, args: DataArguments, columns: dict[str, str], split: str
) -> Dataset | IterableDataset:
    # A `ClassLabel` column, or a column of lists of them, stores indices: convert them to names.
    feature = (rows.features or {}).get(args.label) if {"label", "tags"} & columns.keys() else None
    label_names = getattr(getattr(feature, "feature", feature), "names", None)
    return rows.map(
        numbered_example,
        with_indices=True,
        fn_kwargs={
            "columns": columns,
            "origin": f"{args.name} ({split})",
            "label_names": label_names,
            "allow_blank": allows_blank(args, split),
        },
        remove_columns=rows.column_names or list(next(iter(rows), {})),  # Some streams do not declare their columns.
        features=_features(columns, label_names),
    )


def files_of(path: str, args: DataArguments, columns: Iterable[str]) -> tuple[str, ...]:
    """Return the file at `path`, or the two files of parallel text whose common prefix is `path`.

    If only a compressed version of a file exists, it is returned.
    """
    is_one_file = content_suffix(path) in READERS or not {"source", "document"} & set(columns)
    files = (path,) if is_one_file else (f"{path}.{args.source}", f"{path}.{args.target}")
    return tuple(find_file(file) or file for file in files)


def file_arguments(path: str, args: DataArguments, columns: Iterable[str]) -> dict[str, Any]:
    """Return the arguments of `placed_examples` for the file at `path`."""
    names = columns_by_name(args, columns)
    form = FileFormat(tuple(names.values()), args.delimiter, args.encoding or "utf-8")
    return {"files": files_of(path, args, names), "columns": names, "whole": args.whole_files, "form": form}


def _endings(columns: Iterable[str]) -> str:
    """List the endings of files for a task; a translation memory has only sentence pairs."""
    return ", ".join(ending for ending in READERS if ending != ".tmx" or tuple(columns) == PAIR)


def _load_file(path: str, split: str, args: DataArguments, columns: dict[str, str]) -> Dataset | IterableDataset:
    files = files_of(path, args, columns)
    is_prefix = len(files) > 1
    for file in files:
        if not Path(file).is_file():
            suffixes = "".join(dict.fromkeys((content_suffix(path), Path(path).suffix)))
            hint = f" (leave off {suffixes})" if Path(path).is_file() else ""
            parallel = f", or the prefix of parallel text (PREFIX.{args.source} and PREFIX.{args.target})"
            others: dict[tuple[str, ...], str] = {
                PAIR: parallel,
                DOCUMENT: parallel,
                TEXT: ", or plain text",
                TAGGED_WORDS: ", or CoNLL files",
            }
            raise FileNotFoundError(
                f"data.{split} names {file}, but there is no such file{hint}. Allowed are files that end in "
                f"{_endings(columns)}{others.get(tuple(columns), '')}."
            )
    if not is_prefix and content_suffix(path) not in READERS and tuple(columns) != TEXT and "tags" not in columns:
        raise ValueError(
            f"data.{split} is {path}, but plain text has no labels. Use a file that ends in {_endings(columns)}."
        )
    gen_kwargs = {**file_arguments(path, args, columns), "allow_blank": allows_blank(args, split)}
    options: dict[str, Any] = {"features": _features(columns), "split": NamedSplit(split)}
    if args.streaming:
        return IterableDataset.from_generator(examples_of_files, gen_kwargs=gen_kwargs, **options)
    # The cache key of `datasets` depends only on these arguments, so they include the version of each file.
    gen_kwargs["versions"] = tuple((stat.st_mtime_ns, stat.st_size) for stat in map(os.stat, files))
    try:
        return Dataset.from_generator(examples_of_files, gen_kwargs=gen_kwargs, **options)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise


def _features(columns: Mapping[str, str], label_names: list[str] | None = None) -> Features | None:
    """Return string features for the columns, or None to infer the type of labels without names from the data."""
    if "label" in columns and not label_names:
        return None
    return Features({name: FEATURES.get(name, Value("string")) for name in columns})
