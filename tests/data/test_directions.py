"""Test data of several translation directions: language tags, files, temperature sampling, and errors."""

from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest

from trivium.data import DataArguments, load_data
from trivium.data.columns import TEXT
from trivium.data.directions import mix, tags_of
from trivium.data.loading import load_and_count

ENGLISH, GERMAN, FRENCH = ["one", "two", "three"], ["eins", "zwei", "drei"], ["un", "deux", "trois"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def write(folder: Path, name: str = "train") -> str:
    for language, lines in (("en", ENGLISH), ("de", GERMAN), ("fr", FRENCH)):
        (folder / f"{name}.{language}").write_text("\n".join(lines) + "\n")
    return str(folder / name)


def pairs(rows: Any) -> list[tuple[str, str]]:
    return [(row["source"], row["target"]) for row in rows]


def test_sources_have_the_tag_of_their_target(tmp_path: Path) -> None:
    prefix = write(tmp_path)
    args = DataArguments(train=prefix, test=prefix, directions=["en-de", "en-fr", "de-en"], max_test_samples=2)
    splits = load_data(args)
    expected = [
        *((f"<2de>{a}", b) for a, b in zip(ENGLISH, GERMAN, strict=True)),
        *((f"<2fr>{a}", b) for a, b in zip(ENGLISH, FRENCH, strict=True)),
        *((f"<2en>{a}", b) for a, b in zip(GERMAN, ENGLISH, strict=True)),
    ]
    assert sorted(pairs(splits["train"])) == sorted(expected)
    assert pairs(splits["train"]) != expected
    assert pairs(splits["test"]) == [
        expected[i] for i in (0, 1, 3, 4, 6, 7)
    ]  # evaluation splits are concatenated in the order of the directions
    assert tags_of(args) == ["<2de>", "<2fr>", "<2en>"]


def test_each_direction_has_its_own_files(tmp_path: Path) -> None:
    for direction in ("en-de", "en-fr"):
        (tmp_path / direction).mkdir()
        write(tmp_path / direction, "a")
    (tmp_path / "en-fr" / "a.fr").write_text("UN\n\nTROIS\n")
    args = DataArguments(train=f"{tmp_path}/{{direction}}/a", directions=["en-de", "en-fr"], drop_empty=True)
    splits, dropped = load_and_count(args)
    assert Counter(pairs(splits["train"]))["<2fr>one", "UN"] == 1
    assert (len(splits["train"]), dropped["train"]) == (5, {"empty": 1})


@pytest.mark.slow
def test_corpus_of_numbers_in_both_directions() -> None:
    args = DataArguments(name="numbers", directions=["en-de", "de-en"], max_train_samples=10, max_test_samples=1)
    splits = load_data(args)
    assert Counter(row["source"][:5] for row in splits["train"]) == {"<2de>": 10, "<2en>": 10}


@pytest.mark.parametrize(("temperature", "counts"), [(1, (100, 9)), (2, (100, 30)), (1e9, (100, 100))])
def test_temperature_repeats_smaller_directions(temperature: float, counts: tuple[int, int]) -> None:
    parts = [datasets.Dataset.from_dict({"x": [f"{name}{i}" for i in range(n)]}) for name, n in (("a", 100), ("b", 9))]
    mixed = mix(parts, temperature, seed=3)["x"]
    by_row = Counter(mixed)
    assert tuple(sum(n for row, n in by_row.items() if row[0] == name) for name in "ab") == counts
    assert {n for row, n in by_row.items() if row[0] == "a"} == {1}
    repeats = {n for row, n in by_row.items() if row[0] == "b"}
    assert repeats <= {counts[1] // 9, -(-counts[1] // 9)}  # The repetitions of two rows differ by at most one.
    assert list(mix(parts, temperature, seed=3)["x"]) == list(mixed)
    assert list(mix(parts, temperature, seed=4)["x"]) != list(mixed)


@pytest.mark.parametrize(
    ("options", "columns", "message"),
    [
        ({"directions": ["ende"]}, None, r"data\.directions has 'ende', but a direction must be two different"),
        ({"directions": ["en-en"]}, None, r"data\.directions has 'en-en'"),
        ({"directions": ["en-zh-Hans"]}, None, r"data\.directions has 'en-zh-Hans'.*letters, digits and underscores"),
        ({"directions": []}, None, r"data\.directions is \[\], but must be different directions, at least one"),
        ({"directions": ["en-de", "en-de"]}, None, r"must be different directions"),
        ({"directions": ["en-de"], "streaming": True}, None, r"data\.directions is .*data\.streaming is True"),
        ({"directions": ["en-de"]}, TEXT, r"data\.directions is .*only for sentence pairs"),
        ({"directions": ["en-de"], "temperature": 0.5}, None, r"data\.temperature is 0\.5, but must be at least 1"),
        ({"temperature": 5.0}, None, r"data\.temperature is 5\.0, but is only for several directions"),
        ({"mixing_seed": 1}, None, r"data\.mixing_seed is 1, but is only for several directions"),
    ],
)
def test_invalid_directions_are_named(
    options: dict[str, Any], columns: tuple[str, ...] | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        load_data(DataArguments(train=write(tmp_path), **options), columns or ("source", "target"))
