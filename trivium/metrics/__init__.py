"""Offline metrics for texts, labels and perplexity, with the interface of `evaluate` metrics.

`evaluate.load("sacrebleu")` downloads its script from the Hub. These metrics call the installed libraries, sacrebleu
and scikit-learn, directly, behind the same interface:

    >>> load_metric("sacrebleu").compute(predictions=["The cat sat down."], references=["The cat sat down."])["score"]
    100.00000000000004
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import evaluate

TEXT_METRICS = ("sacrebleu", "chrf", "bleu_lower", "ter", "exact_match")
NAME_METRICS = ("accuracy", "f1")
NUMBER_METRICS = ("mse", "r2")
LABEL_METRICS = (*NAME_METRICS, *NUMBER_METRICS)
METRICS = (*TEXT_METRICS, *LABEL_METRICS, "perplexity")


def load_metric(name: str) -> "evaluate.Metric":
    """Return a new metric. The main value of its result has the key `"score"`.

    - `sacrebleu`: BLEU from 0 to 100, cased, on detokenized text, with sacrebleu's 13a tokenizer. Report this one.
    - `bleu_lower`: BLEU, lowercased and tokenized on both sides, as reported in Multi30k papers. These papers tokenize
      with Moses; 13a is close to it because both, unlike `intl`, keep hyphenated words whole.
    - `chrf`: the character n-gram F-score, from 0 to 100.
    - `ter`: the translation edit rate, in edits per 100 reference words; lower is better.
    - `exact_match`: the fraction of predictions, from 0 to 1, that equal one of their references.
    - `accuracy`: the fraction of correct labels, from 0 to 1; for multi-label tasks, of exactly matching label sets.
    - `f1`: the macro-averaged F1 score, from 0 to 1: the unweighted mean over labels.
    - `mse`, `r2`: the mean squared error of predicted numbers, and the fraction of variance explained.
    - `perplexity`: the exponential of the mean negative log-likelihood per token; the latter is returned as `loss`;
      lower is better.

    The first five take `predictions`, a list of strings, and `references`, a string or a list of strings for each
    prediction. The first four add sacrebleu's `signature` and its secondary figures (`bp`, `precisions`, ...), and
    pass further arguments of `compute` to its class: `compute(..., tokenize="zh")`. The next four take
    `predictions` and `references` as labels, lists of labels, or numbers. Perplexity takes `nll`, a list of summed
    negative log-likelihoods in nats (such as one per batch), and `num_tokens`, the number of tokens in each sum.

    Args:
        name: One of `METRICS`.

    Returns:
        The metric. `compute` scores its arguments together with the examples collected by `add_batch`.

    Raises:
        ValueError: There is no metric of this name.
    """
    if name not in METRICS:
        raise ValueError(f"metric is {name!r}, but must be one of {', '.join(METRICS)}.")
    if name in LABEL_METRICS:
        from .labels import LabelScore  # deferred: these libraries take seconds to import

        return LabelScore(name)
    from .scores import Perplexity, TextScore

    return Perplexity() if name == "perplexity" else TextScore(name)


__all__ = ["LABEL_METRICS", "METRICS", "NAME_METRICS", "NUMBER_METRICS", "TEXT_METRICS", "load_metric"]
