"""Scores that need no network: of texts, of labels, and perplexity, as `evaluate` metrics.

`evaluate.load("sacrebleu")` downloads its script from the Hub. Here the scores come straight from the installed
libraries, sacrebleu and scikit-learn, behind the same interface:

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
    """Return a fresh metric, whose result has its figure under `"score"`.

    - `sacrebleu`: BLEU from 0 to 100, cased, on detokenised text, with sacrebleu's 13a tokenizer. The one to publish.
    - `bleu_lower`: BLEU, lowercased and tokenised on both sides, which is what Multi30k papers print. They tokenise
      with Moses; 13a stands in for it, since like Moses, and unlike `intl`, it keeps hyphenated words whole.
    - `chrf`: the character n-gram F-score, from 0 to 100.
    - `ter`: edits for a hundred reference words; lower is better.
    - `exact_match`: the share of predictions, from 0 to 1, that equal one of their references.
    - `accuracy`: the share of labels, from 0 to 1, that are right; where several can hold, of sets of labels.
    - `f1`: the mean over labels of F1, from 0 to 1, each label counting alike (macro average).
    - `mse`, `r2`: the mean squared error of predicted numbers, and the share of the variance that they explain.
    - `perplexity`: exp of the mean negative log likelihood of a token, which is given as `loss`; lower is better.

    The first five take `predictions`, a list of strings, and `references`, a string or a list of strings for each
    prediction. The first four add sacrebleu's `signature` and its other figures (`bp`, `precisions`, ...), and hand
    further arguments of `compute` to its class: `compute(..., tokenize="zh")`. The next four take
    `predictions` and `references` as labels, lists of labels, or numbers. Perplexity takes `nll`, a list of summed
    negative log likelihoods in nats (one for each batch, say), and `num_tokens`, how many tokens each is over.

    Args:
        name: One of `METRICS`.

    Returns:
        The metric. `compute` scores what it is given together with all that `add_batch` has collected.

    Raises:
        ValueError: If there is no metric of this name.
    """
    if name not in METRICS:
        raise ValueError(f"There is no metric {name!r}; choose one of {', '.join(METRICS)}.")
    if name in LABEL_METRICS:
        from .labels import LabelScore  # only now: these libraries take seconds to import

        return LabelScore(name)
    from .scores import Perplexity, TextScore

    return Perplexity() if name == "perplexity" else TextScore(name)


__all__ = ["LABEL_METRICS", "METRICS", "NAME_METRICS", "NUMBER_METRICS", "TEXT_METRICS", "load_metric"]
