"""Test n-best lists with scores, and sentence splitting, in `translate()`, the pipeline and the command."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny import shake, tiny_config
from transformers import MarianConfig, MarianMTModel, pipeline
from typer.testing import CliRunner

from trivium import TriviumForConditionalGeneration, TriviumTokenizer
from trivium.data.sentences import join_sentences, split_sentences
from trivium.tokenization import train_tokenizer
from trivium.translation import translate
from trivium_cli import app

TEXTS = ["birds fly. cats sit", "", "dogs ran"]


@pytest.fixture(scope="module")
def tokenizer() -> TriviumTokenizer:
    return train_tokenizer(["birds fly. cats sit", "two dogs ran"] * 2, vocab_size=300)


@pytest.fixture(scope="module")
def model(tokenizer: TriviumTokenizer) -> TriviumForConditionalGeneration:
    torch.manual_seed(0)
    config = tiny_config(vocab_size=len(tokenizer), encoder_layers=1, decoder_layers=1)
    return shake(TriviumForConditionalGeneration(config), std=0.5).eval()


@pytest.fixture(scope="module")
def marian(tokenizer: TriviumTokenizer) -> MarianMTModel:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": len(tokenizer)}
    sizes |= {f"{stack}_attention_heads": 2 for stack in ("encoder", "decoder")}
    sizes |= {f"{stack}_ffn_dim": 16 for stack in ("encoder", "decoder")}
    config = MarianConfig(**sizes, pad_token_id=0, eos_token_id=2, decoder_start_token_id=1, forced_eos_token_id=None)
    return shake(MarianMTModel(config), std=0.5).eval()


@pytest.fixture
def splitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace sentencex, an optional dependency, with a fake that splits at full stops."""
    module: Any = ModuleType("sentencex")
    module.segment = lambda language, text: [part for part in text.replace(". ", ". |").split("|") if part]
    monkeypatch.setitem(sys.modules, "sentencex", module)
    monkeypatch.setattr("trivium_cli.texts.find_spec", lambda name: module)


# --- N-best lists ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model", "marian"])
def test_n_best_matches_sequences_scores(
    name: str, tokenizer: TriviumTokenizer, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(name)
    options = {"max_length": 8, "length_penalty": 0.6}
    found = list(translate(model, tokenizer, TEXTS, n_best=3, batch_size=2, **options))
    assert found[1] == []
    for text, best in zip(TEXTS, found, strict=True):
        if not text:
            continue
        expected = model.generate(
            **tokenizer([text], return_tensors="pt"),
            **options,
            num_beams=3,
            num_return_sequences=3,
            return_dict_in_generate=True,
            output_scores=True,
        )
        assert [each.score for each in best] == pytest.approx(expected.sequences_scores.tolist(), abs=1e-5)
        assert [each.text for each in best] == tokenizer.batch_decode(expected.sequences, skip_special_tokens=True)
        pipe = pipeline("translation", model=model, tokenizer=tokenizer)
        rows = pipe(text, num_beams=3, num_return_sequences=3, return_scores=True, **options)
        assert [row["translation_text"] for row in rows] == [each.text for each in best]
        assert [row["score"] for row in rows] == pytest.approx([each.score for each in best], abs=1e-5)


def test_pipeline_scores_in_batches(model: TriviumForConditionalGeneration, tokenizer: TriviumTokenizer) -> None:
    pipe = pipeline("translation", model=model, tokenizer=tokenizer, num_beams=2, max_length=8, return_scores=True)
    rows = pipe(TEXTS, batch_size=3)
    assert rows[1] == {"translation_text": "", "score": 0.0}
    assert rows[0]["score"] == pytest.approx(pipe(TEXTS[0])[0]["score"], abs=1e-5)
    with pytest.raises(ValueError, match=r"return_scores is True and num_beams is 1, .* at least 2"):
        pipe(TEXTS, num_beams=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_best": 0}, "n_best is 0, but must be at least 1"),
        ({"n_best": 3, "num_beams": 2}, "n_best is 3 and num_beams is 2, but num_beams must be at least 3"),
        ({"n_best": 1, "num_beams": 1}, "num_beams must be at least 2"),
        ({"n_best": 2, "do_sample": True}, "n_best is 2 and do_sample is True"),
        ({"n_best": 2, "split_language": "en"}, "n_best is 2 and split_language is 'en'"),
    ],
)
def test_invalid_n_best_is_refused(
    options: dict[str, Any], message: str, model: TriviumForConditionalGeneration, tokenizer: TriviumTokenizer
) -> None:
    with pytest.raises(ValueError, match=message):
        translate(model, tokenizer, TEXTS, **options)


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, ["translate", *map(str, arguments)], env={"COLUMNS": "200"})
    return result.stdout if result.exit_code == 0 else result.stderr


def test_command_writes_json_lines(
    model: TriviumForConditionalGeneration, tokenizer: TriviumTokenizer, tmp_path: Path, splitter: None
) -> None:
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    rows = [
        json.loads(line)
        for line in run(tmp_path, *TEXTS, "--n-best", "2", "--scores", "--max-length", "8").splitlines()
    ]
    assert [row["source"] for row in rows] == TEXTS
    assert [len(row["translations"]) for row in rows] == [len(row["scores"]) for row in rows] == [2, 0, 2]
    assert rows[0]["scores"][0] > rows[0]["scores"][1]
    alone = json.loads(run(tmp_path, TEXTS[0], "--n-best", "2", "--max-length", "8"))
    assert alone == {"source": TEXTS[0], "translations": rows[0]["translations"]}
    assert "num_beams must be at least 3" in run(tmp_path, TEXTS[0], "--n-best", "3", "--beams", "2")
    assert "cannot be combined" in run(tmp_path, TEXTS[0], "--scores", "--sample")
    parts = (TEXTS[0], "birds fly.", "cats sit")
    split, *sentences = (run(tmp_path, text, "--split-sentences", "--max-length", "8") for text in parts)
    assert split.split() == " ".join(sentences).split()
    assert "--language requires --split-sentences" in run(tmp_path, TEXTS[0], "--language", "en")


# --- Sentence by sentence --------------------------------------------------------------------------------------------


def test_sentences_are_translated_in_order(
    model: TriviumForConditionalGeneration,
    tokenizer: TriviumTokenizer,
    splitter: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    texts = ["birds fly. cats sit. birds fly", "", " ", "dogs ran", "dogs ran. birds " + "fly " * 2000]
    sentences = ["birds fly.", "cats sit.", "birds fly", "dogs ran", "dogs ran."]
    options = {"max_length": 8, "batch_size": 2}
    single = {text: next(translate(model, tokenizer, [text], **options)) for text in sentences}
    found = list(translate(model, tokenizer, iter(texts), split_language="en", **options))
    assert found[:4] == [" ".join(single[text] for text in sentences[:3]).strip(), "", "", single["dogs ran"].strip()]
    assert found[4].startswith(single["dogs ran."].strip())
    assert "Sentence 8 has 8,005 characters" in caplog.text


def test_sentences_are_joined_by_the_space_between_them() -> None:
    assert join_sentences(["A.", "B."], ["a.  ", "b. "]) == "A.  B."
    assert join_sentences(["A.", "B."], ["a\N{IDEOGRAPHIC FULL STOP}", "b"]) == "A. B."
    assert join_sentences(["A\N{IDEOGRAPHIC FULL STOP}", "B"], ["a. ", "b"]) == "A\N{IDEOGRAPHIC FULL STOP}B"


def test_missing_splitter_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencex", None)
    with pytest.raises(ImportError, match="needs sentencex, which is not installed: `pip install sentencex`"):
        split_sentences("One. Two.", "en")
    monkeypatch.setattr("trivium_cli.texts.find_spec", lambda name: None)
    assert "pip install sentencex" in run(".", "One. Two.", "--split-sentences")


def test_sentencex_keeps_abbreviations_and_all_characters() -> None:
    pytest.importorskip("sentencex", reason="an optional dependency")
    text = "Dr. Smith paid $3.50 on Jan. 5th.  He left! "
    assert split_sentences(text, "en") == ["Dr. Smith paid $3.50 on Jan. 5th.  ", "He left! "]
    assert split_sentences(" ", "en") == [" "]
