"""Test `trivium data`: the counts and the printed table; the picture is the only file that it writes."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from small_recipes import SMALL
from typer.testing import CliRunner

from trivium.inspection import plot_data
from trivium.recipe import load_recipe
from trivium.training import report_data
from trivium_cli import app
from trivium_cli.common import MAX_CELL, format_cell

TRAIN = [
    ("one dog", "ein Hund"),
    ("two dogs", "zwei Hunde"),
    ("two dogs", "zwei Hunde"),
    ("42", "42"),
    ("a\x00b", "c"),
    ("x", ""),
]
TEST = [("one dog", "ein Hund"), ("two dogs", "2 Hunde"), ("naïve dog", "ein Hund")]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def overrides(tmp_path: Path) -> list[str]:
    for split, pairs in {"train": TRAIN, "test": TEST}.items():
        for column, language in enumerate(("en", "de")):
            lines = "".join(pair[column] + "\n" for pair in pairs)
            (tmp_path / f"{split}.{language}").write_text(lines, encoding="utf-8")
    return [
        *(override for override in SMALL if not override.startswith("data.")),
        *("data.name=null", f"data.train={tmp_path}/train", f"data.test={tmp_path}/test", "data.drop_empty=true"),
        *("data.drop_identical=true", "tokenizer.vocab_size=280", f"training.output_dir={tmp_path}/run"),
    ]


def test_report_counts_rows_tokens_characters_and_overlap(overrides: list[str], tmp_path: Path) -> None:
    report = report_data(load_recipe("numbers", [*overrides, "tokenizer.algorithm=char", "inputs.max_length=9"]))
    train, test = report.splits["train"], report.splits["test"]
    assert (train.rows, train.examined, train.dropped) == (4, 4, {"empty": 1, "identical sides": 1})
    assert (test.rows, test.examined, test.dropped) == (3, 3, {})
    # Each length is the number of characters plus one for `</s>`.
    assert train.lengths == {"source": [8, 9, 9, 4], "target": [9, 11, 11, 2]}
    assert train.truncated == {"source": 0, "target": 2}
    assert (train.unknown, test.unknown) == ({}, {"ï": 1, "v": 1, "2": 1})
    assert (train.unseen, test.unseen) == ({}, {"ï": 1, "v": 1, "2": 1})
    assert train.control == 1
    assert f"{tmp_path}/train.de, line 5: the source has the control character U+0000" in str(train.first_control)
    assert report.overlap == {("train", "test", "row"): 1, ("train", "test", "source"): 2}
    assert [sample["source"] for sample in report.samples] == ["one dog", "two dogs", "two dogs", "a\x00b"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test.de", "test.en", "train.de", "train.en"]


def test_first_rows_of_a_stream_are_examined(overrides: list[str]) -> None:
    report = report_data(load_recipe("numbers", [*overrides, "data.streaming=true"]), max_rows=2)
    assert (report.splits["train"].rows, report.splits["train"].examined) == (None, 2)


def test_labels_and_texts(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": "even" if i % 2 == 0 else "odd"} for i in range(7)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = ["model.d_model=32", "model.ffn_dim=32", "model.encoder_layers=1"]
    recipe = load_recipe("trec", [f"data.train={tmp_path}/a.jsonl", "data.validation=null", *overrides])
    report = report_data(recipe)
    assert report.splits["train"].labels == {"even": 4, "odd": 3}
    titles = [axes.get_title() for axes in plot_data(report).axes]
    assert titles == ["text", "training rows by label"]


def test_command_prints_tables_and_draws_a_picture(overrides: list[str], tmp_path: Path) -> None:
    picture = tmp_path / "data.png"
    arguments: list[Any] = ["data", "numbers", *overrides, "--output", picture]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.replace("│", " ").split()) for line in result.stdout.splitlines()]
    for line in ("rows 4 3", "dropped: identical sides 1 0", "also in train: row 1", "also in train: source 2"):
        assert any(line in printed for printed in lines), (line, lines)
    assert "First control character of train" in result.stdout
    assert "two dogs" in result.stdout
    assert picture.is_file()
    content = picture.read_bytes()
    refused = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert refused.exit_code == 1
    assert "is not overwritten" in refused.stderr.replace("\n", " ")
    assert picture.read_bytes() == content
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (["one", "two"], "one two"),
        ({"text": ["May"], "answer_start": [3]}, "May"),
        ("x" * MAX_CELL, "x" * MAX_CELL),
        ("x" * 2 * MAX_CELL, "x" * MAX_CELL + "…"),
    ],
)
def test_long_and_structured_values_fit_a_table(value: Any, cell: str) -> None:
    assert format_cell(value) == cell
