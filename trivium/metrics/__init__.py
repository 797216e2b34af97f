"""Scores that need no network: BLEU, chrF, TER, exact match and perplexity, as `evaluate` metrics.

`evaluate.load("sacrebleu")` downloads its script from the Hub. Here the scores come straight from the installed
sacrebleu library, behind the same interface:

    >>> load_metric("sacrebleu").compute(predictions=["The cat sat down."], references=["The cat sat down."])["score"]
    100.00000000000004
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import evaluate

METRICS = ("sacrebleu", "bleu_lower", "chrf", "ter", "exact_match", "perplexity")


def load_metric(name: str) -> "evaluate.Metric":
    """Return a fresh metric, whose result has its figure under `"score"`.

    - `sacrebleu`: BLEU from 0 to 100, cased, on detokenised text, with sacrebleu's 13a tokenizer. The one to publish.
    - `bleu_lower`: BLEU, lowercased and tokenised on both sides, which is what Multi30k papers print. They tokenise
      with Moses; 13a stands in for it, since like Moses, and unlike `intl`, it keeps hyphenated words whole.
    - `chrf`: the character n-gram F-score, from 0 to 100.
    - `ter`: edits for a hundred reference words; lower is better.
    - `exact_match`: the share of predictions, from 0 to 1, that equal one of their references.
    - `perplexity`: exp of the mean negative log likelihood of a token; lower is better.

    All but the last take `predictions`, a list of strings, and `references`, a string or a list of strings for each
    prediction. The first four add sacrebleu's `signature` and its other figures (`bp`, `precisions`, ...), and hand
    further arguments of `compute` to its class: `compute(..., tokenize="zh")`. Perplexity takes `nll`, a list of
    summed negative log likelihoods in nats (one for each batch, say), and `num_tokens`, how many tokens each is over.

    Args:
        name: One of `METRICS`.

    Returns:
        The metric. `compute` scores what it is given together with all that `add_batch` has collected.

    Raises:
        ValueError: If there is no metric of this name.
    """
    if name not in METRICS:
        raise ValueError(f"There is no metric {name!r}; choose one of {', '.join(METRICS)}.")
    from .scores import Perplexity, TextScore  # only now: `evaluate` takes seconds to import

    return Perplexity() if name == "perplexity" else TextScore(name)


__all__ = ["METRICS", "load_metric"]
