"""Test the training-data filters and the counts of dropped rows that they report."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from trivium.data import DataArguments, load_data
from trivium.data.columns import LABELED_TEXT, TEXT
from trivium.data.filters import is_in_scripts
from trivium.data.loading import load_and_count

PAIRS = [
    ("A dog.", "Ein Hund."),
    ("42 %", "42 %"),
    ("A cat.", "Кошка."),
    ("A dog.", "Ein Hund."),
    ("A dog.", "Hund."),
    ("a", "b c d e"),
    ("x", " "),
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def write(folder: Path, pairs: list[tuple[str, str]]) -> str:
    rows = [json.dumps({"en": source, "de": target}) + "\n" for source, target in pairs]
    (folder / "train.jsonl").write_text("".join(rows))
    return str(folder / "train.jsonl")


@pytest.mark.parametrize(
    ("options", "reason", "rows"),
    [
        ({}, "empty", [6]),
        ({"drop_identical": True}, "identical sides", [1]),
        ({"target_scripts": ["Latin"]}, "script", [2]),
        ({"target_scripts": ["Cyrillic"]}, "script", [0, 3, 4, 5]),
        ({"target_scripts": ["Cyrillic", "Latin"]}, "script", []),
        ({"source_scripts": ["Latin"]}, "script", []),
        ({"drop_duplicates": True}, "duplicate", [3]),
        ({"max_ratio": 2}, "length ratio", [5]),
    ],
)
@pytest.mark.parametrize("streaming", [False, True], ids=["eager", "streaming"])
def test_rows_dropped_by_each_filter(
    tmp_path: Path,
    options: dict[str, Any],
    reason: str,
    rows: list[int],
    streaming: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if streaming and "drop_duplicates" in options:
        pytest.skip("refused, see below")
    args = DataArguments(train=write(tmp_path, PAIRS), drop_empty=True, streaming=streaming, **options)
    splits, dropped = load_and_count(args)
    kept = [pair for i, pair in enumerate(PAIRS) if i not in {6, *rows}]
    assert [(row["source"], row["target"]) for row in splits["train"]] == kept
    if not streaming:
        assert dropped["train"] == {"empty": 1, **({reason: len(rows)} if rows else {})}
        assert f"dropped {len({6, *rows})} of 7 rows: 1 empty" in caplog.text


def test_only_the_split_for_training_is_filtered(tmp_path: Path) -> None:
    path = write(tmp_path, PAIRS[:6])
    args = DataArguments(train=path, test=path, drop_identical=True, drop_duplicates=True, target_scripts=["Latin"])
    splits, dropped = load_and_count(args)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 3, "test": 6}
    assert dropped["train"] == {"identical sides": 1, "script": 1, "duplicate": 1}


def test_limit_counts_remaining_rows(tmp_path: Path) -> None:
    args = DataArguments(train=write(tmp_path, [PAIRS[1], *PAIRS[:6]]), drop_identical=True, max_train_samples=1)
    assert list(load_data(args)["train"]) == [{"source": "A dog.", "target": "Ein Hund."}]


def test_duplicates_of_labeled_texts(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 1}, {"text": "a", "label": 0}, {"text": "a", "label": 1}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = DataArguments(train=str(tmp_path / "a.jsonl"), drop_duplicates=True)
    assert list(load_data(args, LABELED_TEXT)["train"]) == rows[:2]


@pytest.mark.parametrize(
    ("text", "scripts", "expected"),
    [
        ("Привет, world", ["Cyrillic"], True),
        ("При hello", ["Cyrillic"], False),
        ("42 % …", ["Cyrillic"], True),
        ("東京タワーへ行く", ["Han", "Hiragana", "Katakana"], True),
        ("東京タワーへ行く", ["Latin"], False),
        ("ーーーA", ["Latin"], True),  # The prolonged sound mark is shared by several scripts, so it is not counted.
    ],
)
def test_half_of_the_letters_must_be_in_the_scripts(text: str, scripts: list[str], expected: bool) -> None:
    assert is_in_scripts(text, scripts) is expected


@pytest.mark.parametrize(
    ("options", "columns", "message"),
    [
        ({"drop_identical": True}, TEXT, r"data\.drop_identical is True, but is only for sentence pairs.*needs text"),
        ({"source_scripts": ["Latin"]}, TEXT, r"data\.source_scripts is \['Latin'\], but is only for sentence pairs"),
        ({"target_scripts": ["Latn}x"]}, None, r"data\.target_scripts has 'Latn}x', but may contain only names of"),
        ({"target_scripts": ["Klingon"]}, None, r"data\.target_scripts has 'Klingon', but .*Latin, Cyrillic"),
        ({"target_scripts": []}, None, r"data\.target_scripts is empty"),
        ({"drop_duplicates": True, "streaming": True}, None, r"drop_duplicates and data\.streaming are both True"),
        ({"source_scripts": ["Han"]}, None, r"data\.train \(en-de\): dropped 6 of 6 rows: 6 script\. No row remains"),
    ],
)
def test_useless_filters_are_refused(
    tmp_path: Path, options: dict[str, Any], columns: tuple[str, ...] | None, message: str
) -> None:
    pairs = [pair for pair in PAIRS[:6] if pair != PAIRS[1]]
    args = DataArguments(train=write(tmp_path, [*pairs, ("b", "c")]), **options)
    with pytest.raises(ValueError, match=message):
        load_data(args, columns or ("source", "target"))
