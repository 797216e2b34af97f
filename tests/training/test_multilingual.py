"""Test one model for several directions, from its recipe to `trivium translate --to` and the pipeline's `tgt_lang`."""

from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
from small_recipes import SMALL
from transformers import PreTrainedTokenizerFast, pipeline
from typer.testing import CliRunner

from trivium import TriviumForConditionalGeneration, TriviumTokenizer
from trivium.data import DataArguments
from trivium.data.numbers import english_cardinal, german_cardinal
from trivium.hub import render_card
from trivium.interop.ctranslate2 import to_ctranslate2
from trivium.modeling.pipeline_translation import target_languages
from trivium.recipe import Recipe, load_recipe
from trivium.training import load_or_build, train
from trivium.translation import translate
from trivium_cli import app

pytestmark = pytest.mark.trains
OVERRIDES = [
    *(override for override in SMALL if not override.startswith(("data.", "training.max_steps"))),
    *("data.name=null", "data.directions=[en-de, de-en]", "training.max_steps=2", "training.eval_strategy='no'"),
    *("tokenizer.vocab_size=300", "training.report_to=none", "metrics=[exact_match]"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("multilingual")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "cache"))
        for split, numbers in (("train", range(60)), ("test", range(60, 62))):
            for language, spell in (("en", english_cardinal), ("de", german_cardinal)):
                (folder / f"{split}.{language}").write_text("".join(spell(number) + "\n" for number in numbers))
        data = [f"data.{split}={folder / split}" for split in ("train", "test")]
        train(load_recipe("numbers", [*OVERRIDES, *data, f"training.output_dir={folder / 'run'}"]))
        yield folder / "run"


def test_tag_is_the_first_token_of_the_source(run: Path) -> None:
    tokenizer = TriviumTokenizer.from_pretrained(run)
    ids = tokenizer("<2de>half past seven")["input_ids"]
    assert ids[0] == tokenizer.convert_tokens_to_ids("<2de>") >= 300
    assert ids[1:] == tokenizer("half past seven")["input_ids"]
    assert PreTrainedTokenizerFast.from_pretrained(run)("<2de>half past seven")["input_ids"] == ids
    assert target_languages(tokenizer) == ["de", "en"]
    model = TriviumForConditionalGeneration.from_pretrained(run)
    assert model.config.vocab_size == len(tokenizer) == 302


def test_all_ways_to_translate_put_the_tag_first(run: Path) -> None:
    model, tokenizer = TriviumForConditionalGeneration.from_pretrained(run), TriviumTokenizer.from_pretrained(run)
    texts = ["half past seven", "", "twenty-one"]
    tagged = [f"<2de>{text}" if text else "" for text in texts]
    expected = list(translate(model, tokenizer, tagged, max_length=8))
    assert list(translate(model, tokenizer, texts, to="de", max_length=8)) == expected
    pipe = pipeline("translation", model=model, tokenizer=tokenizer, max_length=8)
    outputs = pipe(texts, src_lang="en", tgt_lang="de")
    assert [output["translation_text"] for output in outputs] == expected
    result = CliRunner().invoke(app, ["translate", str(run), *texts, "--to", "de", "--max-length", "8"])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == expected


def test_unknown_or_missing_target_language_is_refused(run: Path) -> None:
    model, tokenizer = TriviumForConditionalGeneration.from_pretrained(run), TriviumTokenizer.from_pretrained(run)
    with pytest.raises(ValueError, match=r"target language is 'fr', but must be one of de, en"):
        next(translate(model, tokenizer, ["one"], to="fr"))
    with pytest.raises(ValueError, match=r"target language is 'fr', but must be one of de, en"):
        pipeline("translation", model=model, tokenizer=tokenizer)("one", tgt_lang="fr")
    result = CliRunner().invoke(app, ["translate", str(run), "one"])
    assert result.exit_code == 1
    assert "translates to de, en. Select one with --to" in " ".join(result.stderr.split())
    result = CliRunner().invoke(app, ["translate", str(run), "<2de>one", "--max-length", "4"])
    assert result.exit_code == 0, result.output


def test_codes_of_other_tokenizers_are_forced_as_first_token(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokenizers like NLLB's and mBART's have an attribute `src_lang`, and language codes as tokens."""
    model, tokenizer = TriviumForConditionalGeneration.from_pretrained(run), TriviumTokenizer.from_pretrained(run)
    monkeypatch.setattr(tokenizer, "src_lang", None, raising=False)
    pipe = pipeline("translation", model=model, tokenizer=tokenizer, max_length=8)
    [output] = pipe("one", src_lang="<2en>", tgt_lang="<2de>", return_tensors=True)
    assert output["translation_token_ids"][1] == tokenizer.convert_tokens_to_ids("<2de>")
    assert tokenizer.src_lang == "<2en>"
    with pytest.raises(ValueError, match=r"tgt_lang is 'deu_Latn', but must be a language code"):
        pipe("one", tgt_lang="deu_Latn")


@pytest.mark.slow
def test_one_direction_can_be_evaluated(run: Path) -> None:
    result = CliRunner().invoke(app, ["evaluate", str(run), "data.directions=[de-en]"])
    assert result.exit_code == 0, result.output
    assert "test: 2 texts" in result.stdout
    assert "<2en>" in result.stdout
    assert "<2de>" not in result.stdout


def test_start_from_a_model_without_the_tags_is_refused(run: Path, tmp_path: Path) -> None:
    recipe = load_recipe("numbers", [f"training.output_dir={tmp_path}/other"])
    other = Recipe(
        data=DataArguments(train="unused", directions=["en-de", "en-fr"]),
        training=recipe.training,
        init_from=str(run),
        metrics=["exact_match"],
    )
    with pytest.raises(ValueError, match=r"data\.directions is .* does not have <2fr>"):
        load_or_build(other, datasets.Dataset.from_dict({"source": ["a"], "target": ["b"]}))


def test_evaluation_of_an_unknown_direction_is_refused(run: Path) -> None:
    run.with_name("test.fr").write_text("un\ndeux\n")
    result = CliRunner().invoke(app, ["evaluate", str(run), "data.directions=[en-fr]"])
    assert (result.exit_code, "does not have <2fr>. Choose directions" in result.stderr) == (1, True), result.output


@pytest.mark.slow
def test_card_lists_directions_and_tags(run: Path) -> None:
    card = render_card(run)["README.md"].decode()
    assert 'print(pipe("<2de>the twenty-first of May' in card
    assert "language:\n- en\n- de\n" in card
    assert "from `en` to `de`, from `de` to `en`, selected by `<2de>`, `<2en>` at the start of a text" in card


@pytest.mark.slow
def test_ctranslate2_puts_the_tag_first(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2")
    to_ctranslate2(run, tmp_path / "fast")
    texts = ["half past seven", "twenty-one"]
    results = [
        CliRunner().invoke(app, ["translate", str(folder), *texts, "--to", "de", "--max-length", "8", *options])
        for folder, options in ((run, ()), (tmp_path / "fast", ("--engine", "ctranslate2")))
    ]
    assert [result.exit_code for result in results] == [0, 0], results[1].output
    assert results[0].stdout == results[1].stdout
