"""Report on a recipe's data as training would see it: rows, tokens, dropped rows, characters, overlap."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from trivium.configuration import TriviumConfig
from trivium.data.arguments import DataArguments
from trivium.data.directions import split_directions
from trivium.data.examples import find_control, placed_examples
from trivium.data.loading import file_arguments, load_and_count
from trivium.data.structured import as_text
from trivium.recipe import Recipe
from trivium.tasks.encode import max_length_of
from trivium.tasks.task import ENCODED_ROWS
from trivium.training.initial_model import load_or_build

MAX_ROWS = 100_000  # default number of rows to examine per split
SAMPLES = 5

Row = Mapping[str, Any]


@dataclass
class SplitReport:
    """Statistics of one split.

    Attributes:
        rows: Number of rows after filtering; None for a stream.
        examined: Number of rows that were examined to compute the statistics below.
        dropped: Number of rows that the filters dropped, by reason; empty for a stream.
        lengths: Number of tokens of each text, by column, before truncation.
        truncated: Number of texts that are longer than the limit, by column.
        unknown: Number of occurrences of each character that the tokenizer does not know.
        unseen: Number of occurrences of each character that does not occur in the examined training rows.
        control: Number of rows with control characters.
        first_control: Location of the first control character, or None.
        labels: Number of rows by label, for tasks with labels.
    """

    rows: int | None
    examined: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    lengths: dict[str, list[int]] = field(default_factory=dict)
    truncated: dict[str, int] = field(default_factory=dict)
    unknown: Counter[str] = field(default_factory=Counter)
    unseen: Counter[str] = field(default_factory=Counter)
    control: int = 0
    first_control: str | None = None
    labels: Counter[str] = field(default_factory=Counter)


@dataclass
class DataReport:
    """Report on the data of a recipe.

    Attributes:
        splits: Report on each split.
        overlap: Overlap of each pair of splits: the number of examined rows of the second split that also occur in the
            first, as whole rows ("row") and by the first column (such as "source").
        samples: Five training rows, evenly spaced among the examined rows.
        max_length: Maximum number of tokens per text; longer texts are truncated. None for packed texts, which are not
            truncated.
        vocab_size: Size of the (source) vocabulary.
    """

    splits: dict[str, SplitReport]
    overlap: dict[tuple[str, str, str], int]
    samples: list[dict[str, Any]]
    max_length: int | None
    vocab_size: int


def report_data(recipe: Recipe, *, max_rows: int = MAX_ROWS) -> DataReport:
    """Load a recipe's data, train or load its tokenizer, and compute the report, without writing any files.

    Args:
        recipe: The recipe; `data.prepared` is ignored, because prepared data contains no texts.
        max_rows: Maximum number of rows to examine in each split, taken from its start.

    Raises:
        ValueError: The data does not match the recipe, or there is no training split.
    """
    columns = recipe.kind.columns
    data, dropped = load_and_count(recipe.data, columns)
    if "train" not in data:
        raise ValueError(f"data has the splits {', '.join(data)}, but no training split. Set data.train.")
    model, tokenizer = load_or_build(recipe, data["train"])
    config = model.config
    del model
    texts = [name for name in columns if name not in ("label", "tags", "answers")]
    splits, characters, hashes = {}, {}, {}
    samples: list[dict[str, Any]] = []
    for split, split_rows in data.items():
        is_stream = not hasattr(split_rows, "__len__")
        report = SplitReport(None if is_stream else len(split_rows), dropped=dropped[split])
        splits[split], hashes[split] = report, _Hashes()
        characters[split] = Counter[str]()
        kept: list[Row] = []
        for rows in _batches(islice(split_rows, max_rows)):
            _count(report, rows, texts, tokenizer, config, recipe)
            hashes[split].add(rows, columns)
            for row in rows:
                for name in texts:
                    characters[split].update(as_text(row[name]))
            kept += rows if split == "train" else []
        if kept:
            count = min(SAMPLES, len(kept))
            samples = [dict(kept[i * len(kept) // count]) for i in range(count)]
        if report.control:
            report.first_control = _first_control(recipe.data, split, columns)
    for split, report in splits.items():
        report.unknown = _unknown(characters[split], tokenizer)
        report.unseen = Counter({c: n for c, n in characters[split].items() if c not in characters["train"]})
    overlap = {
        (first, second, kind): hashes[second].count(kind, hashes[first])
        for first, second in combinations(splits, 2)
        for kind in ("row", columns[0])
    }
    limit = None if recipe.inputs.packing else max_length_of(config, recipe.inputs)
    return DataReport(splits, overlap, samples, limit, len(tokenizer))


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    rows = iter(rows)
    while batch := list(islice(rows, ENCODED_ROWS)):
        yield batch


def _count(
    report: SplitReport,
    rows: Sequence[Row],
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    config: TriviumConfig,
    recipe: Recipe,
) -> None:
    """Add the statistics of a batch of rows to the report of their split."""
    report.examined += len(rows)
    report.control += sum(find_control(row) is not None for row in rows)
    for name in texts:
        argument = "text_target" if name == recipe.kind.target else "text"
        values = [as_text(row[name]) for row in rows]
        lengths = [len(ids) for ids in tokenizer(**{argument: values}, verbose=False)["input_ids"]]
        report.lengths.setdefault(name, []).extend(lengths)
        too_long = 0 if recipe.inputs.packing else sum(n > max_length_of(config, recipe.inputs) for n in lengths)
        report.truncated[name] = report.truncated.get(name, 0) + too_long
    if "label" in recipe.kind.columns:
        for row in rows:
            report.labels.update(map(str, row["label"] if isinstance(row["label"], list) else [row["label"]]))
    if "tags" in recipe.kind.columns:
        for row in rows:
            report.labels.update(row["tags"])


class _Hashes:
    """Hashes of whole rows and of their first column."""

    def __init__(self) -> None:
        self.by_kind: dict[str, list[bytes]] = {}

    def add(self, rows: Sequence[Row], columns: Sequence[str]) -> None:
        for row in rows:
            for kind, value in (("row", [row[name] for name in columns]), (columns[0], row[columns[0]])):
                digest = hashlib.blake2b(repr(value).encode("utf-8", "surrogatepass"), digest_size=16).digest()
                self.by_kind.setdefault(kind, []).append(digest)

    def count(self, kind: str, other: "_Hashes") -> int:
        """Return the number of rows that are equal to a row of `other`."""
        found = set(other.by_kind.get(kind, ()))
        return sum(digest in found for digest in self.by_kind.get(kind, ()))


def _unknown(characters: Counter[str], tokenizer: PreTrainedTokenizerBase) -> Counter[str]:
    """Return the counts of the characters that are in none of the tokenizer's vocabularies."""
    sides = {id(side): side for side in (getattr(tokenizer, name, tokenizer) for name in ("source", "target"))}
    unknown = Counter[str]()
    for character, count in characters.items():
        ids = [side(character, add_special_tokens=False)["input_ids"] for side in sides.values()]
        if all(tokenizer.unk_token_id in tokens for tokens in ids):
            unknown[character] = count
    return unknown


def _first_control(args: DataArguments, split: str, columns: Sequence[str]) -> str | None:
    """Return the location of a split's first control character, if the split is a local file."""
    for part in split_directions(args):
        path = getattr(part, split)
        if part.name is None and path is not None:
            for place, example in placed_examples(**file_arguments(path, part, columns), allow_blank=True):
                if found := find_control(example):
                    return f"{place}: {found}"
    return None
