"""Filter training data: empty texts, length ratios, identical sides, unexpected scripts and duplicates.

Every filter drops whole rows, which are counted by reason. A row is counted once, under the first reason that applies
in the order of `REASONS`.
"""

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import regex
from datasets import Dataset, Features, IterableDataset, Value

REASONS = ("empty", "length ratio", "identical sides", "script", "duplicate")
WORDS = re.compile(r"\w+|[^\w\s]")  # Each punctuation mark counts as a word.
# Letters shared by several scripts, such as the Japanese prolonged sound mark, belong to no single script.
LETTER = regex.compile(r"(?![\p{Script=Common}\p{Script=Inherited}])\p{L}")
SCRIPT_NAME = re.compile(r"[A-Za-z][A-Za-z_]*")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Filters:
    """Filters that apply to the rows of a split.

    Attributes:
        columns: Columns of the rows.
        drop_empty: Drop rows with an empty text or side.
        max_ratio: Maximum ratio of the word counts of the two sides; None for no limit.
        drop_identical: Drop pairs whose sides are equal, apart from surrounding spaces.
        scripts: Names of the expected Unicode scripts, by column. A row is dropped if less than half of the letters of
            a column are in these scripts; a text without letters is kept.
        drop_duplicates: Drop all but the first of equal rows.
    """

    columns: tuple[str, ...]
    drop_empty: bool = False
    max_ratio: float | None = None
    drop_identical: bool = False
    scripts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    drop_duplicates: bool = False

    @property
    def is_active(self) -> bool:
        """Return True if any filter is set."""
        by_content = self.drop_empty or self.max_ratio is not None or self.drop_identical
        return bool(by_content or self.scripts or self.drop_duplicates)

    def reason(self, row: Mapping[str, Any]) -> str | None:
        """Return the reason to drop a row, or None to keep it; duplicates are not checked."""
        texts = {name: row[name] for name in self.columns if isinstance(row[name], str) and name != "label"}
        if (self.drop_empty or self.max_ratio is not None) and not all(text.strip() for text in texts.values()):
            return "empty"
        if self.max_ratio is not None:
            shorter, longer = sorted(len(WORDS.findall(text)) for text in texts.values())
            if not 0 < longer <= self.max_ratio * shorter:
                return "length ratio"
        if self.drop_identical and texts["source"].strip() == texts["target"].strip():
            return "identical sides"
        if any(not is_in_scripts(texts[name], scripts) for name, scripts in self.scripts.items()):
            return "script"
        return None


def is_in_scripts(text: str, scripts: Sequence[str]) -> bool:
    """Return True if a text has no letters, or at least half of them are in one of `scripts`."""
    letters = "".join(LETTER.findall(text))
    return 2 * len(_pattern(tuple(scripts)).findall(letters)) >= len(letters)


def _pattern(scripts: tuple[str, ...]) -> Any:
    return regex.compile("[{}]".format("".join(rf"\p{{Script={name}}}" for name in scripts)))


def check_scripts(name: str, scripts: Sequence[str]) -> None:
    """Raise an error for names that are not Unicode scripts.

    Raises:
        ValueError: The message names the field, `name`, and the script.
    """
    for script in scripts:
        try:
            is_known = SCRIPT_NAME.fullmatch(script) is not None and _pattern((script,)) is not None
        except regex.error:
            is_known = False
        if not is_known:
            raise ValueError(
                f"{name} has {script!r}, but may contain only names of Unicode scripts, such as Latin, Cyrillic, Han, "
                "Hiragana, Katakana, Hangul, Arabic or Devanagari."
            )
    if not scripts:
        raise ValueError(f"{name} is empty, but must name at least one Unicode script, or be null.")


class _Reasons:
    """Batched function that finds the reason to drop each row; it stores seen rows to detect duplicates."""

    def __init__(self, filters: Filters) -> None:
        self.filters = filters
        self.seen: set[bytes] = set()

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, list[str | None]]:
        return {"reason": list(self._reasons(batch))}

    def _reasons(self, batch: Mapping[str, list[Any]]) -> Iterator[str | None]:
        for cells in zip(*(batch[name] for name in self.filters.columns), strict=True):
            reason = self.filters.reason(dict(zip(self.filters.columns, cells, strict=True)))
            if reason is None and self.filters.drop_duplicates:
                digest = hashlib.blake2b(repr(cells).encode("utf-8", "surrogatepass"), digest_size=16).digest()
                if digest in self.seen:
                    reason = "duplicate"
                self.seen.add(digest)
            yield reason


def filter_rows(
    rows: Dataset | IterableDataset, filters: Filters, name: str
) -> tuple[Dataset | IterableDataset, Counter[str]]:
    """Drop the rows that match a filter, and count and log them by reason.

    Args:
        rows: The rows of a split.
        filters: The filters, without `drop_duplicates` for a stream.
        name: Name of the data in messages, such as `data.train`.

    Returns:
        The remaining rows, and the number of dropped rows by reason, which is unknown for a stream.

    Raises:
        ValueError: No row remains.
    """
    if not filters.is_active:
        return rows, Counter()
    if isinstance(rows, IterableDataset):
        return rows.filter(_is_kept, fn_kwargs={"filters": filters}), Counter()
    reasons = rows.map(
        _Reasons(filters),
        batched=True,
        remove_columns=rows.column_names,
        features=Features(reason=Value("string")),
        desc=f"Filtering {name}",
    )["reason"]
    dropped = Counter(reason for reason in reasons if reason is not None)
    if not dropped:
        return rows, dropped
    message = f"{name}: dropped {dropped.total():,} of {len(rows):,} rows: {describe(dropped)}."
    if dropped.total() == len(rows):
        raise ValueError(f"{message} No row remains: check the data, or the filters in the section data.")
    logger.warning(message)
    return rows.select([i for i, reason in enumerate(reasons) if reason is None]), dropped


def _is_kept(row: Mapping[str, Any], filters: Filters) -> bool:
    return filters.reason(row) is None


def describe(dropped: Mapping[str, int]) -> str:
    """Format the counts of dropped rows, such as "2 empty, 1 duplicate"."""
    return ", ".join(f"{dropped[reason]:,} {reason}" for reason in REASONS if dropped.get(reason))
