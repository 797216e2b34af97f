"""What tells training data from other data."""

import hashlib
import json
from pathlib import Path

from datasets import Dataset, IterableDataset, load_dataset_builder

from trivium.data.loading import SLICE, DataArguments, files_of
from trivium.data.readers import READERS

ROWS_AT_ONCE = 1000


def fingerprint(args: DataArguments, rows: Dataset | IterableDataset) -> str:
    """The same for the same training data in the same order, wherever they lie, and another one for others.

    Of data that are not streamed it is made of all `rows`. A stream is not read for it: there it is made of what rows
    are taken and how, and of the bytes of its files; of files on the Hub, of their addresses with the commit. So a
    stream never has the fingerprint of rows, and another commit gives another one even if no row has changed.

    Args:
        args: Where the data come from.
        rows: Those to train on, as `load_data` gives them.

    Returns:
        "rows:" or "files:", and a SHA-256 in hexadecimal.
    """
    digest = hashlib.sha256()
    if isinstance(rows, Dataset) or args.name == "numbers":
        for batch in rows.iter(ROWS_AT_ONCE):
            digest.update(json.dumps(batch, sort_keys=True).encode())
        return f"rows:{digest.hexdigest()}"
    taken = (args.config_name, args.source, args.target, args.text, args.label, args.whole_files, args.max_ratio)
    digest.update(json.dumps([*taken, args.max_train_samples, args.train if args.name else None]).encode())
    for file in _files(args, rows):
        digest.update((_content(file) if Path(file).is_file() else file).encode())
    return f"files:{digest.hexdigest()}"


def _files(args: DataArguments, rows: IterableDataset) -> list[str]:
    """The files of a stream, or their addresses, in the order in which they are read."""
    if args.name is None:
        assert args.train is not None  # or there were nothing to train on
        return list(files_of(args.train, args, rows.column_names or ()))
    cut = SLICE.fullmatch(args.train or "train")
    split = cut[1] if cut else args.train or "train"
    found = load_dataset_builder(args.name, args.config_name).config.data_files or {}
    return [file for name, files in found.items() if str(name) == split for file in files]


def _content(file: str) -> str:
    """Of a file its bytes, and as what they are read."""
    ending = Path(file).suffix
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest() + (ending if ending in READERS else "")
