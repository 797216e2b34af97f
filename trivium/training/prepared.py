"""Read and write the manifest of data prepared by `trivium prepare`, and check it against a recipe and a model."""

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from datasets import DatasetDict, concatenate_datasets, load_from_disk
from transformers import PreTrainedTokenizerBase

from trivium.configuration import TriviumConfig
from trivium.data.arguments import sources_of
from trivium.data.directions import split_directions
from trivium.data.fingerprints import LATER_FIELDS, hash_file, later_fields
from trivium.data.loading import files_of
from trivium.recipe import Recipe
from trivium.storage.atomic import write_whole
from trivium.storage.json_object import describe_changes, read_json_object
from trivium.tasks.encode import max_length_of

logger = logging.getLogger(__name__)

MANIFEST_FILE = "manifest.json"
TOKENIZER = "tokenizer"  # folder name of the tokenizer
SPLITS = ("train", "validation")  # Only `trivium evaluate` reads the test split, as text.
# Fields of `data` and `inputs` that do not change the prepared rows.
UNUSED_DATA = ("prepared", "streaming", "test", "max_test_samples")
UNUSED_INPUTS = (
    "max_length",
    "max_tokens",
    "buffer_size",
    "mlm_probability",
    "noise",
    "noise_density",
    "mean_span",
)  # `check_model` compares the length.


@dataclass(frozen=True)
class Prepared:
    """Prepared data of a recipe.

    Attributes:
        folder: Folder that contains the data.
        manifest: The content of the folder's manifest.
    """

    folder: Path
    manifest: dict[str, Any]

    @property
    def tokenizer(self) -> Path:
        """Return the folder of the saved tokenizer."""
        return self.folder / TOKENIZER

    @property
    def labels(self) -> dict[str, Any]:
        """Return the labels of a classifier, as `label_facts` does."""
        labels = dict(self.manifest["labels"])
        if "label2id" in labels:
            labels["id2label"] = {index: name for name, index in labels["label2id"].items()}
        return labels

    def load(self) -> DatasetDict:
        """Load the encoded splits, memory-mapped."""
        splits = {}
        for split, facts in self.manifest["splits"].items():
            pieces = [load_from_disk(str(self.folder / split / name)) for name in facts["pieces"]]
            splits[split] = concatenate_datasets(pieces)
        return DatasetDict(splits)

    def check_model(self, config: TriviumConfig, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> None:
        """Check that the data was encoded for a model and its tokenizer.

        Raises:
            ValueError: The maximum length, the labels or the tokenizer differ; the message names the field.
        """
        now = model_facts(config, tokenizer, recipe)
        _refuse_changes(self.folder, self.manifest["model"], now)


def load_prepared(folder: Path, recipe: Recipe) -> Prepared:
    """Open the prepared data in a folder.

    Raises:
        ValueError: The data is missing or unfinished, or was prepared with different fields or from different files.
    """
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
            continue  # The raw data may be absent.
        stat = Path(file).stat()
        if stat.st_size != size or (stat.st_mtime_ns != modified and hash_file(file) != digest):
            raise ValueError(
                f"{file} has changed since it was prepared in {folder}. Prepare it again (`trivium prepare ... "
                "--overwrite`), or restore the file."
            )
    return Prepared(folder, manifest)


def read_unfinished(folder: Path, recipe: Recipe, rows_hash: str) -> Prepared | None:
    """Open the unfinished prepared data in a folder; return None if no rows were encoded.

    Raises:
        ValueError: The data is finished, or belongs to a different recipe or different raw data.
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
        return None  # The process was interrupted before any row was encoded, or during a deletion.
    logger.warning("The preparation in %s was interrupted. Resuming it.", folder)
    return Prepared(folder, manifest)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest atomically."""
    write_whole(folder / MANIFEST_FILE, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


def fields_of(recipe: Recipe) -> dict[str, Any]:
    """Return the fields of a recipe that determine the prepared rows, keyed by dotted name."""
    first_fields = {name: value for name, value in asdict(recipe.data).items() if name not in LATER_FIELDS}
    data = {name: value for name, value in first_fields.items() if name not in UNUSED_DATA}
    data |= later_fields(recipe.data)  # include only fields that are set, so that earlier manifests remain valid
    inputs = {name: value for name, value in vars(recipe.inputs).items() if name not in UNUSED_INPUTS}
    tokenizer = {name: value for name, value in vars(recipe.tokenizer).items() if name != "special_tokens" or value}
    sections = {"data": data, "tokenizer": tokenizer, "inputs": inputs}
    fields = {f"{section}.{name}": value for section, values in sections.items() for name, value in values.items()}
    if recipe.distillation.teacher is not None:  # Its tokenizer encodes the rows.
        fields["distillation.teacher"] = recipe.distillation.teacher
    return {"task": recipe.task, "init_from": recipe.init_from, **fields}


def model_facts(config: TriviumConfig, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> dict[str, Any]:
    """Return the model and tokenizer values that affect encoding, keyed by the recipe fields that set them."""
    facts: dict[str, Any] = {"inputs.max_length (null: the model's)": max_length_of(config, recipe.inputs)}
    if recipe.kind.has_labels:
        facts["the labels"] = labels_of(config)
    return {**facts, "the fingerprint of the tokenizer": tokenizer_fingerprint(tokenizer)}


def labels_of(config: TriviumConfig) -> dict[str, Any]:
    """Return the labels of a classifier as fields of its configuration."""
    labels = {"num_labels": 1} if config.problem_type == "regression" else {"label2id": dict(config.label2id)}
    return {"problem_type": config.problem_type, **labels}


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash everything that determines the encoding of a text: vocabulary, rules and special tokens."""
    digest = hashlib.sha256(json.dumps([tokenizer("")["input_ids"], tokenizer.pad_token_id]).encode())
    with TemporaryDirectory() as temporary:
        tokenizer.save_pretrained(temporary)
        for path in sorted(Path(temporary).glob("*tokenizer.json")):
            content = read_json_object(path)
            # Calling the tokenizer overwrites these two fields.
            digest.update(json.dumps({**content, "padding": None, "truncation": None}, sort_keys=True).encode())
    return digest.hexdigest()


def raw_files(recipe: Recipe) -> Iterator[tuple[str, list[Any]]]:
    """Yield path, size, modification time and hash of each local training and validation file."""
    for split in SPLITS:
        sources = sources_of(recipe.data) if split == "train" else [recipe.data]
        for args in chain.from_iterable(map(split_directions, sources)):
            path = getattr(args, split)
            if args.name is None and path is not None:
                for file in files_of(path, args, recipe.kind.columns):
                    stat = Path(file).stat()
                    yield file, [stat.st_size, stat.st_mtime_ns, hash_file(file)]


def _refuse_changes(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise a ValueError that names the first field that has changed since the data was prepared."""
    for change in describe_changes(before, now).values():
        raise ValueError(
            f"The data in {folder} were prepared with another recipe: {change}. Revert the change, or prepare the "
            "data again (`trivium prepare ... --overwrite`, or another data.prepared)."
        )
