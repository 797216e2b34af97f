"""Test extractive question answering: windows, answer positions, metrics, learning, and the pipeline."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_config
from transformers import AutoTokenizer, pipeline
from typer.testing import CliRunner

from trivium import TriviumForQuestionAnswering, TriviumTokenizer
from trivium.data import DataArguments, load_data
from trivium.data.columns import QUESTION
from trivium.demo.introspect import read
from trivium.demo.judging import answer
from trivium.evaluation import evaluate, predict_answers
from trivium.hub import render_card
from trivium.metrics import load_metric
from trivium.modeling.pipeline_question_answering import QuestionAnsweringPipeline, best_answers, encode_windows
from trivium.recipe import Recipe
from trivium.recipe_sections import TokenizerArguments
from trivium.tasks import TASKS, InputArguments, encode_rows, make_collator
from trivium.tokenization import train_tokenizer
from trivium.training import train
from trivium_cli import app

ANIMALS = ["cat", "dog", "owl", "cow", "eel"]
FILLERS = ["red", "über", "ran", "the", "one", "two", "🙂", "old"]


def generated(count: int, length: int = 12, seed: int = 0) -> list[dict[str, Any]]:
    """Return questions about texts of random words; the answer is the only animal in the text."""
    generator, rows = random.Random(seed), []
    for _ in range(count):
        words = generator.choices(FILLERS, k=length)
        place, animal = generator.randrange(length), generator.choice(ANIMALS)
        words[place] = animal
        start = len(" ".join(words[:place])) + (place > 0)
        answers = {"text": [animal], "answer_start": [start]}
        rows.append({"question": "Which animal?", "context": " ".join(words), "answers": answers})
    return rows


@pytest.fixture(scope="module")
def tokenizer() -> TriviumTokenizer:
    texts = [f"{row['question']} {row['context']}" for row in generated(50)]
    return train_tokenizer(texts, vocab_size=300, add_bos_token=True, add_eos_token=True)


def questions(tmp_path: Path, rows: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return list(load_data(DataArguments(train=str(tmp_path / "rows.jsonl"), **options), QUESTION)["train"])


# --- Data and metrics ------------------------------------------------------------------------------------------------


def test_rows_of_squad_are_read(tmp_path: Path) -> None:
    rows = generated(3)
    for streaming in (False, True):
        assert questions(tmp_path, [{**row, "id": "7", "title": "x"} for row in rows], streaming=streaming) == rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": {"text": [], "answer_start": []}}, r"line 1: 'answers' is .* at least one answer"),
        ({"answers": "cat"}, r"'answers' is 'cat', but must be \{'text'"),
        ({"answers": {"text": ["cat"], "answer_start": [1]}}, r"the answer 'cat' is not at answer_start 1"),
        ({"answers": {"text": ["a"], "answer_start": [-5]}}, r"the answer 'a' is not at answer_start -5"),
        ({"question": " "}, r"'question' is ' '"),
    ],
)
def test_malformed_questions_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    row = {"question": "Who?", "context": "a cat", "answers": {"text": ["a cat"], "answer_start": [0]}, **change}
    with pytest.raises(ValueError, match=message):
        questions(tmp_path, [row])


def test_scores_ignore_case_punctuation_and_articles() -> None:
    predictions, references = ["the Cat!", "red dog"], [["owl", "a cat"], ["A big red dog."]]
    exact = load_metric("squad_exact_match").compute(predictions=predictions, references=references)
    assert exact["score"] == 50
    f1 = load_metric("squad_f1").compute(predictions=predictions, references=references)
    assert f1["score"] == pytest.approx(100 * (1 + 2 * 2 / 5) / 2)
    assert load_metric("squad_f1").compute(predictions=["the", ""], references=["a", "cat"])["score"] == 50


# --- Windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
def test_windows_cover_the_context_and_mark_the_answer(tokenizer: TriviumTokenizer, side: str) -> None:
    tokenizer.padding_side = side
    rows = generated(5, length=70)
    config = tiny_config(vocab_size=len(tokenizer), decoder_layers=0)
    inputs = InputArguments(max_length=30, stride=6)
    for row in rows:
        windows = encode_windows(tokenizer, row["question"], row["context"], 30, 6)
        encoded = encode_rows([row], TASKS["question-answering"], tokenizer, config, inputs)
        assert len(windows) == len(encoded) > 2
        covered, start = set(), row["answers"]["answer_start"][0]
        for window, example in zip(windows, encoded, strict=True):
            assert len(example["input_ids"]) <= 30
            spans = [
                range(first - 1, last) for first, last in zip(window["starts"], window["ends"], strict=True) if first
            ]
            covered |= {place for span in spans for place in span}
            first, last = example["start_positions"], example["end_positions"]
            found = row["context"][window["starts"][first] - 1 : window["ends"][last]] if first else None
            is_inside = start in {p for span in spans for p in span} and start + 2 in {
                p for span in spans for p in span
            }
            assert found == (row["answers"]["text"][0] if is_inside else None)
        assert {place for place, letter in enumerate(row["context"]) if letter != " "} <= covered
    model = TriviumForQuestionAnswering(config).eval()
    collate = make_collator(TASKS["question-answering"], tokenizer, model, inputs)
    together = model(**collate(encoded))
    for i, example in enumerate(encoded):
        alone = model(**collate([example]))
        torch.testing.assert_close(together.start_logits[i, : example["length"]], alone.start_logits[0])
        assert torch.isfinite(alone.loss)
    tokenizer.padding_side = "right"


def test_questions_without_room_are_refused(tokenizer: TriviumTokenizer) -> None:
    with pytest.raises(ValueError, match=r"stride is 64, but a window of 40 tokens has room for only \d+ tokens"):
        encode_windows(tokenizer, "Which animal?", "a cat", 40, 64)
    assert len(encode_windows(tokenizer, "Which animal?", "a cat " * 20, 40)) > 1
    with pytest.raises(ValueError, match=r"stride is 0, but a window of 3 tokens has room for only 0 tokens"):
        encode_windows(tokenizer, "Which animal?", "a cat", 3)


def test_best_span_over_windows_matches_loop() -> None:
    """Compare with a loop over all spans of two windows; a span in both counts once, with its higher score."""
    torch.manual_seed(0)
    starts = [torch.tensor([0, 1, 3, 5, 0]), torch.tensor([0, 3, 5, 7, 0])]
    windows = [
        {
            "starts": start,
            "ends": torch.where(start > 0, start, 0),
            "start_logits": torch.randn(5),
            "end_logits": torch.randn(5),
        }
        for start in starts
    ]
    context = "a b c d"
    norms = [
        torch.cat([w[n][w["starts"] > 0] for w in windows]).exp().sum().item() for n in ("start_logits", "end_logits")
    ]
    expected: dict[str, float] = {}
    for window in windows:
        for first in range(1, 4):
            for last in range(first, min(first + 2, 4)):
                score = (window["start_logits"][first] + window["end_logits"][last]).exp().item() / norms[0] / norms[1]
                text = context[window["starts"][first] - 1 : window["ends"][last]]
                expected[text] = max(score, expected.get(text, 0))
    found = best_answers(windows, context, top_k=20, max_answer_len=2)
    assert {each["answer"]: each["score"] for each in found} == pytest.approx(expected)
    assert [each["score"] for each in found] == pytest.approx(sorted(expected.values(), reverse=True))
    assert best_answers(windows, context, max_answer_len=2) == found[:1]


# --- Runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.trains
def test_model_learns_to_find_an_answer(tmp_path: Path) -> None:
    questions(tmp_path, generated(200))
    path = str(tmp_path / "rows.jsonl")
    recipe = Recipe(
        task="question-answering",
        data=DataArguments(train=path, validation=path, test=path, max_test_samples=20),
        tokenizer=TokenizerArguments(vocab_size=300),
        inputs=InputArguments(max_length=48, stride=8),
        model={"preset": "transformer-micro", "encoder_layers": 1, "d_model": 32, "dropout": 0, "label_smoothing": 0},
        training={
            **{"output_dir": str(tmp_path / "run"), "max_steps": 80, "learning_rate": 1e-2, "eval_strategy": "epoch"},
            **{"per_device_train_batch_size": 32, "save_strategy": "no", "report_to": "none", "use_cpu": True},
            **{"disable_tqdm": True, "warmup_steps": 10},
        },
    )
    trainer = train(recipe)
    assert any("eval_loss" in entry for entry in trainer.state.log_history)
    folder = tmp_path / "run"
    model, tokenizer = (
        TriviumForQuestionAnswering.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )

    rows = generated(20, length=60, seed=1)  # unseen contexts that span several windows
    scores, predictions = evaluate(model, tokenizer, rows, task="question-answering", inputs=recipe.inputs)
    assert [*scores] == ["squad_f1", "squad_exact_match"]
    assert scores["squad_exact_match"]["score"] >= 80
    assert sum(row["answers"]["text"] == [text] for row, text in zip(rows, predictions, strict=True)) >= 16

    expected = predict_answers(model, tokenizer, rows, inputs=recipe.inputs)
    pipe = pipeline("question-answering", model=str(folder), device="cpu")
    assert type(pipe) is QuestionAnsweringPipeline
    for size in (1, 3):
        found = pipe(rows, batch_size=size, max_seq_len=48, doc_stride=8)
        for one, other in zip(found, expected, strict=True):
            assert one == {**other, "score": pytest.approx(other["score"], abs=1e-5)}
    several = pipe(question=rows[0]["question"], context=rows[0]["context"], top_k=3)
    assert len(several) == 3
    assert json.loads((folder / "config.json").read_text())["custom_pipelines"]["question-answering"]["pt"] == [
        "AutoModelForQuestionAnswering"
    ]
    short = generated(1, seed=2)[0]
    [(text, share)] = answer(model, tokenizer, short["question"], short["context"])[:1]
    assert (text, share) == (pipe(short)["answer"], pytest.approx(pipe(short)["score"], abs=1e-5))

    (tmp_path / "context.txt").write_text(short["context"], encoding="utf-8")
    arguments = ["answer", str(folder), "--context", str(tmp_path / "context.txt"), short["question"], ""]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0].split("\t")[0] == short["answers"]["text"][0]
    assert result.stdout.splitlines()[1] == ""
    result = CliRunner().invoke(app, ["evaluate", str(folder)])
    assert result.exit_code == 0, result.output
    card = render_card(folder)["README.md"].decode()
    assert "exact match (SQuAD)" in card
    assert 'pipeline("question-answering"' in card


def test_invalid_inputs_of_the_pipeline_are_refused(tokenizer: TriviumTokenizer) -> None:
    model = TriviumForQuestionAnswering(tiny_config(vocab_size=len(tokenizer), decoder_layers=0))
    pipe = pipeline("question-answering", model=model, tokenizer=tokenizer, device="cpu")
    for wrong in ("Which animal?", {"question": "Which?"}, {"question": "Which?", "context": " "}):
        with pytest.raises(ValueError, match="must have a question and a context"):
            pipe(wrong)
    with pytest.raises(ValueError, match="handle_impossible_answer is not an argument"):
        pipe({"question": "Which?", "context": "a cat"}, handle_impossible_answer=True)
    with pytest.raises(ValueError, match="tokenizer is None"):
        QuestionAnsweringPipeline(model)
    assert read(model, tokenizer, "Which animal?").input_ids
