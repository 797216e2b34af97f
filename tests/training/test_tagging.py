"""Test token classification: CoNLL files, word-token alignment, metrics and learning."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_config
from transformers import AutoTokenizer, BertTokenizer
from typer.testing import CliRunner

from trivium import TriviumForTokenClassification, TriviumTokenizer
from trivium.data import DataArguments, load_data
from trivium.data.columns import TAGGED_WORDS
from trivium.evaluation import evaluate, predict_tags
from trivium.metrics import load_metric
from trivium.modeling.loss import IGNORE_INDEX
from trivium.recipe import Recipe
from trivium.recipe_sections import TokenizerArguments
from trivium.tasks import TASKS, InputArguments, encode_rows, make_collator
from trivium.tasks.tags import align_words, marks_entities, tag_facts
from trivium.tokenization import train_tokenizer
from trivium.training import train
from trivium_cli import app

WORDS = [["Über", "übermorgen", "🙂", ",", "don't", "catcat"], ["a"], ["-", "the", "cat", "\u200b", "the"]]
TAGS = [["O", "B-time", "O", "O", "O", "B-animal"], ["O"], ["O", "O", "B-animal", "O", "O"]]
ROWS = [{"words": words, "tags": tags} for words, tags in zip(WORDS, TAGS, strict=True)]


def tagged(tmp_path: Path, content: str, name: str = "train.conll", **options: Any) -> list[dict[str, Any]]:
    (tmp_path / name).write_text(content, encoding="utf-8")
    arguments = DataArguments(train=str(tmp_path / name), **options)
    return list(load_data(arguments, TAGGED_WORDS)["train"])


# --- Data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train.conll", "train.tsv", "train"])
@pytest.mark.parametrize("separator", ["\t", " ", "\tNN\t"])
def test_conll_sentences_are_read(tmp_path: Path, name: str, separator: str) -> None:
    """CoNLL-2003 files have additional columns, document markers, and runs of empty lines."""
    lines = [f"-DOCSTART-{separator}O", "", f"the{separator}O", f"cat{separator}B-animal", " ", "", f"#{separator}O"]
    rows = tagged(tmp_path, "\r\n".join(lines), name)
    assert rows == [{"words": ["the", "cat"], "tags": ["O", "B-animal"]}, {"words": ["#"], "tags": ["O"]}]


def test_columns_of_words_and_tags_are_read(tmp_path: Path) -> None:
    rows = [{"tokens": ["the", "cat"], "ner": [0, 3]}, {"tokens": "a  dog", "ner": "0 3"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    for streaming in (False, True):
        found = tagged(tmp_path, lines, "train.jsonl", text="tokens", label="ner", streaming=streaming)
        assert found == [{"words": ["the", "cat"], "tags": ["0", "3"]}, {"words": ["a", "dog"], "tags": ["0", "3"]}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.conll", "the\tO\ncat\n", r"a\.conll, line 2: found 'cat', but every line must have a word and its tag"),
        ("a.conll", "the\tO\n\tO\n", r"line 2: found '\\tO'"),
        ("a.conll", "\n \n", r"no texts in this file"),
        ("a.jsonl", '{"text": ["the", "cat"], "label": ["O"]}', r"line 1: found 2 words and 1 tags"),
        ("a.jsonl", '{"text": ["the", " "], "label": ["O", "O"]}', r"'text' is \['the', ' '\].* none of them blank"),
        ("a.jsonl", '{"text": ["the"], "label": [0.5]}', r"'label' is \[0\.5\].* strings or integers"),
        ("a.jsonl", '{"text": ["the"]}', r"no column 'label'.* set data\.text and data\.label"),
    ],
)
def test_malformed_rows_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tagged(tmp_path, content, name)


# --- Words and tokens ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    texts = [" ".join(words) for words in WORDS] * 2
    options: dict[str, Any] = {"add_bos_token": True, "add_eos_token": True, "vocab_size": 290}
    trained = {name: train_tokenizer(texts, algorithm=name, **options) for name in ("bpe", "unigram", "char")}
    folder = tmp_path_factory.mktemp("tokenizer")
    trained["bpe"].save_pretrained(folder)
    vocabulary = {
        token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##cat", "-"])
    }
    return {
        **trained,
        "lowercase": train_tokenizer(texts, lowercase=True, **options),
        "without the class": AutoTokenizer.from_pretrained(folder, use_fast=True),
        "bert": BertTokenizer(vocab=vocabulary),
    }


@pytest.mark.parametrize("name", ["bpe", "unigram", "char", "lowercase", "without the class", "bert"])
def test_first_token_of_each_word_is_labeled(tokenizers: dict[str, Any], name: str) -> None:
    """Decode the tokens from one labeled token up to the next, and compare them with the word."""
    tokenizer = tokenizers[name]
    encoded, alignments = align_words(WORDS, tokenizer, max_length=1000)
    for words, ids, alignment in zip(WORDS, encoded["input_ids"], alignments, strict=True):
        assert ids == tokenizer(" ".join(words))["input_ids"]
        places = [(word, place) for place, word in enumerate(alignment) if word != IGNORE_INDEX]
        found = [word for word, _ in places]
        assert found == [i for i, word in enumerate(words) if i in found]
        assert set(range(len(words))) - set(found) <= {i for i, word in enumerate(words) if word == "\u200b"}
        ends = [*(place for _, place in places[1:]), len(ids) - 1]
        for (word, start), end in zip(places, ends, strict=True):
            text = tokenizer.decode(ids[start:end]).replace(" ", "").replace("##", "")
            assert "[UNK]" in text or text == (words[word].lower() if name == "lowercase" else words[word])


def test_truncated_words_are_outside(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["char"]
    config = tiny_config(vocab_size=len(tokenizer), decoder_layers=0, **tag_facts(TAGS))
    model = TriviumForTokenClassification(config)
    torch.nn.init.constant_(model.classifier.bias, 0)
    model.classifier.bias.data[config.label2id["B-time"]] = 100.0
    tags = predict_tags(model, tokenizer, WORDS, inputs=InputArguments(max_length=8))
    assert tags == [["B-time", "B-time", *["O"] * 4], ["B-time"], ["B-time"] * 2 + ["O"] * 3]
    parts = tiny_config(vocab_size=len(tokenizer), decoder_layers=0, **tag_facts([["NOUN", "VERB"]]))
    tags = predict_tags(
        TriviumForTokenClassification(parts), tokenizer, WORDS[:1], inputs=InputArguments(max_length=2)
    )
    assert tags == [["_"] * 6]


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_match_single_sentences(tokenizers: dict[str, Any], side: str) -> None:
    """Padding, on the left or on the right, changes neither the loss nor the tags."""
    tokenizer: TriviumTokenizer = tokenizers["bpe"]
    tokenizer.padding_side = side
    config = tiny_config(vocab_size=len(tokenizer), decoder_layers=0, **tag_facts(TAGS))
    torch.manual_seed(0)
    model = TriviumForTokenClassification(config).eval()
    torch.nn.init.normal_(model.classifier.weight, std=3)
    rows = encode_rows(ROWS, TASKS["token-classification"], tokenizer, config, InputArguments())
    collate = make_collator(TASKS["token-classification"], tokenizer, model, InputArguments())
    sums = [model(**collate(part), num_items_in_batch=1).loss.item() for part in (rows, *([row] for row in rows))]
    assert sums[0] == pytest.approx(sum(sums[1:]), rel=1e-5)
    alone = [predict_tags(model, tokenizer, [words])[0] for words in WORDS]
    assert predict_tags(model, tokenizer, WORDS) == alone
    assert len({tag for tags in alone for tag in tags}) > 1
    tokenizer.padding_side = "right"


def test_unknown_tags_are_named(tokenizers: dict[str, Any]) -> None:
    config = tiny_config(decoder_layers=0, **tag_facts([["O", "B-animal"]]))
    with pytest.raises(ValueError, match=r"tag 'B-time' is unknown.*training data has only B-animal, O"):
        encode_rows(ROWS, TASKS["token-classification"], tokenizers["bpe"], config, InputArguments())


def test_command_writes_conll_that_training_reads(tokenizers: dict[str, Any], tmp_path: Path) -> None:
    tokenizer, facts = tokenizers["bpe"], tag_facts(TAGS)
    torch.manual_seed(0)
    model = TriviumForTokenClassification(tiny_config(vocab_size=len(tokenizer), decoder_layers=0, **facts)).eval()
    model.save_pretrained(tmp_path / "tagger")
    tokenizer.save_pretrained(tmp_path / "tagger")
    (tmp_path / "in.txt").write_text("\n\n".join("  ".join(words) for words in WORDS), encoding="utf-8")
    arguments = [
        "tag",
        tmp_path / "tagger",
        "-i",
        tmp_path / "in.txt",
        "-o",
        tmp_path / "out.conll",
        "--batch-size",
        2,
    ]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    rows = tagged(tmp_path, (tmp_path / "out.conll").read_text(encoding="utf-8"), "again.conll")
    assert [row["words"] for row in rows] == WORDS
    assert [row["tags"] for row in rows] == predict_tags(model, tokenizer, WORDS)
    result = CliRunner().invoke(app, ["tag", str(tmp_path / "tagger"), WORDS[1][0], ""])
    assert result.stdout == f"{WORDS[1][0]}\t{rows[1]['tags'][0]}\n\n\n"


# --- Metrics ---------------------------------------------------------------------------------------------------------


def test_entities_count_if_type_and_all_words_match() -> None:
    references = [["B-per", "I-per", "O", "B-loc"], ["O", "B-per"]]
    predictions = [["B-per", "I-per", "O", "B-per"], ["B-per", "B-per"]]
    score = load_metric("seqeval").compute(predictions=predictions, references=references)
    precision, recall = 2 / 4, 2 / 3  # two of the four predictions match, out of three references
    assert (score["precision"], score["recall"]) == (pytest.approx(precision), pytest.approx(recall))
    assert score["score"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert score["types"]["loc"]["f1-score"] == 0
    half = load_metric("seqeval").compute(predictions=[["B-per", "O"]], references=[["B-per", "I-per"]])
    assert half["score"] == 0


def test_metrics_follow_from_tags() -> None:
    kind = TASKS["token-classification"]
    assert kind.metrics_for(tiny_config(**tag_facts(TAGS))) == ("seqeval", "accuracy")
    parts = tiny_config(**tag_facts([["NOUN", "VERB"]]))
    assert kind.metrics_for(parts) == ("accuracy",)
    with pytest.raises(ValueError, match=r"'seqeval' does not fit the task\. Choose from accuracy"):
        kind.check_metrics(["seqeval"], parts)
    assert not marks_entities(["O"])


# --- Learning --------------------------------------------------------------------------------------------------------


@pytest.mark.trains
def test_tagger_learns_words_and_scores_match(tmp_path: Path) -> None:
    """Learn to tag uppercase words as entities; the Trainer's scores must equal the evaluator's."""
    words = ["red", "BIG", "cold", "DOGS", "run", "Sing"]
    rows = [[words[i * k % 6] for k in range(1, 3 + i % 4)] for i in range(1, 61)]
    lines = ("\n".join(f"{word}\t{'B-loud' if word.isupper() else 'O'}" for word in row) for row in rows)
    (tmp_path / "train.conll").write_text("\n\n".join(lines))
    path = str(tmp_path / "train.conll")
    recipe = Recipe(
        task="token-classification",
        data=DataArguments(train=path, validation=path),
        tokenizer=TokenizerArguments(vocab_size=280),
        model={
            "preset": "transformer-micro",
            "encoder_layers": 1,
            "d_model": 16,
            "num_attention_heads": 2,
            "dropout": 0,
        },
        training={
            **{"output_dir": str(tmp_path / "run"), "max_steps": 60, "learning_rate": 1e-2, "eval_strategy": "epoch"},
            **{"save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True},
        },
    )
    trainer = train(recipe)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    scores, lines = evaluate(
        trainer.model, tokenizer, load_data(recipe.data, TAGGED_WORDS)["train"], task="token-classification"
    )
    assert scores["seqeval"]["score"] == pytest.approx(trainer.evaluate()["eval_seqeval"]) == 1
    assert scores["accuracy"]["score"] == 1
    assert lines[0] == " ".join("B-loud" if word.isupper() else "O" for word in rows[0])
