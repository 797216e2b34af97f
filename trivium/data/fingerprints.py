"""Fingerprint training data, to detect changes when a run is resumed."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset, load_dataset_builder

from trivium.data.arguments import SLICE, DataArguments, sources_of
from trivium.data.compressed import content_suffix
from trivium.data.loading import files_of, load_data
from trivium.data.readers import READERS

BATCH_SIZE = 1000  # number of rows to hash at once
LATER_FIELDS = (
    "delimiter",
    "encoding",
    "drop_empty",
    "drop_identical",
    "source_scripts",
    "target_scripts",
    "drop_duplicates",
    "directions",
    "temperature",
    "mixing_seed",
    "mix",
)


def fingerprint(args: DataArguments, rows: Dataset | IterableDataset) -> str:
    """Compute a content hash of the training data and their order, independent of their location.

    Without streaming, all `rows` are hashed. A stream is not read; instead, the hash covers the arguments that select
    its rows and the bytes of its files or, for files on the Hub, their URLs including the commit. The same data
    therefore has different fingerprints with and without streaming, and a new commit changes the fingerprint even if
    no row has changed.

    Args:
        args: The `data:` section of the recipe.
        rows: The training split that `load_data` returns.

    Returns:
        "rows:" or "files:", followed by a SHA-256 digest in hexadecimal.
    """
    digest = hashlib.sha256()
    if isinstance(rows, Dataset) or args.name == "numbers":
        for batch in rows.iter(BATCH_SIZE):
            digest.update(json.dumps(batch, sort_keys=True).encode())
        return f"rows:{digest.hexdigest()}"
    if args.mix is not None:
        columns = rows.column_names or ()
        parts = [fingerprint(source, load_data(source, columns)["train"]) for source in sources_of(args)]
        mix = [args.mix.probabilities, args.mix.seed, args.mix.strategy, args.max_train_samples]
        digest.update(json.dumps([parts, mix]).encode())
        return f"files:{digest.hexdigest()}"
    selection = (args.config_name, args.source, args.target, args.text, args.label, args.whole_files, args.max_ratio)
    limits = (args.max_train_samples, args.train if args.name else None)
    # Include newer fields only if they are set, so that earlier fingerprints remain valid.
    digest.update(json.dumps([*selection, *limits, *later_fields(args).items()]).encode())
    for file in _files(args, rows):
        digest.update((hash_file(file) if Path(file).is_file() else file).encode())
    return f"files:{digest.hexdigest()}"


def later_fields(args: DataArguments) -> dict[str, Any]:
    """Return the fields that earlier fingerprints lack, if they differ from their defaults."""
    values, defaults = asdict(args), asdict(DataArguments())
    return {name: values[name] for name in LATER_FIELDS if values[name] != defaults[name]}


def _files(args: DataArguments, rows: IterableDataset) -> list[str]:
    """Return the paths or URLs of a stream's files, in reading order."""
    if args.name is None:
        assert args.train is not None  # `train` ensures that there is a training split.
        return list(files_of(args.train, args, rows.column_names or ()))
    sliced = SLICE.fullmatch(args.train or "train")
    split = sliced[1] if sliced else args.train or "train"
    data_files = load_dataset_builder(args.name, args.config_name).config.data_files or {}
    return [file for name, files in data_files.items() if str(name) == split for file in files]


def hash_file(file: str) -> str:
    """Return a hash of the bytes of a file, followed by the file's suffix if the suffix selects a reader."""
    suffix = content_suffix(file)
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest() + (suffix if suffix in READERS else "")
