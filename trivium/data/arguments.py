"""Arguments of the data: the `data:` section of a recipe, its checks, and the sources and filters that it names."""

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from trivium.data.columns import FIELDS, PAIR
from trivium.data.compressed import content_suffix
from trivium.data.filters import Filters, check_scripts
from trivium.data.mixing import MixArguments
from trivium.data.readers import BINARY, TABLES
from trivium.data.structured import READ

SPLITS = ("train", "validation", "test")
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


def requested_splits(args: DataArguments) -> dict[str, str]:
    """Return the files or splits that the arguments name, by split."""
    return {split: value for split in SPLITS if (value := getattr(args, split)) is not None}


def check_arguments(args: DataArguments, columns: Sequence[str]) -> None:
    """Check the arguments of a single translation direction against each other and against the columns of a task.

    Raises:
        ValueError: The message names the field, its value and what is allowed.
    """
    _check_format(args)
    _check_filters(args, tuple(columns))
    if args.mix is not None and (args.train or (args.name and not requested_splits(args))):
        field = "data.train" if args.train else "data.name"
        raise ValueError(
            f"{field} is {args.train or args.name!r}, but data.mix is set, too, and only one can be the training "
            f"data. Move {field} into data.mix.sources, or set data.mix=null."
        )


def _check_format(args: DataArguments) -> None:
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
    suffixes = [content_suffix(path) for path in requested_splits(args).values() if args.name is None]
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


def columns_by_name(args: DataArguments, columns: Iterable[str]) -> dict[str, str]:
    """Map each column of a task to a column of the data."""
    return {column: getattr(args, FIELDS.get(column, column), column) for column in columns}


def filters_of(args: DataArguments, split: str, columns: Sequence[str]) -> Filters:
    """Return the filters for a split: all filters for training, but only `drop_empty` for evaluation."""
    if split != "train":
        return Filters(tuple(columns), drop_empty=args.drop_empty)
    if args.mix is not None:  # the sources are already filtered
        return Filters(tuple(columns))
    scripts = {side: names for side in PAIR if (names := getattr(args, f"{side}_scripts")) is not None}
    return Filters(tuple(columns), args.drop_empty, args.max_ratio, args.drop_identical, scripts, args.drop_duplicates)


def allows_blank(args: DataArguments, split: str) -> bool:
    """Return True if blank texts are accepted, because a filter drops them later."""
    return args.drop_empty or (split == "train" and args.max_ratio is not None)


def sources_of(args: DataArguments) -> list[DataArguments]:
    """Return the arguments of each training source: those of `data.mix`, or else the single source."""
    if args.mix is None:
        return [args]
    unset = dict.fromkeys(("name", "config_name", "train", "validation", "test", "max_train_samples", "mix"))
    return [replace(args, **{**unset, **source.arguments}) for source in args.mix.sources]


def has_shards(args: DataArguments) -> bool:
    """Return True if the shards of the streamed training split can be read independently.

    They cannot if rows are counted across shards, in order to skip the first rows or to stop after a limit.
    """
    has_slices = any(source.name and SLICE.fullmatch(source.train or "") for source in sources_of(args))
    return args.max_train_samples is None and not has_slices
