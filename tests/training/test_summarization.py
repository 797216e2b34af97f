"""Test summarization: documents with several references, ROUGE, the model card, and the command."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_config
from transformers import AutoTokenizer, pipeline
from typer.testing import CliRunner

from trivium import TriviumConfig, TriviumForConditionalGeneration
from trivium.data import DataArguments, load_data
from trivium.data.columns import DOCUMENT
from trivium.demo.page import SUMMARIZE, _labels_of
from trivium.evaluation import evaluate
from trivium.hub import render_card
from trivium.hub.usage import usage_of
from trivium.metrics import ROUGE_METRICS, load_metric
from trivium.recipe import Recipe
from trivium.recipe_sections import TokenizerArguments
from trivium.tokenization import train_tokenizer
from trivium.training import train
from trivium_cli import app

WORDS = ["cats", "dogs", "birds", "cows", "pigs", "fish"]
ROWS = [
    {"source": [f"Some {word} ran.", f"The {word} slept."], "target": [f"{word} ran", f"{word} slept"]}
    for word in WORDS * 4
]


def documents(tmp_path: Path, rows: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = DataArguments(train=str(tmp_path / "rows.jsonl"), source="source", target="target", **options)
    return list(load_data(arguments, DOCUMENT)["train"])


# --- Data and metrics ------------------------------------------------------------------------------------------------


def test_sentences_are_joined_and_references_kept(tmp_path: Path) -> None:
    rows = [ROWS[0], {"source": "One text.", "target": "text"}]
    for streaming in (False, True):
        assert documents(tmp_path, rows, streaming=streaming) == [
            {"document": "Some cats ran. The cats slept.", "references": ["cats ran", "cats slept"]},
            {"document": "One text.", "references": ["text"]},
        ]
    for ending, line in (("source", "One text."), ("target", "text")):
        (tmp_path / f"plain.{ending}").write_text(f"{line}\n")
    arguments = DataArguments(train=str(tmp_path / "plain"), source="source", target="target")
    assert list(load_data(arguments, DOCUMENT)["train"]) == [{"document": "One text.", "references": ["text"]}]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"source": [" "], "target": "a"}, r"line 1: 'source' is \[' '\].* not blank"),
        ({"source": [1], "target": "a"}, r"'source' is \[1\].* list of sentences"),
        ({"source": "a", "target": []}, r"'target' is \[\].* list of texts"),
        ({"source": "a", "target": ["b", ""]}, r"'target' is \['b', ''\].* none of them blank"),
        ({"source": "a"}, r"no column 'target'.* set data\.source and data\.target"),
    ],
)
def test_malformed_documents_are_refused(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        documents(tmp_path, [row])


def test_rouge_takes_the_best_reference() -> None:
    """Compare with values computed by hand: the second reference shares "the cat" with "the cat ran"."""
    predictions, references = ["The cat ran", "none"], [["cats", "the small cat sat"], ["of it"]]
    expected = {"rouge1": 2 / 7 * 2, "rouge2": 0.0, "rougeL": 2 / 7 * 2}  # F1 with precision 2/3 and recall 2/4
    for name in ROUGE_METRICS:
        score = load_metric(name).compute(predictions=predictions, references=references)
        assert score["score"] == pytest.approx(100 * expected[name] / 2)
        assert score["signature"].startswith("refs:best|stemmer:yes|rouge-score:")
    stemmed = load_metric("rouge2").compute(predictions=["running cats"], references=["run cat"])
    assert stemmed["score"] == 100


def test_command_generates_as_translate_does(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(WORDS * 2, vocab_size=290)
    config = tiny_config(vocab_size=len(tokenizer), seq2seq_task="summarization")
    TriviumForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    outputs = [
        CliRunner().invoke(app, [command, str(tmp_path), "cats and dogs", "", "fish", "--beams", "2"]).stdout
        for command in ("summarize", "translate")
    ]
    assert outputs[0] == outputs[1]
    assert outputs[0].count("\n") == 3
    assert [*json.loads((tmp_path / "config.json").read_text())["custom_pipelines"]] == ["summarization"]
    assert usage_of(TriviumConfig.from_pretrained(tmp_path)).command == "summarize"


# --- Runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.trains
def test_summarizer_learns_the_first_reference(tmp_path: Path) -> None:
    documents(tmp_path, ROWS)
    path = str(tmp_path / "rows.jsonl")
    recipe = Recipe(
        task="summarization",
        data=DataArguments(train=path, validation=path, test=path, source="source", target="target"),
        tokenizer=TokenizerArguments(vocab_size=330),
        model={"preset": "transformer-micro", "encoder_layers": 1, "decoder_layers": 1, "d_model": 32, "dropout": 0},
        training={
            **{"output_dir": str(tmp_path / "run"), "max_steps": 120, "learning_rate": 1e-2, "warmup_steps": 10},
            **{"eval_strategy": "epoch", "predict_with_generate": True, "per_device_train_batch_size": 24},
            **{"eval_strategy": "steps", "eval_steps": 120},
            **{"save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True},
        },
        metrics=["rougeL", "perplexity"],
    )
    trainer = train(recipe)
    assert trainer.state.log_history[-2]["eval_rougeL"] == 100
    folder = tmp_path / "run"
    model, tokenizer = TriviumForConditionalGeneration.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    rows = list(load_data(recipe.data, DOCUMENT)["test"])
    scores, predictions = evaluate(model, tokenizer, rows, recipe.metrics, task="summarization")
    assert predictions == [row["target"][0] for row in ROWS]
    assert scores["rougeL"]["score"] == 100
    assert scores["perplexity"]["score"] < 1.5
    pipe = pipeline("summarization", model=model, tokenizer=tokenizer, device="cpu")
    assert pipe(rows[1]["document"]) == [{"summary_text": "dogs ran"}]

    result = CliRunner().invoke(app, ["summarize", str(folder), rows[0]["document"], rows[1]["document"]])
    assert result.stdout == "cats ran\ndogs ran\n"
    card = render_card(folder)["README.md"].decode()
    assert "pipeline_tag: summarization" in card
    assert 'pipeline("summarization"' in card
    assert "trivium summarize run" in card
    assert [*json.loads((folder / "config.json").read_text())["custom_pipelines"]] == ["summarization"]
    assert _labels_of(model) is SUMMARIZE
