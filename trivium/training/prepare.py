"""Tokenize and pack the data of a recipe once, for runs that read them many times."""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from datasets import Dataset, DatasetDict, Features, List, Value, concatenate_datasets, load_from_disk
from transformers import PreTrainedTokenizerBase

from trivium.configuration import TriviumConfig
from trivium.data import fingerprint, load_data
from trivium.data.fingerprints import hash_file
from trivium.data.loading import files_of
from trivium.data.packing import packing_facts
from trivium.data.token_batches import lengths_of
from trivium.recipe import Recipe
from trivium.storage.atomic import sync, write_whole
from trivium.storage.json_object import read_json_object
from trivium.storage.lock import lock_folder
from trivium.storage.manifest import ROOM
from trivium.tasks import TASKS, InputArguments
from trivium.tasks.encode import max_length_of
from trivium.tasks.task import ENCODED_ROWS

logger = logging.getLogger(__name__)

MANIFEST_FILE, FACTS_FILE = "manifest.json", "facts.json"
TOKENIZER = "tokenizer"  # folder of the tokenizer
SPLITS = ("train", "validation")  # Only `trivium evaluate` reads the test split, as text.
PIECE_ROWS = 100 * ENCODED_ROWS  # rows that are prepared at once, and again after an interruption
# Fields of `data` and `inputs` that do not change the prepared rows.
UNUSED_DATA = ("prepared", "streaming", "test", "max_test_samples")
UNUSED_INPUTS = ("max_length", "max_tokens", "buffer_size", "mlm_probability")  # `check_model` compares the length.


@dataclass(frozen=True)
class Prepared:
    """Data that were prepared for a recipe.

    Attributes:
        folder: Their folder.
        manifest: The content of its manifest.
    """

    folder: Path
    manifest: dict[str, Any]

    @property
    def tokenizer(self) -> Path:
        """Return the folder of the tokenizer."""
        return self.folder / TOKENIZER

    @property
    def labels(self) -> dict[str, Any]:
        """Return the labels of a classifier, as `label_facts` does."""
        labels = dict(self.manifest["labels"])
        if "label2id" in labels:
            labels["id2label"] = {index: name for name, index in labels["label2id"].items()}
        return labels

    def load(self) -> DatasetDict:
        """Load the encoded splits, which are mapped from the disk."""
        splits = {}
        for split, facts in self.manifest["splits"].items():
            pieces = [load_from_disk(str(self.folder / split / name)) for name in facts["pieces"]]
            splits[split] = concatenate_datasets(pieces)
        return DatasetDict(splits)

    def check_model(self, config: TriviumConfig, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> None:
        """Check that the data were encoded for a model and its tokenizer.

        Raises:
            ValueError: The maximum length, the labels or the tokenizer differ; the message names the field.
        """
        now = model_facts(config, tokenizer, recipe)
        _refuse_changes(self.folder, self.manifest["model"], now)


def prepare(recipe: Recipe, *, processes: int = 1, overwrite: bool = False) -> dict[str, Any]:
    """Tokenize and pack the training and validation data of a recipe into the folder `data.prepared`.

    The rows are those that training would encode itself, for any number of processes. An interrupted preparation goes
    on: finished pieces of a split are kept, an unfinished one is prepared anew.

    Args:
        recipe: The recipe, with `data.prepared`.
        processes: Number of processes that encode.
        overwrite: Delete data that were prepared in the folder before; other files are never deleted.

    Returns:
        The manifest: fields of the recipe, fingerprints, and counts of each split.

    Raises:
        ValueError: The folder holds other files, finished data, or unfinished data of another recipe.
    """
    from trivium.training.train import load_or_build

    if recipe.data.prepared is None:
        raise ValueError(
            "data.prepared is null, but must name the folder for the prepared data. Set data.prepared=..."
        )
    if processes < 1:
        raise ValueError(f"processes is {processes}, but must be at least 1.")
    folder = Path(recipe.data.prepared)
    found = sorted(path.name for path in folder.glob("*") if path.name != ROOM)
    if found and MANIFEST_FILE not in found:
        raise ValueError(
            f"data.prepared is {folder}, which holds {found[0]} and no prepared data. Choose a new or an empty folder."
        )
    with lock_folder(folder):
        if found and overwrite:
            delete(folder)
        data = load_data(recipe.data, recipe.kind.columns)
        if "train" not in data:
            raise ValueError(f"data has the splits {', '.join(data)}, but no training split. Set data.train.")
        rows_hash = fingerprint(recipe.data, data["train"])
        unfinished = read_unfinished(folder, recipe, rows_hash)
        model, tokenizer = load_or_build(recipe, data["train"], prepared=unfinished)
        config = model.config
        del model
        if unfinished is None:
            manifest = {
                "version": 1,
                "complete": False,
                "recipe": fields_of(recipe),
                "data": rows_hash,
                "files": dict(raw_files(recipe)),
                "model": model_facts(config, tokenizer, recipe),
                "labels": labels_of(config) if "label" in recipe.kind.columns else {},
            }
            # The manifest comes first, so that a folder with an unfinished tokenizer is recognized.
            write_manifest(folder, manifest)
            partial = folder / f"{TOKENIZER}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            tokenizer.save_pretrained(partial)
            partial.rename(folder / TOKENIZER)
        else:
            manifest = unfinished.manifest
            unfinished.check_model(config, tokenizer, recipe)
        manifest["splits"] = {
            split: prepare_split(folder / split, data[split], recipe, tokenizer, config, processes)
            for split in SPLITS
            if split in data
        }
        manifest["complete"] = True
        write_manifest(folder, manifest)
    return manifest


def prepare_split(
    folder: Path,
    rows: Dataset,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    config: TriviumConfig,
    processes: int,
) -> dict[str, Any]:
    """Prepare the pieces of a split that are not finished yet, and return the counts of the split."""
    options = {"rows": rows, "task": recipe.task, "tokenizer": tokenizer, "config": config, "inputs": recipe.inputs}
    first = Dataset.from_dict(encode_group({"start": [0]}, end=min(len(rows), ENCODED_ROWS), **options))
    features = Features({name: _compact(kind) for name, kind in first.features.items()})
    counts: list[dict[str, Any]] = []
    names = []
    for piece, start in enumerate(range(0, len(rows), PIECE_ROWS)):
        target = folder / f"{piece:05d}"
        names.append(target.name)
        if not target.exists():
            partial = target.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            end = min(start + PIECE_ROWS, len(rows))
            began = time.perf_counter()
            # Each element is a group of rows that training encodes at once, so that texts are packed alike.
            encoded = Dataset.from_dict({"start": list(range(start, end, ENCODED_ROWS))}).map(
                encode_group,
                batched=True,
                batch_size=1,
                remove_columns=["start"],
                features=features,
                fn_kwargs={"end": end, **options},
                num_proc=processes if processes > 1 else None,
                cache_file_name=str(partial / "encoded.arrow"),
                new_fingerprint=f"{recipe.task}-{piece}",
                desc=f"Encoding {folder.name}, {start:,} to {end:,} of {len(rows):,} rows, in groups",
            )
            encoded.save_to_disk(partial / "saved")
            facts = {"examples": end - start, "rows": len(encoded), "seconds": time.perf_counter() - began}
            facts["tokens"] = count_tokens(encoded, config)
            if recipe.inputs.packing:
                packing = packing_facts(encoded)
                facts |= {"padding": facts["tokens"] - packing["tokens"], "cuts": packing["cuts"]}
                facts["tokens"] = packing["tokens"]
            write_whole(partial / "saved" / FACTS_FILE, json.dumps(facts) + "\n")
            for path in (partial / "saved").iterdir():
                sync(path)
            (partial / "saved").rename(target)
            shutil.rmtree(partial)
            sync(folder)
        counts.append(read_json_object(target / FACTS_FILE))
    return {"pieces": names, **{name: sum(facts[name] for facts in counts) for name in counts[0]}}


def encode_group(
    batch: dict[str, list[int]],
    rows: Dataset,
    end: int,
    task: str,
    tokenizer: PreTrainedTokenizerBase,
    config: TriviumConfig,
    inputs: InputArguments,
) -> dict[str, list[Any]]:
    """Encode the rows from `batch["start"]`, at most to `end`, that training would encode at once."""
    [start] = batch["start"]
    group = rows[start : min(start + ENCODED_ROWS, end)]
    return dict(TASKS[task].encode(group, tokenizer, config, inputs))


def count_tokens(encoded: Dataset, config: TriviumConfig) -> int:
    """Count the tokens of encoded rows, with the padding of packed ones."""
    columns = ["input_ids", "labels"] if config.is_encoder_decoder else ["input_ids"]
    return sum(int(lengths_of(encoded, column).sum()) for column in columns)


def encoding_rates(
    data: DatasetDict, encoded: DatasetDict, config: TriviumConfig, began: float
) -> dict[str, float] | None:
    """Return rows and tokens per second of an encoding that has just ended, or None if it came from the cache.

    Args:
        data: The splits before encoding.
        encoded: The encoded splits.
        config: Configuration of the model.
        began: Value of `time.time()` before encoding.
    """
    seconds = time.time() - began
    files = [Path(file["filename"]) for rows in encoded.values() for file in rows.cache_files]
    if any(file.stat().st_mtime < began for file in files):
        return None
    rows, tokens = map(sum, zip(*((len(data[n]), count_tokens(encoded[n], config)) for n in encoded), strict=True))
    return {"rows_per_second": rows / seconds, "tokens_per_second": tokens / seconds}


def _compact(kind: Any) -> Any:
    """Return int32 for a list of int64: tokens, positions and labels are smaller than that."""
    return List(Value("int32")) if kind == List(Value("int64")) else kind


# --- The manifest ----------------------------------------------------------------------------------------------------


def load_prepared(recipe: Recipe) -> Prepared | None:
    """Return the prepared data of a recipe, or None without `data.prepared`.

    Raises:
        ValueError: They are missing or unfinished, or were prepared with other fields or from other files.
    """
    if recipe.data.prepared is None:
        return None
    folder = Path(recipe.data.prepared)
    path = folder / MANIFEST_FILE
    if not path.is_file() or not (manifest := read_json_object(path)).get("complete"):
        state = "is unfinished" if path.is_file() else "holds no prepared data"
        raise ValueError(
            f"data.prepared is {folder}, which {state}. Run `trivium prepare` with the same recipe and overrides, or "
            "set data.prepared=null."
        )
    _refuse_changes(folder, manifest["recipe"], fields_of(recipe))
    for file, (size, modified, digest) in manifest["files"].items():
        if not Path(file).is_file():
            continue  # The raw data need not be at hand.
        stat = Path(file).stat()
        if stat.st_size != size or (stat.st_mtime_ns != modified and hash_file(file) != digest):
            raise ValueError(
                f"{file} has changed since it was prepared in {folder}. Prepare it again (`trivium prepare ... "
                "--overwrite`), or restore the file."
            )
    return Prepared(folder, manifest)


def read_unfinished(folder: Path, recipe: Recipe, rows_hash: str) -> Prepared | None:
    """Return the unfinished data in a folder, or None if there are no encoded rows.

    Raises:
        ValueError: They are finished, or belong to another recipe or to other data.
    """
    if not (folder / MANIFEST_FILE).is_file():
        return None
    manifest = read_json_object(folder / MANIFEST_FILE)
    if manifest["complete"]:
        raise ValueError(
            f"data.prepared is {folder}, which already holds prepared data. Train with it, overwrite it "
            "(--overwrite, overwrite=True), or choose another folder."
        )
    now = {**fields_of(recipe), "the fingerprint of the training data": rows_hash}
    _refuse_changes(folder, {**manifest["recipe"], "the fingerprint of the training data": manifest["data"]}, now)
    if not (folder / TOKENIZER).is_dir():
        return None  # Interrupted before any row was encoded, or while the data were deleted.
    logger.warning("The preparation in %s was interrupted, and goes on.", folder)
    return Prepared(folder, manifest)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest atomically."""
    write_whole(folder / MANIFEST_FILE, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


def delete(folder: Path) -> None:
    """Delete prepared data: rows, tokenizer, manifest, so that an interrupted deletion leaves an unfinished folder."""
    write_manifest(folder, {**read_json_object(folder / MANIFEST_FILE), "complete": False})
    for name in (*SPLITS, TOKENIZER, f"{TOKENIZER}.partial"):
        if (folder / name).exists():
            shutil.rmtree(folder / name)
    (folder / MANIFEST_FILE).unlink()


def fields_of(recipe: Recipe) -> dict[str, Any]:
    """Return the fields of a recipe that determine the prepared rows, keyed by dotted name."""
    data = {name: value for name, value in vars(recipe.data).items() if name not in UNUSED_DATA}
    inputs = {name: value for name, value in vars(recipe.inputs).items() if name not in UNUSED_INPUTS}
    sections = {"data": data, "tokenizer": vars(recipe.tokenizer), "inputs": inputs}
    fields = {f"{section}.{name}": value for section, values in sections.items() for name, value in values.items()}
    return {"task": recipe.task, "init_from": recipe.init_from, **fields}


def model_facts(config: TriviumConfig, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> dict[str, Any]:
    """Return what encoding takes from the model and its tokenizer, keyed by the fields of the recipe that set it."""
    facts: dict[str, Any] = {"inputs.max_length (null: the model's)": max_length_of(config, recipe.inputs)}
    if "label" in recipe.kind.columns:
        facts["the labels"] = labels_of(config)
    return {**facts, "the fingerprint of the tokenizer": tokenizer_fingerprint(tokenizer)}


def labels_of(config: TriviumConfig) -> dict[str, Any]:
    """Return the labels of a classifier as fields of its configuration."""
    labels = {"num_labels": 1} if config.problem_type == "regression" else {"label2id": dict(config.label2id)}
    return {"problem_type": config.problem_type, **labels}


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash what determines the encoding of a text: vocabulary, rules and special tokens."""
    digest = hashlib.sha256(json.dumps([tokenizer("")["input_ids"], tokenizer.pad_token_id]).encode())
    with TemporaryDirectory() as temporary:
        tokenizer.save_pretrained(temporary)
        for path in sorted(Path(temporary).glob("*tokenizer.json")):
            content = read_json_object(path)
            # The last call of the tokenizer sets these two, and the next call replaces them.
            digest.update(json.dumps({**content, "padding": None, "truncation": None}, sort_keys=True).encode())
    return digest.hexdigest()


def raw_files(recipe: Recipe) -> Iterator[tuple[str, list[Any]]]:
    """Yield each local file of the training and validation data with its size, its time of change and its hash."""
    for split in SPLITS:
        path = getattr(recipe.data, split)
        if recipe.data.name is None and path is not None:
            for file in files_of(path, recipe.data, recipe.kind.columns):
                stat = Path(file).stat()
                yield file, [stat.st_size, stat.st_mtime_ns, hash_file(file)]


def _refuse_changes(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise a ValueError that names the first field that has changed since the data were prepared."""
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            was, is_now = (json.dumps(facts.get(name), ensure_ascii=False) for facts in (before, now))
            raise ValueError(
                f"The data in {folder} were prepared with another recipe: {name} was {was}, is now {is_now}. Revert "
                "the change, or prepare the data again (`trivium prepare ... --overwrite`, or another data.prepared)."
            )
