"""Compare the evaluator with naive loops over single tokens or texts, for all tasks."""

import math
from typing import Any

import pytest
import torch
from tiny import shake, tiny_config, tiny_model
from transformers import PreTrainedModel

from trivium import (
    TriviumForCausalLM,
    TriviumForConditionalGeneration,
    TriviumForMaskedLM,
    TriviumForSequenceClassification,
    TriviumTokenizer,
)
from trivium.evaluation import evaluate
from trivium.modeling.loss import IGNORE_INDEX
from trivium.tasks import TASKS, InputArguments, encode_rows, label_facts, make_collator
from trivium.tokenization import train_tokenizer

pytestmark = pytest.mark.usefixtures("seeded")

TEXTS = ["one", "two dogs ran across the road and never came back to the house", "three cats", "birds fly south"]
ROWS = [{"text": text} for text in TEXTS]


@pytest.fixture(scope="module")
def tokenizer() -> TriviumTokenizer:
    return train_tokenizer(TEXTS * 2, vocab_size=280, add_bos_token=True, add_eos_token=False)


@pytest.fixture(scope="module")
def both_ends() -> TriviumTokenizer:
    return train_tokenizer(TEXTS * 2, vocab_size=280, add_bos_token=True, add_eos_token=True)


def model_with(model_class: Any, tokenizer: TriviumTokenizer, **options: Any) -> Any:
    return tiny_model(model_class, vocab_size=len(tokenizer), **options)


# --- Language models -------------------------------------------------------------------------------------------------


@torch.no_grad()
def token_by_token(model: PreTrainedModel, tokenizer: TriviumTokenizer, limit: int) -> tuple[float, float]:
    """Compute perplexity and accuracy, predicting each token from its prefix within a chunk of `limit` tokens."""
    total, right, count = 0.0, 0, 0
    for text in TEXTS:
        ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        for place in range(1, len(ids)):
            start = (place - 1) // limit * limit
            logits = model(torch.tensor([ids[start:place]])).logits[0, -1]
            total -= logits.log_softmax(-1)[ids[place]].item()
            right += int(logits.argmax() == ids[place])
            count += 1
    return math.exp(total / count), right / count


@pytest.mark.parametrize("max_length", [3, 10, 60])
def test_perplexity_matches_token_by_token_loop(tokenizer: TriviumTokenizer, max_length: int) -> None:
    model = model_with(TriviumForCausalLM, tokenizer, encoder_layers=0, label_smoothing=0.3).train()
    expected = token_by_token(model.eval(), tokenizer, max_length)
    for batch_size in (1, 3, 64):
        for packing in (False, True):
            inputs = InputArguments(max_length=max_length, packing=packing)
            scores, predictions = evaluate(
                model.train(), tokenizer, ROWS, task="causal-lm", inputs=inputs, batch_size=batch_size
            )
            assert list(scores) == ["perplexity", "accuracy"]
            assert (scores["perplexity"]["score"], scores["accuracy"]["score"]) == pytest.approx(expected, rel=1e-9)
            assert predictions == []


def test_texts_are_truncated_at_learned_positions(tokenizer: TriviumTokenizer) -> None:
    learned: dict[str, Any] = {"position_embedding_type": "learned", "max_position_embeddings": 8}
    model = model_with(TriviumForCausalLM, tokenizer, encoder_layers=0, **learned)
    scores, _ = evaluate(model, tokenizer, ROWS, ["perplexity"], task="causal-lm")
    assert scores["perplexity"]["score"] == pytest.approx(token_by_token(model, tokenizer, 8)[0], rel=1e-9)


@pytest.mark.parametrize("whole", [False, True], ids=["tokens", "words"])
def test_masked_tokens_are_the_same_in_every_evaluation(both_ends: TriviumTokenizer, whole: bool) -> None:
    model = model_with(TriviumForMaskedLM, both_ends, decoder_layers=0, label_smoothing=0.3)
    inputs = InputArguments(mlm_probability=0.4, whole_word_mask=whole)
    kind = TASKS["masked-lm"]
    rows = encode_rows(ROWS, kind, both_ends, model.config, inputs)
    rows = sorted(rows, key=lambda row: -len(row["input_ids"]))
    total, right, count = 0.0, 0, 0
    for start in (0, 3):
        batch = make_collator(kind, both_ends, model, inputs)(rows[start : start + 3])
        for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
            with torch.no_grad():
                likelihoods = model(ids[mask > 0][None]).logits[0].log_softmax(-1)
            for place in range(int(mask.sum())):
                if labels[place] != IGNORE_INDEX:
                    total -= likelihoods[place, labels[place]].item()
                    right += int(likelihoods[place].argmax() == labels[place])
                    count += 1
    for _ in range(2):
        torch.rand(1)
        scores, predictions = evaluate(model.train(), both_ends, ROWS, task="masked-lm", inputs=inputs, batch_size=3)
        assert scores["perplexity"]["score"] == pytest.approx(math.exp(total / count), rel=1e-9)
        assert scores["accuracy"]["score"] == pytest.approx(right / count)
        assert predictions == []


# --- Generated texts -------------------------------------------------------------------------------------------------


def learn(model: PreTrainedModel, batch: dict[str, Any], steps: int, rate: float = 3e-3) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    model.train()
    for _ in range(steps):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


CAPITALS = [("cats", "one"), ("two dogs", " birds fly"), ("house", "south"), ("never", "three cats")]
PAIRS = [{"source": source, "target": target} for source, target in CAPITALS]
PROMPT = InputArguments(prompt="of {source}:")


@pytest.fixture(scope="module", params=[pytest.param("sinusoidal", marks=pytest.mark.slow), "learned"])
def completer(request: pytest.FixtureRequest, tokenizer: TriviumTokenizer) -> PreTrainedModel:
    """Return a model that memorized four answers, and has too few positions to generate 50 more tokens."""
    config = tiny_config(
        vocab_size=len(tokenizer),
        encoder_layers=0,
        position_embedding_type=request.param,
        max_position_embeddings=26,
        label_smoothing=0.1,
    )
    model = TriviumForCausalLM(config)
    rows = encode_rows(PAIRS, TASKS["completion"], tokenizer, config, PROMPT)
    learn(model, make_collator(TASKS["completion"], tokenizer, model, PROMPT)(rows), steps=150)
    return model


@pytest.mark.parametrize("batch_size", [1, 3])
def test_completions_exclude_the_prompt(
    completer: PreTrainedModel, tokenizer: TriviumTokenizer, batch_size: int
) -> None:
    rows = [*PAIRS, {"source": "cats", "target": "two"}]
    scores, predictions = evaluate(
        completer, tokenizer, rows, ["exact_match"], task="completion", inputs=PROMPT, batch_size=batch_size
    )
    assert predictions == [*(target for _, target in CAPITALS), "one"]
    assert scores == {"exact_match": {"score": 0.8}}
    assert list(evaluate(completer, tokenizer, PAIRS, task="completion", inputs=PROMPT)[0]) == ["sacrebleu", "chrf"]


def test_completion_perplexity_covers_answers_only(completer: PreTrainedModel, tokenizer: TriviumTokenizer) -> None:
    total, count = 0.0, 0
    for source, target in CAPITALS:
        prompt = tokenizer(f"of {source}:")["input_ids"]
        answer = [*tokenizer(target, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            likelihoods = completer.eval()(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        for place, token in enumerate(answer, start=len(prompt)):
            total -= likelihoods[place - 1, token].item()
            count += 1
    scores, _ = evaluate(
        completer.train(), tokenizer, PAIRS, ["perplexity"], task="completion", inputs=PROMPT, batch_size=3
    )
    assert scores["perplexity"]["score"] == pytest.approx(math.exp(total / count), rel=1e-5)


def test_generation_without_eos_stops_at_last_position(tokenizer: TriviumTokenizer) -> None:
    learned: dict[str, Any] = {"position_embedding_type": "learned", "max_position_embeddings": 20}
    model = model_with(TriviumForCausalLM, tokenizer, encoder_layers=0, **learned)
    _, predictions = evaluate(model, tokenizer, PAIRS[:1], ["chrf"], task="completion", min_length=20)
    assert len(predictions) == 1


def test_generation_options_reach_generate(completer: PreTrainedModel, tokenizer: TriviumTokenizer) -> None:
    _, predictions = evaluate(
        completer, tokenizer, PAIRS[3:], ["chrf"], task="completion", inputs=PROMPT, max_new_tokens=1, max_length=None
    )
    assert len(tokenizer(predictions, add_special_tokens=False)["input_ids"][0]) == 1
    assert CAPITALS[3][1].startswith(predictions[0])


# --- Labels ----------------------------------------------------------------------------------------------------------


def labeled(labels: list[Any]) -> list[dict[str, Any]]:
    return [{"text": text, "label": label} for text, label in zip(TEXTS, labels, strict=True)]


@pytest.mark.parametrize(
    ("labels", "metrics"),
    [
        (["b", "a", "b", "c"], ["accuracy", "f1"]),
        ([["b"], ["a", "c"], ["b", "a"], ["c"]], ["accuracy", "f1"]),
        ([0.5, 1.5, -1.0, 2.0], ["mse", "r2"]),
    ],
    ids=["one", "several", "number"],
)
def test_label_metrics_match_single_text_loop(
    both_ends: TriviumTokenizer, labels: list[Any], metrics: list[str]
) -> None:
    facts = label_facts(labels)
    model = model_with(TriviumForSequenceClassification, both_ends, decoder_layers=0, dropout=0.3, **facts)
    shake(model.classifier, std=1.0)
    expected: list[Any] = []
    for text in TEXTS:
        with torch.no_grad():
            logits = model.eval()(**both_ends(text, return_tensors="pt")).logits[0]
        if facts["problem_type"] == "regression":
            expected.append(logits.item())
        elif facts["problem_type"] == "multi_label_classification":
            expected.append([name for i, name in enumerate("abc") if logits[i] > 0])
        else:
            expected.append("abc"[int(logits.argmax())])
    for batch_size in (1, 3):
        scores, predictions = evaluate(
            model.train(), both_ends, labeled(labels), task="classification", batch_size=batch_size
        )
        assert list(scores) == metrics
        if metrics == ["mse", "r2"]:
            assert [float(prediction) for prediction in predictions] == pytest.approx(expected)
            squares = [(x - y) ** 2 for x, y in zip(expected, labels, strict=True)]
            mean = sum(labels) / 4
            assert scores["mse"]["score"] == pytest.approx(sum(squares) / 4)
            assert scores["r2"]["score"] == pytest.approx(1 - sum(squares) / sum((y - mean) ** 2 for y in labels))
        else:
            assert predictions == [" ".join(prediction) for prediction in expected]
            hits = sum(sorted(x) == sorted(y) for x, y in zip(expected, labels, strict=True))
            assert scores["accuracy"]["score"] == hits / 4


# --- Errors before any computation -----------------------------------------------------------------------------------


class Untouchable:
    """Tokenizer that fails the test if it is called."""


@pytest.mark.parametrize(
    ("task", "metrics", "message"),
    [
        ("classification", ["accuracy", "mse"], r"'mse' does not fit.*accuracy, f1\."),
        ("classification", ["perplexity"], "'perplexity' does not fit"),
        ("causal-lm", ["sacrebleu"], "'sacrebleu' does not fit.*perplexity, accuracy"),
        ("translation", ["accuracy"], "'accuracy' does not fit.*sacrebleu"),
        ("completion", ["blue"], "'blue' does not fit.*sacrebleu"),
        ("summary", None, "task is 'summary', but must be one of translation, .*completion"),
    ],
)
def test_mismatches_are_refused_before_any_computation(task: str, metrics: list[str] | None, message: str) -> None:
    model = TriviumForConditionalGeneration(tiny_config(encoder_layers=1, decoder_layers=1))
    with pytest.raises(ValueError, match=message):
        evaluate(model, Untouchable(), ROWS, metrics, task=task)


def test_unknown_labels_and_empty_input_are_refused(both_ends: TriviumTokenizer) -> None:
    model = model_with(TriviumForSequenceClassification, both_ends, decoder_layers=0, **label_facts(["a", "b"]))
    with pytest.raises(ValueError, match=r"label 'c'.*unknown"):
        evaluate(model, both_ends, labeled(["a", "b", "b", "c"]), task="classification")
    for task in ("classification", "causal-lm"):
        with pytest.raises(ValueError, match=r"rows.*empty"):
            evaluate(model, both_ends, [], task=task)
