"""Load texts, sentence pairs and labeled texts from the Hub, from local files, or from the bundled corpus.

The columns do not depend on the origin: `text` for a language model, `source` and `target` for a translator, `text`
and `label` for a classifier, `words` and `tags` for a tagger, `document` and `references` for a summarizer,
`question`, `context` and `answers` for question answering. Every row is validated: a missing, empty or undecodable
text raises an error with its location, so that no model is trained on corrupt data.
"""

import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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

from trivium.data.compressed import content_suffix, find_file
from trivium.data.directions import check_directions, load_directions
from trivium.data.examples import examples_of_files, numbered_example
from trivium.data.filters import PAIR, Filters, check_scripts, filter_rows
from trivium.data.mixing import MixArguments
from trivium.data.numbers import numbers_corpus
from trivium.data.readers import BINARY, READERS, TABLES, FileFormat
from trivium.data.structured import DOCUMENT, FEATURES, FIELDS, READ, TAGGED_WORDS

SPLITS = ("train", "validation", "test")
TEXT = ("text",)
LABELED_TEXT = ("text", "label")
SLICE = re.compile(r"([^\[\]+]+)\[(\d*):(\d*)\]")  # for example `train[1000:]`


@dataclass
class DataArguments:
    """Source of the data: the `data:` section of a recipe.

    Set either `name` or local files. The suffix of a local file determines its format: `.jsonl` or `.json` (both with
    one object per line), `.csv`, `.tsv` (without quoting), `.parquet` or `.tmx` (a translation memory). Any other file
    is plain text: for a language model, a file with one text per line; for sentence pairs, the common prefix of two
    files, so that `train="corpus/train"` reads aligned lines of `corpus/train.en` and `corpus/train.de`; for tagged
    words, a CoNLL file, with a word and its tag per line and an empty line after each sentence; for this task, `.tsv`
    files have the same format. Files may be compressed (`.gz`, `.xz`, `.bz2`, `.zst`); the compression suffix may be
    omitted here.

    To train on several sources, list them in `mix` instead of setting `train`.

    Attributes:
        name: `numbers` for the bundled corpus, a dataset on the Hub, or a folder in the Hub's layout.
        config_name: Configuration of the Hub dataset, if it has several.
        train: Local file to train on; with `name`, the split to train on, such as `train[:90%]`. Slices of a stream
            must be in rows, such as `train[1000:]`.
        validation: File or split for validation, in the same form.
        test: File or split for testing, in the same form.
        source: Source language: the column, the key in `translation`, the suffix of the file, or the language in a
            translation memory. A column may be nested, such as `doc.src.text`. For summarization, the column of the
            documents, which may be lists of sentences.
        target: Target language, in the same form. For summarization, the column of the summaries, which may be lists
            of references; the model is trained on the first reference and evaluated on all of them.
        directions: Several directions for one model, such as `[en-de, en-fr]`, instead of `source` and `target`. The
            tag of the target language, such as `<2de>`, becomes the first token of each source. `{direction}` in
            `train`, `validation`, `test` and `config_name` is replaced by the direction. Limits apply to each
            direction.
        temperature: For `directions`: 1 trains on every pair once; higher values repeat pairs of smaller directions,
            so that the share of a direction is proportional to its size to the power of 1/temperature.
        mixing_seed: For `directions`: seed for shuffling the training rows and for drawing repeated rows.
        text: Column of texts, for tasks without sentence pairs; for token classification, column of lists of words. It
            may be nested.
        label: Column of labels: strings or integers; for multi-label classification, lists of them; for regression,
            floats; for token classification, lists with one tag per word.
        prepared: Folder of data encoded by `trivium prepare`, which is loaded instead of encoding the data; None to
            encode before training.
        whole_files: Treat a plain text file as one text instead of one text per line.
        delimiter: Delimiter of `.csv` and `.tsv` files; None for a comma and a tab, respectively.
        encoding: Encoding of text files, by its Python name, such as `cp1252` or `utf-16`; None for UTF-8.
        streaming: Read the data lazily, for data that does not fit on disk or in memory.
        drop_empty: Drop rows with an empty text or side and log how many, instead of raising an error.
        max_ratio: Maximum length ratio: drop training pairs whose longer side has more than this many times the words
            of the shorter side, or whose shorter side has no words; punctuation marks count as words. None keeps all
            pairs, and raises an error if a side is empty.
        drop_identical: Drop training pairs whose two sides are identical.
        source_scripts: Drop training pairs if less than half of the letters of the source are in these Unicode
            scripts, such as `[Latin]` or `[Han, Hiragana, Katakana]`. None for no filter.
        target_scripts: Unicode scripts of the target, in the same form.
        drop_duplicates: Drop duplicate training rows, keeping the first. Not available with `streaming`.
        max_train_samples: Maximum number of training rows, taken from the start; None for all.
        max_validation_samples: Maximum number of validation rows, taken from the start; None for all.
        max_test_samples: Maximum number of test rows, taken from the start; None for all.
        mix: Several training sources with their weights; None to train only on `train`.
    """

    name: str | None = None
    config_name: str | None = None
    train: str | None = None
    validation: str | None = None
    test: str | None = None
    source: str = "en"
    target: str = "de"
    directions: list[str] | None = None
    temperature: float = 1.0
    mixing_seed: int = 0
    text: str = "text"
    label: str = "label"
    prepared: str | None = None
    whole_files: bool = False
    delimiter: str | None = None
    encoding: str | None = None
    streaming: bool = False
    drop_empty: bool = False
    max_ratio: float | None = None
    drop_identical: bool = False
    source_scripts: list[str] | None = None
    target_scripts: list[str] | None = None
    drop_duplicates: bool = False
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
    requested = {split: getattr(args, split) for split in SPLITS if getattr(args, split) is not None}
    columns_by_name = _columns_by_name(args, columns)
    _check_format(args, requested)
    _check_filters(args, tuple(columns))
    if args.mix is not None and (args.train or (args.name and not requested)):
        field = "data.train" if args.train else "data.name"
        raise ValueError(
            f"{field} is {args.train or args.name!r}, but data.mix is set, too, and only one can be the training "
            f"data. Move {field} into data.mix.sources, or set data.mix=null."
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

    if args.mix is not None:
        splits["train"] = args.mix.interleave([_load_source(source, columns) for source in sources_of(args)])
    dropped: dict[str, Counter[str]] = {}
    direction = f" ({args.source}-{args.target})" if tuple(columns) == PAIR else ""
    for split in splits:
        filters = _filters(args, split, columns)
        splits[split], dropped[split] = filter_rows(splits[split], filters, f"data.{split}{direction}")
        limit = getattr(args, f"max_{split}_samples")
        if limit is not None:
            if limit < 1:
                raise ValueError(f"data.max_{split}_samples is {limit}, but must be at least 1, or null for all.")
            splits[split] = splits[split].take(limit)
    return (IterableDatasetDict(splits) if args.streaming else DatasetDict(splits)), dropped


def _check_format(args: DataArguments, requested: Mapping[str, str]) -> None:
    """Check the fields that describe the format of files."""
    if args.encoding is not None:
        try:
            io.TextIOWrapper(io.BytesIO(), encoding=args.encoding)
        except LookupError as error:
            raise ValueError(
                f"data.encoding is {args.encoding!r}, but must be a text encoding of Python, such as utf-8, cp1252, "
                "latin-1 or utf-16, or null for UTF-8."
            ) from error
    if args.delimiter is not None and (len(args.delimiter) != 1 or args.delimiter in '\r\n"'):
        raise ValueError(f"data.delimiter is {args.delimiter!r}, but must be one character, such as ';', or null.")
    suffixes = [content_suffix(path) for path in requested.values() if args.name is None]
    if args.delimiter is not None and suffixes and not set(suffixes) & set(TABLES):
        raise ValueError(
            f"data.delimiter is {args.delimiter!r}, but is only for files that end in {', '.join(TABLES)}."
        )
    if args.encoding is not None and suffixes and set(suffixes) <= set(BINARY):
        raise ValueError(
            f"data.encoding is {args.encoding!r}, but files that end in {', '.join(BINARY)} state their own. Set it "
            "to null."
        )


def _check_filters(args: DataArguments, columns: tuple[str, ...]) -> None:
    """Check the fields that filter rows against the columns of the task."""
    if args.max_ratio is not None and (args.max_ratio < 1 or columns != PAIR):
        raise ValueError(
            f"data.max_ratio is {args.max_ratio}, but must be null or at least 1, and is only for sentence pairs."
        )
    for name in ("drop_identical", "source_scripts", "target_scripts"):
        if (value := getattr(args, name)) and columns != PAIR:
            raise ValueError(
                f"data.{name} is {value}, but is only for sentence pairs; the task needs {' and '.join(columns)}."
            )
    if args.drop_empty and set(columns) & READ.keys():
        raise ValueError(
            f"data.drop_empty is True, but is only for texts and sentence pairs, not for {' and '.join(columns)}. "
            "Set it to false."
        )
    for name in ("source_scripts", "target_scripts"):
        if (scripts := getattr(args, name)) is not None:
            check_scripts(f"data.{name}", scripts)
    if args.drop_duplicates and args.streaming:
        raise ValueError(
            "data.drop_duplicates and data.streaming are both True, but duplicates can only be found among rows that "
            "are on the disk. Set one of them to false."
        )


def _filters(args: DataArguments, split: str, columns: Sequence[str]) -> Filters:
    """Return the filters for a split: all filters for training, but only `drop_empty` for evaluation."""
    if split != "train":
        return Filters(tuple(columns), drop_empty=args.drop_empty)
    if args.mix is not None:  # the sources are already filtered
        return Filters(tuple(columns))
    scripts = {side: names for side in PAIR if (names := getattr(args, f"{side}_scripts")) is not None}
    return Filters(tuple(columns), args.drop_empty, args.max_ratio, args.drop_identical, scripts, args.drop_duplicates)


def load_split(args: DataArguments, split: str, columns: Sequence[str] = PAIR) -> Dataset | IterableDataset:
    """Load a single split as `load_data` does; files of the remaining splits are not read and may be missing.

    Raises:
        FileNotFoundError: The file or dataset does not exist.
        ValueError: There is no such split; otherwise as in `load_data`.
    """
    requested = [name for name in SPLITS if getattr(args, name) is not None]
    data: Mapping[str, Dataset | IterableDataset] = {}
    if not requested or split in requested:
        others: dict[str, Any] = {name: None for name in requested if name != split}
        data = load_data(replace(args, **others), columns)
    if split not in data:
        hint = f", or set data.{split}" if split in SPLITS else ""
        raise ValueError(f"split is {split!r}, but must be one of {', '.join(requested or data)}{hint}.")
    return data[split]


def has_shards(args: DataArguments) -> bool:
    """Return True if the shards of the streamed training split can be read independently.

    They cannot if rows are counted across shards, in order to skip the first rows or to stop after a limit.
    """
    has_slices = any(source.name and SLICE.fullmatch(source.train or "") for source in sources_of(args))
    return args.max_train_samples is None and not has_slices


def sources_of(args: DataArguments) -> list[DataArguments]:
    """Return the arguments of each training source: those of `data.mix`, or else the single source."""
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


def _allow_blank(args: DataArguments, split: str) -> bool:
    """Return True if blank texts are accepted, because a filter drops them later."""
    return args.drop_empty or (split == "train" and args.max_ratio is not None)


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
            "allow_blank": _allow_blank(args, split),
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
    names = _columns_by_name(args, columns)
    form = FileFormat(tuple(names.values()), args.delimiter, args.encoding or "utf-8")
    return {"files": files_of(path, args, names), "columns": names, "whole": args.whole_files, "form": form}


def _endings(columns: Iterable[str]) -> str:
    """List the endings of files for a task; a translation memory has only sentence pairs."""
    return ", ".join(ending for ending in READERS if ending != ".tmx" or tuple(columns) == PAIR)


def _columns_by_name(args: DataArguments, columns: Iterable[str]) -> dict[str, str]:
    """Map each column of a task to a column of the data."""
    return {column: getattr(args, FIELDS.get(column, column), column) for column in columns}


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
    gen_kwargs = {**file_arguments(path, args, columns), "allow_blank": _allow_blank(args, split)}
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
