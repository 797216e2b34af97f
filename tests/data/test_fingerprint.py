"""Test that fingerprints of files, Hub datasets and streams depend on the content only, not on the location."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset

from trivium.data import DataArguments, fingerprint, load_data
from trivium.data.columns import PAIR, TEXT
from trivium.data.fingerprints import later_fields
from trivium.recipe import load_recipe
from trivium.training import train

PAIRS = [("a house", "ein Haus"), ("two dogs", "zwei Hunde"), ("three", "drei")]
OTHERS = {
    "a word": [("a house", "das Haus"), *PAIRS[1:]],
    "order": [PAIRS[1], PAIRS[0], PAIRS[2]],
    "a row less": PAIRS[:2],
    "where a text ends": [("a housetwo", "ein Haus"), ("dogs", "zwei Hunde"), PAIRS[2]],
}


def write_pairs(folder: Path, pairs: list[tuple[str, str]], kind: str) -> DataArguments:
    """Write the pairs as parallel text, as JSON lines, or as a dataset folder in the Hub's layout."""
    folder.mkdir()
    if kind == "parallel text":
        for ending, lines in zip(("en", "de"), zip(*pairs, strict=True), strict=True):
            (folder / f"train.{ending}").write_text("".join(f"{line}\n" for line in lines))
        return DataArguments(train=f"{folder}/train")
    rows = [json.dumps({"en": source, "de": target}) for source, target in pairs]
    (folder / "train.jsonl").write_text("\n".join(rows) + "\n")
    return DataArguments(name=str(folder)) if kind == "Hub" else DataArguments(train=f"{folder}/train.jsonl")


def fingerprint_of(args: DataArguments, columns: tuple[str, ...] = PAIR, **changes: Any) -> str:
    args = DataArguments(**{**vars(args), **changes})
    return fingerprint(args, load_data(args, columns)["train"])


@pytest.mark.parametrize("streaming", [False, True], ids=["eager", "streaming"])
@pytest.mark.parametrize("kind", ["parallel text", "lines of JSON", "Hub"])
def test_fingerprint_identifies_the_data(tmp_path: Path, kind: str, streaming: bool) -> None:
    expected = fingerprint_of(write_pairs(tmp_path / "here", PAIRS, kind), streaming=streaming)
    assert expected.startswith("files:" if streaming else "rows:")
    assert expected == fingerprint_of(write_pairs(tmp_path / "there", PAIRS, kind), streaming=streaming)
    found = {expected}
    for number, other_pairs in enumerate(OTHERS.values()):
        found.add(fingerprint_of(write_pairs(tmp_path / str(number), other_pairs, kind), streaming=streaming))
    found.add(fingerprint_of(write_pairs(tmp_path / "less", PAIRS, kind), max_train_samples=2, streaming=streaming))
    if kind == "Hub":
        found.add(fingerprint_of(write_pairs(tmp_path / "part", PAIRS, kind), train="train[1:]", streaming=streaming))
    same = 0 if streaming else 1  # loaded data hashes two of three rows like a file of two
    assert len(found) == 1 + len(OTHERS) + 1 + (kind == "Hub") - same


def test_fingerprint_is_independent_of_storage(tmp_path: Path) -> None:
    kinds = [
        fingerprint_of(write_pairs(tmp_path / kind.replace(" ", ""), PAIRS, kind)) for kind in ("parallel text", "Hub")
    ]
    rows = Dataset.from_dict({"source": [p[0] for p in PAIRS], "target": [p[1] for p in PAIRS]})
    assert {*kinds, fingerprint(DataArguments(), rows)} == {kinds[0]}
    assert fingerprint(DataArguments(), rows.select([2, 0, 1]).select([1, 2, 0])) == kinds[0]


def test_fingerprint_of_texts_and_embedded_corpus(tmp_path: Path) -> None:
    (tmp_path / "texts").write_text("one\ntwo\n")
    args = DataArguments(train=str(tmp_path / "texts"))
    streamed = fingerprint_of(args, TEXT, streaming=True)
    assert fingerprint_of(args, TEXT) != streamed
    assert fingerprint_of(args, TEXT, streaming=True, whole_files=True) != streamed
    numbers = DataArguments(name="numbers", max_train_samples=50)
    assert (
        fingerprint_of(numbers)
        == fingerprint_of(numbers, streaming=True)
        != fingerprint_of(numbers, source="de", target="en")
    )


def test_hub_files_are_identified_by_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    args = DataArguments(name="someone/pairs", train="train[10:]", streaming=True)
    rows = Dataset.from_dict({"source": ["a"], "target": ["b"]}).to_iterable_dataset()

    def at(commit: str) -> str:
        files = {"train": [f"hf://datasets/someone/pairs@{commit}/a.parquet"], "test": [commit]}
        builder = SimpleNamespace(config=SimpleNamespace(data_files=files))
        monkeypatch.setattr("trivium.data.fingerprints.load_dataset_builder", lambda name, config_name: builder)
        return fingerprint(args, rows)

    assert at("0123") == at("0123") != at("4567")


def test_later_fields_count_only_if_they_are_set(tmp_path: Path) -> None:
    args = write_pairs(tmp_path / "here", PAIRS, "parallel text")
    assert later_fields(args) == {}
    assert later_fields(DataArguments(**{**vars(args), "drop_empty": True})) == {"drop_empty": True}
    stream = fingerprint_of(args, streaming=True)
    assert fingerprint_of(args, streaming=True, drop_empty=True) != stream
    # The fingerprint must be the same as in versions without these fields.
    first = json.dumps([None, "en", "de", "text", "label", False, None, None, None]).encode()
    files = [hashlib.sha256(Path(f"{args.train}.{side}").read_bytes()).hexdigest() for side in ("en", "de")]
    assert stream == "files:" + hashlib.sha256(first + "".join(files).encode()).hexdigest()


def test_resume_with_changed_data_is_refused(tmp_path: Path) -> None:
    write_pairs(tmp_path / "data", PAIRS * 10, "parallel text")
    recipe = load_recipe(
        "numbers",
        [
            *("data.name=null", f"data.train={tmp_path}/data/train", f"training.output_dir={tmp_path}/run"),
            *("training.max_steps=4", "training.save_steps=2", "training.eval_strategy='no'", "model.d_model=32"),
            *("tokenizer.vocab_size=300", "training.disable_tqdm=true", "training.report_to=none"),
        ],
    )
    train(recipe)
    more = load_recipe(tmp_path / "run", ["training.max_steps=6"])
    (tmp_path / "data" / "train.de").write_text("eins\n" * 30)
    with pytest.raises(ValueError, match=r"training data.*fingerprint was rows:\w+, is now rows:\w+"):
        train(more, resume=True)
