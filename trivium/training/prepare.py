"""Tokenize and pack the data of a recipe in advance, for repeated use."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from trivium.configuration import TriviumConfig
from trivium.data import fingerprint, load_data
from trivium.data.packing import packing_facts
from trivium.data.token_batches import tokens_of
from trivium.recipe import Recipe
from trivium.storage.atomic import sync, write_whole
from trivium.storage.json_object import read_json_object
from trivium.storage.lock import lock_folder
from trivium.storage.manifest import ROOM
from trivium.tasks import TASKS, InputArguments
from trivium.tasks.task import ENCODED_ROWS
from trivium.training.initial_model import load_or_build
from trivium.training.prepared import (
    MANIFEST_FILE,
    SPLITS,
    TOKENIZER,
    fields_of,
    labels_of,
    model_facts,
    raw_files,
    read_unfinished,
    write_manifest,
)

FACTS_FILE = "facts.json"  # counts per piece
PIECE_ROWS = 100 * ENCODED_ROWS  # rows per piece, the unit of resumption


def prepare(recipe: Recipe, *, processes: int = 1, overwrite: bool = False) -> dict[str, Any]:
    """Tokenize and pack the training and validation data of a recipe into the folder `data.prepared`.

    The rows are identical to those that training would encode itself, for any number of processes. An interrupted
    preparation is resumed: finished pieces of a split are kept, and unfinished pieces are prepared again.

    Args:
        recipe: The recipe, with `data.prepared`.
        processes: Number of encoding processes.
        overwrite: Delete data prepared in the folder earlier; other files are never deleted.

    Returns:
        The manifest: fields of the recipe, fingerprints, and counts of each split.

    Raises:
        ValueError: The folder contains other files, finished data, or unfinished data of another recipe.
    """
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
            manifest = start_folder(folder, recipe, rows_hash, tokenizer, config)
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


def start_folder(
    folder: Path, recipe: Recipe, rows_hash: str, tokenizer: PreTrainedTokenizerBase, config: TriviumConfig
) -> dict[str, Any]:
    """Write the manifest and the tokenizer of a new preparation, and return the manifest."""
    manifest = {
        "version": 1,
        "complete": False,
        "recipe": fields_of(recipe),
        "data": rows_hash,
        "files": dict(raw_files(recipe)),
        "model": model_facts(config, tokenizer, recipe),
        "labels": labels_of(config) if recipe.kind.has_labels else {},
    }
    # The manifest comes first, so that a folder with an unfinished tokenizer is recognized.
    write_manifest(folder, manifest)
    partial = folder / f"{TOKENIZER}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    tokenizer.save_pretrained(partial)
    partial.rename(folder / TOKENIZER)
    return manifest


def prepare_split(
    folder: Path,
    rows: Dataset,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    config: TriviumConfig,
    processes: int,
) -> dict[str, Any]:
    """Prepare the missing pieces of a split, and return its counts."""
    options = {"rows": rows, "task": recipe.task, "tokenizer": tokenizer, "config": config, "inputs": recipe.inputs}
    first = Dataset.from_dict(encode_group({"start": [0]}, end=min(len(rows), ENCODED_ROWS), **options))
    features = Features({name: _compact(kind) for name, kind in first.features.items()})
    counts: list[dict[str, Any]] = []
    names = []
    for piece, start in enumerate(range(0, len(rows), PIECE_ROWS)):
        target = folder / f"{piece:05d}"
        names.append(target.name)
        if not target.exists():
            prepare_piece(target, range(start, min(start + PIECE_ROWS, len(rows))), features, options, processes)
        counts.append(read_json_object(target / FACTS_FILE))
    return {"pieces": names, **{name: sum(facts[name] for facts in counts) for name in counts[0]}}


def prepare_piece(target: Path, span: range, features: Features, options: dict[str, Any], processes: int) -> None:
    """Encode the rows of a span, and save them with their counts in the folder `target`.

    Args:
        target: Folder of the piece, which appears once it is complete.
        span: Indices of the rows.
        features: Types of the encoded columns.
        options: Arguments of `encode_group`, except `end`.
        processes: Number of encoding processes.
    """
    folder, inputs = target.parent, options["inputs"]
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    began = time.perf_counter()
    # Each element is a group of rows that training would encode at once, so that packing gives the same rows.
    encoded = Dataset.from_dict({"start": list(span[::ENCODED_ROWS])}).map(
        encode_group,
        batched=True,
        batch_size=1,
        remove_columns=["start"],
        features=features,
        fn_kwargs={"end": span.stop, **options},
        num_proc=processes if processes > 1 else None,
        cache_file_name=str(partial / "encoded.arrow"),
        new_fingerprint=f"{options['task']}-{target.name}",
        desc=f"Encoding {folder.name}, {span.start:,} to {span.stop:,} of {len(options['rows']):,} rows, in groups",
    )
    encoded.save_to_disk(partial / "saved")
    facts = {"examples": len(span), "rows": len(encoded), "seconds": time.perf_counter() - began}
    facts["tokens"] = tokens_of(encoded, options["config"])
    if inputs.packing:
        packing = packing_facts(encoded)
        facts |= {"padding": facts["tokens"] - packing["tokens"], "cuts": packing["cuts"]}
        facts["tokens"] = packing["tokens"]
    write_whole(partial / "saved" / FACTS_FILE, json.dumps(facts) + "\n")
    for path in (partial / "saved").iterdir():
        sync(path)
    (partial / "saved").rename(target)
    shutil.rmtree(partial)
    sync(folder)


def encode_group(
    batch: dict[str, list[int]],
    rows: Dataset,
    end: int,
    task: str,
    tokenizer: PreTrainedTokenizerBase,
    config: TriviumConfig,
    inputs: InputArguments,
) -> dict[str, list[Any]]:
    """Encode a group of rows, from `batch["start"]` up to `end`, exactly as training would."""
    [start] = batch["start"]
    group = rows[start : min(start + ENCODED_ROWS, end)]
    return dict(TASKS[task].encode(group, tokenizer, config, inputs))


def _compact(kind: Any) -> Any:
    """Replace int64 with int32 in a list feature; int32 suffices for tokens, positions and labels."""
    return List(Value("int32")) if kind == List(Value("int64")) else kind


def delete(folder: Path) -> None:
    """Delete rows, tokenizer and manifest, in this order: an interrupted deletion then looks like unfinished data."""
    write_manifest(folder, {**read_json_object(folder / MANIFEST_FILE), "complete": False})
    for name in (*SPLITS, TOKENIZER, f"{TOKENIZER}.partial"):
        if (folder / name).exists():
            shutil.rmtree(folder / name)
    (folder / MANIFEST_FILE).unlink()
