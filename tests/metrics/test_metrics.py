import math
import subprocess
import sys
from pathlib import Path

import pytest
from sacrebleu.metrics import BLEU, CHRF, TER

from trivium.metrics import METRICS, load_metric

PREDICTIONS = ["Ein Hund läuft über das Gras.", "Zwei Männer spielen FUSSBALL im Park.", "Ein rot-grüner Ball, oder?"]
REFERENCES = ["Ein Hund rennt über das Gras.", "Zwei Männer spielen Fußball in dem Park.", "Ein rot-grüner Ball!"]
SECOND = ["Ein Hund läuft über das Gras!", None, "Ein rot-grüner Ball, nicht?"]


@pytest.mark.parametrize(
    ("name", "direct"),
    [
        ("sacrebleu", BLEU(tokenize="13a")),
        ("bleu_lower", BLEU(tokenize="13a", lowercase=True)),
        ("chrf", CHRF()),
        ("ter", TER()),
    ],
)
def test_scores_match_sacrebleu(name, direct):
    one = load_metric(name).compute(predictions=PREDICTIONS, references=REFERENCES)
    assert one["score"] == direct.corpus_score(PREDICTIONS, [REFERENCES]).score
    assert one["signature"] == str(direct.get_signature())
    assert one["signature"].startswith("nrefs:1|")

    # The second sentence has one reference; each of the other sentences has two.
    several = [[*texts[:1], *filter(None, texts[1:])] for texts in zip(REFERENCES, SECOND, strict=True)]
    two = load_metric(name).compute(predictions=PREDICTIONS, references=several)
    assert two["score"] == direct.corpus_score(PREDICTIONS, [REFERENCES, SECOND]).score != one["score"]
    assert two["signature"].startswith("nrefs:var|")


def test_cased_and_lowercased_bleu_differ_only_in_case():
    cased, lower = (load_metric(name) for name in ("sacrebleu", "bleu_lower"))
    shouted = [text.upper() for text in REFERENCES]
    assert cased.compute(predictions=shouted, references=REFERENCES)["score"] < 20
    plain = ["Ein Hund rennt.", "Zwei Hunde schlafen."]  # no ß, as uppercasing turns it into SS
    result = lower.compute(predictions=[text.upper() for text in plain], references=plain)
    assert result["score"] == pytest.approx(100)
    assert "|case:lc|" in result["signature"]
    assert "|tok:13a|" in result["signature"]


def test_bleu_by_hand():
    result = load_metric("sacrebleu").compute(predictions=["a b c d e"], references=["a b c d f g"])
    # 4 of 5 unigrams match, 3 of 4 bigrams, 2 of 3 trigrams and 1 of 2 4-grams. The reference is one word longer.
    assert result["precisions"] == pytest.approx([80, 75, 200 / 3, 50])
    assert result["bp"] == pytest.approx(math.exp(1 - 6 / 5))
    assert result["score"] == pytest.approx(100 * math.exp(1 - 6 / 5) * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)


def test_ter_by_hand():
    result = load_metric("ter").compute(predictions=["a b c d"], references=["a b x d e"])
    assert (result["num_edits"], result["ref_length"], result["score"]) == (2, 5, 40)


def test_options_reach_sacrebleu():
    result = load_metric("sacrebleu").compute(predictions=["你好吗"], references=["你好吧"], tokenize="zh")
    assert "|tok:zh|" in result["signature"]
    assert result["totals"][0] == 3


def test_exact_match():
    metric = load_metric("exact_match")
    assert metric.compute(predictions=["a", "b", "c", "D"], references=["a", "x", "c", "d"]) == {"score": 0.5}
    assert metric.compute(predictions=["a", "b"], references=[["x", "a"], ["ab"]]) == {"score": 0.5}


def test_single_label_scores_by_hand():
    predictions, references = ["a", "a", "b", "c"], ["a", "b", "b", "b"]
    assert load_metric("accuracy").compute(predictions=predictions, references=references) == {"score": 0.5}
    # Class a has precision 1/2 and recall 1, class b has precision 1 and recall 1/3, and class c has neither.
    f1 = (2 / 3 + 1 / 2 + 0) / 3
    assert load_metric("f1").compute(predictions=predictions, references=references)["score"] == pytest.approx(f1)


def test_multi_label_scores_by_hand():
    predictions, references = [["a", "b"], [], ["c"]], [["b", "a"], ["a"], ["c", "b"]]
    score = load_metric("accuracy").compute(predictions=predictions, references=references)["score"]
    assert score == pytest.approx(1 / 3)  # a prediction is correct if its set of labels matches exactly
    # Classes a and b have precision 1 and recall 1/2 each, so F1 is 2/3; class c has an F1 of 1.
    score = load_metric("f1").compute(predictions=predictions, references=references)["score"]
    assert score == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert load_metric("f1").compute(predictions=[[], []], references=[["a"], ["b"]])["score"] == 0


def test_regression_scores_by_hand():
    predictions, references = [1.0, 2.5, 3.0], [1.0, 2.0, 4.5]
    score = load_metric("mse").compute(predictions=predictions, references=references)["score"]
    assert score == pytest.approx((0 + 0.25 + 2.25) / 3)
    score = load_metric("r2").compute(predictions=predictions, references=references)["score"]
    assert score == pytest.approx(1 - 2.5 / (1.5**2 + 0.5**2 + 2**2))


def test_perplexity_weights_batches_by_tokens():
    # One token has probability 1/2 and three have 1/8, so the mean NLL is (ln 2 + 3 ln 8) / 4 = 2.5 ln 2.
    result = load_metric("perplexity").compute(nll=[math.log(2), 3 * math.log(8)], num_tokens=[1, 3])
    assert result["score"] == pytest.approx(2**2.5)


def test_perplexity_of_diverged_model_is_infinite():
    assert load_metric("perplexity").compute(nll=[1e6], num_tokens=[1])["score"] == math.inf


def test_batches_accumulate_and_compute_resets():
    metric = load_metric("chrf")
    for prediction, reference in zip(PREDICTIONS, REFERENCES, strict=True):
        metric.add_batch(predictions=[prediction], references=[reference])
    whole = load_metric("chrf").compute(predictions=PREDICTIONS, references=REFERENCES)
    assert metric.compute() == whole
    assert metric.compute(predictions=["a"], references=["a"])["score"] == 100

    perplexity = load_metric("perplexity")
    perplexity.add_batch(nll=[2.0], num_tokens=[1])
    perplexity.add_batch(nll=[4.0], num_tokens=[3])
    assert perplexity.compute()["score"] == pytest.approx(math.exp(6 / 4))


def test_unknown_metric_error_lists_allowed_names():
    with pytest.raises(ValueError, match=r"metric.*'bleu'.*" + ".*".join(METRICS)):
        load_metric("bleu")


@pytest.mark.parametrize(
    ("name", "inputs", "message"),
    [
        ("sacrebleu", {"predictions": [], "references": []}, "predictions.*references.*empty"),
        ("exact_match", {}, "predictions.*references.*empty"),
        ("chrf", {"predictions": ["a", "b"], "references": ["a"]}, "Mismatch"),
        ("accuracy", {"predictions": ["a", "b"], "references": ["a"]}, "Mismatch"),
        ("mse", {"predictions": [], "references": []}, "predictions.*references.*empty"),
        ("ter", {"predictions": ["a", "b"], "references": [["a"], []]}, r"references\[1\].*empty"),
        ("perplexity", {"nll": [0.0], "num_tokens": [0]}, "at least one token"),
        ("perplexity", {"nll": [1.0, 2.0], "num_tokens": [1]}, "Mismatch"),
    ],
)
def test_invalid_inputs_are_refused(name, inputs, message):
    with pytest.raises(ValueError, match=message):
        load_metric(name).compute(**inputs)


def test_import_and_metrics_are_light_and_offline_and_leave_no_files(tmp_path: Path):
    """Run in a new process in which every connection fails; importing Trivium must not import packages for data."""
    script = """
import sys, socket
def refuse(*args, **kwargs):
    raise AssertionError("a connection was opened")
socket.socket.connect = socket.getaddrinfo = refuse
from trivium import *
from trivium.metrics import METRICS, NUMBER_METRICS, load_metric
heavy = {"datasets", "evaluate", "omegaconf", "sacrebleu", "sklearn", "typer"} & set(sys.modules)
assert not heavy, f"importing must be light, but imports {heavy}"
for name in METRICS:
    inputs = dict(predictions=["a", "b"], references=["a", "c"])
    if name == "perplexity":
        inputs = dict(nll=[1.0], num_tokens=[2])
    elif name in NUMBER_METRICS:
        inputs = dict(predictions=[1.0, 2.0], references=[1.0, 3.0])
    elif name == "seqeval":
        inputs = dict(predictions=[["B-a", "O"]], references=[["B-a", "B-b"]])
    metrics = [load_metric(name) for _ in range(2)]
    for metric in metrics:  # Both are open at the same time.
        metric.add_batch(**inputs)
    assert metrics[0].compute() == metrics[1].compute()
"""
    home = {"HF_HOME": str(tmp_path), "HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", script], env=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
