"""Test back-translation and sequence-level distillation: resumption, refusals, and training on their output."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
import torch
from small_recipes import SMALL
from typer.testing import CliRunner

from trivium import TriviumTokenizer
from trivium.data.directions import untagged_texts
from trivium.data.numbers import english_cardinal, german_cardinal
from trivium.recipe import load_recipe
from trivium.recipe_sections import TokenizerArguments
from trivium.training import load_or_build, synthetic, train
from trivium.training.synthetic import PairCounts, read_texts, write_pairs
from trivium_cli import app

OVERRIDES = [
    *(override for override in SMALL if not override.startswith(("data.", "training.max_steps"))),
    *("data.name=null", "training.max_steps=2", "training.eval_strategy='no'", "tokenizer.vocab_size=300"),
    *("training.report_to=none", "metrics=[exact_match]"),
]


def sampled(texts: list[str]) -> Iterator[str]:
    """Yield texts with a random number, as a sampling model would."""
    for text in texts:
        yield "" if text == "empty" else f"{text.upper()} {torch.randint(1000, ()).item()}"


@pytest.fixture
def texts_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(synthetic, "CHUNK", 4)
    path = tmp_path / "texts.de.gz"
    lines = ["eins", "", "zwei", "empty", *(f"drei {number}" for number in range(10))]
    path.write_bytes(gzip.compress("".join(line + "\n" for line in lines).encode()))
    return path


def write(texts_file: Path, output: Path, translate=sampled, **options) -> PairCounts:
    return write_pairs(translate, texts_file, output, given="de", generated="en", tag="<bt>", **options)


def test_pairs_have_the_tag_and_leave_out_empty_translations(texts_file: Path, tmp_path: Path) -> None:
    counts = write(texts_file.with_suffix(""), tmp_path / "pairs.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert [row["de"] for row in rows] == [text for text in read_texts(texts_file) if text != "empty"]
    assert all(row["en"].startswith(f"<bt>{row['de'].upper()} ") for row in rows)
    assert (counts.texts, counts.pairs) == (13, 12)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.jsonl", "texts.de.gz"]


@pytest.mark.parametrize("finished", range(4))
def test_interrupted_output_is_continued_exactly(texts_file: Path, tmp_path: Path, finished: int) -> None:
    write(texts_file, tmp_path / "whole.jsonl", seed=1)
    chunks = iter(range(4))

    def interrupted(texts: list[str]) -> Iterator[str]:
        stop = next(chunks) == finished
        for index, text in enumerate(sampled(texts)):
            if stop and index == min(2, len(texts) - 1):
                raise KeyboardInterrupt
            yield text

    def counted(texts: list[str]) -> Iterator[str]:
        translated.extend(texts)
        return sampled(texts)

    translated: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        write(texts_file, tmp_path / "parts.jsonl", interrupted, seed=1)
    assert not (tmp_path / "parts.jsonl").exists()
    assert (tmp_path / "parts.jsonl.partial").exists() == bool(finished), "a folder without pairs is of no use"
    with (
        pytest.raises(ValueError, match=r"changed settings: seed was 1, is now 2")
        if finished
        else pytest.raises(ZeroDivisionError)
    ):
        write(texts_file, tmp_path / "parts.jsonl", lambda texts: [str(1 // 0)], seed=2 if finished else 1)
    write(texts_file, tmp_path / "parts.jsonl", counted, seed=1)
    assert translated == [*read_texts(texts_file)][4 * finished :]
    assert (tmp_path / "parts.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not (tmp_path / "parts.jsonl.partial").exists()


def test_texts_are_read_lazily_and_nothing_is_overwritten(texts_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"output is .*pairs\.txt, but must end in \.jsonl"):
        write(texts_file, tmp_path / "pairs.txt")
    (tmp_path / "own.jsonl").write_text("mine")
    with pytest.raises(ValueError, match=r"own\.jsonl, which exists and is not overwritten"):
        write(texts_file, tmp_path / "own.jsonl")
    with pytest.raises(FileNotFoundError, match=r"missing\.de, but there is no such file"):
        write(tmp_path / "missing.de", tmp_path / "missing.jsonl")
    (tmp_path / "blank.de").write_text("\n\n")
    with pytest.raises(ValueError, match=r"blank\.de: there are no texts"):
        write(tmp_path / "blank.de", tmp_path / "blank.jsonl")
    (tmp_path / "bad.de").write_bytes(b"eins\n" * 9 + b"\xff\n")
    with pytest.raises(ValueError, match=r"bad\.de, line 10: byte 0xff"):
        write(tmp_path / "bad.de", tmp_path / "bad.jsonl", lambda texts: [str(1 // 0)])
    assert not (tmp_path / "bad.jsonl.partial").exists()
    with pytest.raises(ValueError, match=r"no translation for any of the 13 texts"):
        write(texts_file, tmp_path / "empty.jsonl", lambda texts: [""] * len(texts))
    assert not list(tmp_path.glob("empty*"))
    rows = [json.dumps({"doc": {"de": text}}) for text in ("eins", "zwei")]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    assert list(read_texts(tmp_path / "rows.jsonl", "doc.de")) == ["eins", "zwei"]


@pytest.mark.parametrize("token", ["", "a b", " <bt>", "<s>"])
def test_impossible_special_tokens_are_refused(token: str) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.special_tokens has .*, but may contain only"):
        TokenizerArguments(special_tokens=[token])
    with pytest.raises(ValueError, match="only different tokens"):
        TokenizerArguments(special_tokens=["<bt>", "<bt>"])


def test_tokenizers_are_not_trained_on_any_tag() -> None:
    texts = ["<2de><bt>one", "<bt>two", "three", "<2de>"]
    assert list(untagged_texts(texts, ["<2de>", "<bt>"])) == ["one", "two", "three", ""]


@pytest.mark.trains
def test_back_translation_from_the_command_to_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for language, spell in (("en", english_cardinal), ("de", german_cardinal)):
        (tmp_path / f"real.{language}").write_text("".join(spell(number) + "\n" for number in range(40)))
    texts = tmp_path / "more.txt"
    texts.write_text("".join(german_cardinal(number) + "\n" for number in range(40, 60)))
    data = f"data.train={tmp_path / 'real'}"
    reverse, forward, output = tmp_path / "reverse", tmp_path / "forward", tmp_path / "synthetic.jsonl"
    languages = ["data.source=de", "data.target=en"]
    train(load_recipe("numbers", [*OVERRIDES, data, *languages, f"training.output_dir={reverse}"]))
    command = ["backtranslate", str(reverse), str(texts), str(output), "--sample", "--max-length", "4"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "tokenizer.special_tokens=[<bt>]" in result.output
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert rows
    assert {row["de"] for row in rows} <= set(texts.read_text().splitlines())
    assert all(row["en"].startswith("<bt>") for row in rows)

    mix = f"data.mix.sources=[{{train: {tmp_path / 'real'}}}, {{train: {output}}}]"
    recipe = load_recipe(
        "numbers", [*OVERRIDES, mix, "tokenizer.special_tokens=[<bt>]", f"training.output_dir={forward}"]
    )
    train(recipe)
    tokenizer = TriviumTokenizer.from_pretrained(forward)
    tag, *rest = tokenizer("<bt>forty-one")["input_ids"]
    assert tag == tokenizer.convert_tokens_to_ids("<bt>") == len(tokenizer) - 1
    assert rest == tokenizer("forty-one")["input_ids"]
    result = CliRunner().invoke(
        app,
        ["distil", str(forward), str(tmp_path / "real.en"), str(tmp_path / "distilled.jsonl"), "--max-length", "4"],
    )
    assert result.exit_code == 0, result.output
    for line in (tmp_path / "distilled.jsonl").read_text().splitlines():
        assert list(json.loads(line)) == ["de", "en"]
        assert json.loads(line)["en"] in (tmp_path / "real.en").read_text().splitlines()
    recipe.init_from, recipe.model = str(reverse), {}
    with pytest.raises(ValueError, match=r"special_tokens is \['<bt>'\], but the tokenizer of .* does not have <bt>"):
        load_or_build(recipe, datasets.Dataset.from_dict({"source": ["a"], "target": ["b"]}))
