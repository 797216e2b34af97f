"""Write pairs of given and generated texts to a file, for back-translation and sequence-level distillation."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm.auto import tqdm
from transformers import set_seed

from trivium.data.columns import TEXT
from trivium.data.compressed import find_file
from trivium.data.examples import placed_examples
from trivium.data.readers import FileFormat
from trivium.storage.atomic import sync, write_whole
from trivium.storage.checksums import checksum
from trivium.storage.json_object import read_json_object

CHUNK = 1024  # texts that are translated together, and written at once
PAIRS, STATE, LOCK = "pairs.jsonl", "state.json", "lock"  # files of an unfinished output


@dataclass
class PairCounts:
    """Counts of an output, finished or not.

    Attributes:
        texts: Texts that have been read; blank ones are not counted.
        pairs: Pairs that have been written.
        size: Size of these pairs in bytes.
    """

    texts: int = 0
    pairs: int = 0
    size: int = 0


def read_texts(file: Path, column: str = "text") -> Iterator[str]:
    """Yield the texts of a file that are not blank.

    Args:
        file: A file with one text per line, or one of the other formats of `data.train`; it may be compressed.
        column: Column of the texts, if the format has columns.
    """
    rows = placed_examples((str(file),), {TEXT[0]: column}, False, FileFormat((column,)), allow_blank=True)
    return (row["text"] for _, row in rows if row["text"].strip())


def write_pairs(
    translate: Callable[[list[str]], Iterable[str]],
    texts_file: Path,
    output: Path,
    *,
    given: str,
    generated: str,
    column: str = "text",
    tag: str = "",
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    show_progress: bool = False,
) -> PairCounts:
    """Translate all texts of a file, and write JSON lines with each text and its translation.

    The output appears under its name once it is complete. Until then, `OUTPUT.partial` has the pairs so far; after an
    interruption, the same call continues after the last complete chunk, and the output is the same. Texts without a
    translation are left out.

    Args:
        translate: Function that yields one translation for each text.
        texts_file: File of texts, as in `read_texts`, which is read lazily; a compression suffix may be omitted.
        output: The file to write, which ends in `.jsonl` and does not exist.
        given: Column for the given texts, such as `de`.
        generated: Column for the generated texts, such as `en`.
        column: Column to read, as in `read_texts`.
        tag: Text to put before each generated text.
        settings: Settings that determine the translations, such as the model; they must not change in between.
        seed: Seed for sampling; each chunk has a seed of its own, which depends on it.
        show_progress: Whether to show a progress bar.

    Returns:
        The numbers of texts and pairs.

    Raises:
        FileNotFoundError: There is no file of texts.
        ValueError: The output exists or does not end in `.jsonl`, the columns are the same, there are no texts, or no
            translations, settings have changed since the interruption, or another process writes the same output.
    """
    if output.suffix != ".jsonl":
        raise ValueError(f"output is {output}, but must end in .jsonl, because it has one JSON object per line.")
    if given == generated:
        raise ValueError(f"Both columns are {given!r}, but the two sides of a pair must have different columns.")
    _check_new(output)
    found = find_file(str(texts_file))
    if found is None:
        raise FileNotFoundError(f"The file of texts is {texts_file}, but there is no such file.")
    texts_file = Path(found)
    # Reading all texts first finds errors now instead of after hours.
    total = sum(1 for _ in read_texts(texts_file, column))
    if not total:
        raise ValueError(f"{texts_file}: there are no texts in this file.")
    columns = {"given": given, "generated": generated, "column": column, "tag": tag, "seed": seed}
    settings = {**(settings or {}), "texts": checksum(texts_file), **columns}
    partial = output.with_name(f"{output.name}.partial")
    with _locked(partial):
        counts = _resume(partial, settings)
        with (
            (partial / PAIRS).open("ab") as file,
            tqdm(
                desc=output.name, total=total, initial=counts.texts, unit=" texts", disable=not show_progress
            ) as progress,
        ):
            file.truncate(counts.size)  # delete what was written after the last complete chunk
            texts = islice(read_texts(texts_file, column), counts.texts, None)
            while chunk := list(islice(texts, CHUNK)):
                set_seed(seed + counts.texts // CHUNK)
                for text, translation in zip(chunk, translate(chunk), strict=True):
                    if translation.strip():
                        row = {generated: tag + translation, given: text}
                        counts.size += file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                        counts.pairs += 1
                counts.texts += len(chunk)
                file.flush()
                sync(partial / PAIRS)
                write_whole(partial / STATE, json.dumps({"settings": settings, "counts": asdict(counts)}) + "\n")
                progress.update(len(chunk))
        if counts.pairs:
            _check_new(output)
            (partial / PAIRS).rename(output)
    shutil.rmtree(partial)
    if not counts.pairs:
        raise ValueError(f"{texts_file}: the model has no translation for any of the {counts.texts:,} texts.")
    return counts


def _check_new(output: Path) -> None:
    if output.exists():
        raise ValueError(f"output is {output}, which exists and is not overwritten. Choose another name.")


def _resume(partial: Path, settings: Mapping[str, Any]) -> PairCounts:
    """Return the counts of an unfinished output, or zeros if nothing has been written.

    Raises:
        ValueError: The settings differ; the message names those that do.
    """
    if not (partial / STATE).is_file():
        return PairCounts()
    state = read_json_object(partial / STATE)
    if changes := [
        f"{name} was {state['settings'].get(name)!r}, is now {settings.get(name)!r}"
        for name in {**state["settings"], **settings}
        if state["settings"].get(name) != settings.get(name)
    ]:
        raise ValueError(
            f"{partial} cannot be resumed with changed settings: {'; '.join(changes)}. Revert the change, or delete "
            "this folder to start again."
        )
    return PairCounts(**state["counts"])


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """Hold the lock of an unfinished output; its folder is created if necessary, and deleted if it has no pairs."""
    partial.mkdir(parents=True, exist_ok=True)
    lock = FileLock(partial / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"{partial} is in use by another process. Wait until it ends, or choose another output."
        ) from None
    try:
        yield
    finally:
        if not (partial / STATE).is_file():  # not even the first chunk is complete
            shutil.rmtree(partial)
        lock.release()
