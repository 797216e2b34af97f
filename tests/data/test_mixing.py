"""Test mixtures of several data sources: proportions, row order, shares of processes, exact resumption, and errors."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trivium.data import DataArguments, fingerprint, load_data
from trivium.data.arguments import has_shards
from trivium.data.batch_stream import BatchStream
from trivium.data.columns import TEXT
from trivium.data.mixing import MixArguments, MixedSource
from trivium.data.shares import EncodedStream
from trivium.hub.public import data_name, public_recipe
from trivium.recipe import load_recipe


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write two files with different column names, and a dataset of four shards."""
    (tmp_path / "web").mkdir()
    for index in range(4):
        write(tmp_path / "web" / f"train-{index}.jsonl", "text", [f"web {25 * index + row}" for row in range(25)])
    write(tmp_path / "books.jsonl", "text", [f"books {row}" for row in range(60)])
    write(tmp_path / "code.jsonl", "content", [f"code {row}" for row in range(20)])
    return tmp_path


def write(path: Path, column: str, texts: list[str]) -> None:
    path.write_text("".join(f"{json.dumps({column: text})}\n" for text in texts))


def mixture(folder: Path, *sources: MixedSource, streaming: bool = True, **options: Any) -> DataArguments:
    sources = sources or (
        MixedSource(train=f"{folder}/books.jsonl", weight=3),
        MixedSource(train=f"{folder}/code.jsonl", text="content"),
    )
    return DataArguments(streaming=streaming, mix=MixArguments(list(sources), **options))


def texts_of(args: DataArguments) -> list[str]:
    return [row["text"] for row in load_data(args, TEXT)["train"]]


def test_probabilities_follow_weights_and_temperature() -> None:
    sources = [MixedSource(weight=8), MixedSource(weight=1)]
    assert MixArguments(sources).probabilities == pytest.approx([8 / 9, 1 / 9])
    assert MixArguments(sources, temperature=3).probabilities == pytest.approx([2 / 3, 1 / 3])
    assert MixArguments([MixedSource(weight=1e300)] * 2, temperature=0.01).probabilities == [0.5, 0.5]


@pytest.mark.parametrize("streaming", [False, True])
def test_strategies_end_the_epoch(streaming: bool, folder: Path) -> None:
    """Each source keeps its row order, and restarts from its first row if it is exhausted before the epoch ends."""
    sources = MixedSource(train=f"{folder}/books.jsonl"), MixedSource(train=f"{folder}/code.jsonl", text="content")
    counts = {}
    for strategy in ("first_exhausted", "all_exhausted", "all_exhausted_without_replacement"):
        texts = texts_of(mixture(folder, *sources, strategy=strategy, streaming=streaming))
        for name, size in (("books", 60), ("code", 20)):
            own = [text for text in texts if text.startswith(name)]
            assert own == [f"{name} {row % size}" for row in range(len(own))]
        counts[strategy] = Counter(text.split()[0] for text in texts)
    once = Counter(books=60, code=20)
    assert counts["all_exhausted_without_replacement"] == once
    assert counts["first_exhausted"] <= once < counts["all_exhausted"]
    assert 0.7 < counts["all_exhausted"]["books"] / counts["all_exhausted"]["code"] < 1.5


def test_order_depends_on_the_seed_only(folder: Path) -> None:
    first = texts_of(mixture(folder))
    assert texts_of(mixture(folder)) == first
    assert texts_of(mixture(folder, seed=1)) != first


@pytest.mark.parametrize(
    ("num_shares", "share", "strategy"),
    [
        (2, 1, "all_exhausted"),
        pytest.param(1, 0, "all_exhausted", marks=pytest.mark.slow),
        pytest.param(1, 0, "all_exhausted_without_replacement", marks=pytest.mark.slow),
        pytest.param(2, 1, "all_exhausted_without_replacement", marks=pytest.mark.slow),
    ],
)
def test_mixture_resumes_from_every_position(
    num_shares: int, share: int, strategy: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trivium.data.shares.READ_ROWS", 7)
    monkeypatch.setattr("trivium.data.shares.ENCODED_ROWS", 5)
    sources = (MixedSource(name=f"{folder}/web", weight=2), MixedSource(train=f"{folder}/books.jsonl"))
    args = mixture(folder, *sources, strategy=strategy)

    def stream() -> BatchStream:
        fresh = BatchStream(EncodedStream(load_data(args, TEXT)["train"], has_shards=has_shards(args)), 8)
        fresh.num_shares, fresh.shares = num_shares, [share]
        return fresh

    batches = list(stream())
    assert len(batches) > 8
    for turn, batch in enumerate(batches):
        resumed = stream()
        resumed.places = {share: {**json.loads(json.dumps(batch.place)), "turn": turn}}
        assert [other.rows for other in resumed] == [other.rows for other in batches[turn + 1 :]]


@pytest.mark.parametrize("num_shares", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_shares_of_a_mixture_have_every_row_once(num_shares: int, folder: Path) -> None:
    """Sources are split among processes by shard if each has enough shards, and by row otherwise."""
    for sources in (
        [MixedSource(name=f"{folder}/web"), MixedSource(name=f"{folder}/web", weight=2)],
        [MixedSource(name=f"{folder}/web"), MixedSource(train=f"{folder}/books.jsonl")],
    ):
        args = mixture(folder, *sources, strategy="all_exhausted_without_replacement")
        stream = EncodedStream(load_data(args, TEXT)["train"])
        shares = [[placed.row["text"] for placed in stream.read_share(i, num_shares)] for i in range(num_shares)]
        assert all(shares)
        assert Counter(text for share in shares for text in share) == Counter(texts_of(args))


def test_fingerprint_covers_sources_and_weights(folder: Path) -> None:
    args = mixture(folder)
    others = [
        mixture(folder, temperature=2),
        mixture(folder, seed=1),
        mixture(folder, strategy="first_exhausted"),
        mixture(folder, *args.mix.sources[::-1]),
    ]
    hashes = [fingerprint(each, load_data(each, TEXT)["train"]) for each in (args, mixture(folder), *others)]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 5
    write(folder / "code.jsonl", "content", ["other"])
    assert fingerprint(args, load_data(args, TEXT)["train"]) != hashes[0]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("{sources: []}", r"data\.mix\.sources is empty.*at least one"),
        ("{sources: [{train: a, weight: 0}]}", r"data\.mix\.sources\[0\]\.weight is 0\.0.*greater than 0"),
        ("{sources: [{train: a}], temperature: 0}", r"data\.mix\.temperature is 0\.0.*greater than 0"),
        ("{sources: [{train: a}], seed: -1}", r"data\.mix\.seed is -1.*at least 0"),
        ("{sources: [{train: a}], strategy: all}", r"data\.mix\.strategy is 'all'.*first_exhausted"),
        ("{sources: [{train: a, wieght: 2}]}", "wieght"),
    ],
)
def test_invalid_mixture_is_refused(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe("numbers", ["data.name=null", f"data.mix={override}"])


def test_conflicting_sources_are_refused(folder: Path) -> None:
    for field, value in (("train", f"{folder}/books.jsonl"), ("name", f"{folder}/web")):
        with pytest.raises(ValueError, match=rf"data\.{field} is .*data\.mix is set"):
            load_data(replace(mixture(folder), **{field: value}), TEXT)
    (folder / "held-out").mkdir()
    write(folder / "held-out" / "validation.jsonl", "text", ["a"])
    args = mixture(folder, MixedSource(name=f"{folder}/held-out"))
    with pytest.raises(ValueError, match="held-out, which has the splits validation"):
        load_data(args, TEXT)


def test_recipe_keeps_the_mixture_and_publishes_no_paths(folder: Path) -> None:
    mix = f"{{temperature: 2, sources: [{{train: {folder}/books.jsonl, weight: 3}}, {{name: {folder}/web}}]}}"
    recipe = load_recipe("numbers", ["data.name=null", "data.streaming=true", f"data.mix={mix}"])
    recipe.save(folder)
    assert load_recipe(folder) == recipe
    assert recipe.data.mix.sources[0].weight == 3
    public = public_recipe(recipe)
    assert str(folder) not in public
    assert "weight: 3" in public
    assert data_name(recipe.data, "train") == f"{folder.name}/books.jsonl, {folder.name}/web"
