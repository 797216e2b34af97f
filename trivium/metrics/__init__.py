"""Offline metrics for texts, labels, tags and perplexity, with the interface of `evaluate` metrics.

`evaluate.load("sacrebleu")` downloads its script from the Hub. These metrics call the installed libraries, sacrebleu,
rouge-score, scikit-learn and seqeval, directly, behind the same interface:

    >>> load_metric("sacrebleu").compute(predictions=["The cat sat down."], references=["The cat sat down."])["score"]
    100.00000000000004
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import evaluate

TEXT_METRICS = ("sacrebleu", "chrf", "bleu_lower", "ter", "exact_match")
ROUGE_METRICS = ("rougeL", "rouge2", "rouge1")
ANSWER_METRICS = ("squad_f1", "squad_exact_match")
NAME_METRICS = ("accuracy", "f1")
NUMBER_METRICS = ("mse", "r2")
LABEL_METRICS = (*NAME_METRICS, *NUMBER_METRICS)
TAG_METRICS = ("seqeval", "accuracy")
METRICS = (*TEXT_METRICS, *ROUGE_METRICS, *ANSWER_METRICS, *LABEL_METRICS, "seqeval", "perplexity")


def load_metric(name: str) -> "evaluate.Metric":
    """Return a new metric. The main value of its result has the key `"score"`.

    - `sacrebleu`: BLEU from 0 to 100, cased, on detokenized text, with sacrebleu's 13a tokenizer. This is the metric
      to report.
    - `bleu_lower`: BLEU, lowercased and tokenized on both sides, as reported in Multi30k papers. These papers tokenize
      with Moses; 13a is close to it because both, unlike `intl`, keep hyphenated words whole.
    - `chrf`: the character n-gram F-score, from 0 to 100.
    - `ter`: the translation edit rate, in edits per 100 reference words; lower is better.
    - `exact_match`: the fraction of predictions, from 0 to 1, that equal one of their references.
    - `rouge1`, `rouge2`, `rougeL`: the F1 score of words, of pairs of words, and of the longest common subsequence,
      from 0 to 100, with stemming; averaged over texts, with the best reference for each. rouge-score's words consist
      of ASCII letters and digits, so these metrics are for English.
    - `squad_f1`, `squad_exact_match`: the F1 score of words, and exact match, from 0 to 100, as in SQuAD: ignoring
      case, ASCII punctuation and English articles; averaged over questions, with the best reference for each.
    - `accuracy`: the fraction of correct labels, from 0 to 1; for multi-label tasks, of exactly matching label sets.
    - `f1`: the macro-averaged F1 score, from 0 to 1: the unweighted mean over labels.
    - `seqeval`: the micro-averaged F1 score of entities, from 0 to 1, as in the CoNLL-2003 script: an entity is
      correct if its type and all of its words are.
    - `mse`, `r2`: the mean squared error of predicted numbers, and the fraction of variance explained.
    - `perplexity`: the exponential of the mean negative log-likelihood per token; the latter is returned as `loss`;
      lower is better.

    The first ten take `predictions`, a list of strings, and `references`, a string or a list of strings for each
    prediction. The first four add sacrebleu's `signature` and its secondary figures (`bp`, `precisions`, ...), and
    pass further arguments of `compute` to its class: `compute(..., tokenize="zh")`. The next four take
    `predictions` and `references` as labels, lists of labels, or numbers. `seqeval` takes a list of tags, such as
    `B-person`, for each sentence, and adds precision, recall and the scores of each type of entity. Perplexity takes
    `nll`, a list of summed negative log-likelihoods in nats (such as one per batch), and `num_tokens`, the number of
    tokens in each sum.

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
    if name in ROUGE_METRICS:
        from .rouge import RougeScore

        return RougeScore(name)
    if name in ANSWER_METRICS:
        from .squad import AnswerScore

        return AnswerScore(name)
    if name == "seqeval":
        from .tags import EntityScore

        return EntityScore()
    from .scores import Perplexity, TextScore

    return Perplexity() if name == "perplexity" else TextScore(name)


__all__ = [
    "ANSWER_METRICS",
    "LABEL_METRICS",
    "METRICS",
    "NAME_METRICS",
    "NUMBER_METRICS",
    "ROUGE_METRICS",
    "TAG_METRICS",
    "TEXT_METRICS",
    "load_metric",
]
