"""Metrics behind `load_metric`: one class for text comparison, one for perplexity."""

import math
from collections.abc import Callable
from functools import partial
from itertools import zip_longest
from typing import Any

import evaluate
from datasets import Features, List, Value
from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.metrics.base import Metric


def sacrebleu_score(
    metric: type[Metric], predictions: list[str], references: list[list[str]], **options: Any
) -> dict[str, Any]:
    """Score a corpus with a sacrebleu class; return its public fields and its signature."""
    scorer = metric(**options)
    # sacrebleu takes references transposed: the first of all sentences, then the second; None pads missing ones.
    score = scorer.corpus_score(predictions, list(zip_longest(*references)))
    figures = {name: figure for name, figure in vars(score).items() if not name.startswith("_")}
    return {**figures, "signature": str(scorer.get_signature())}


def exact_match(predictions: list[str], references: list[list[str]]) -> dict[str, Any]:
    """Return the fraction of predictions that equal one of their references."""
    hits = sum(prediction in accepted for prediction, accepted in zip(predictions, references, strict=True))
    return {"score": hits / len(predictions)}


SCORES: dict[str, Callable[..., dict[str, Any]]] = {
    "sacrebleu": partial(sacrebleu_score, BLEU),
    "bleu_lower": partial(sacrebleu_score, BLEU, lowercase=True),
    "chrf": partial(sacrebleu_score, CHRF),
    "ter": partial(sacrebleu_score, TER),
    "exact_match": exact_match,
}


class OfflineMetric(evaluate.Metric):
    """`evaluate` metric that keeps its data in memory, so that processes do not share a cache file.

    Args:
        config_name: Name of the score to compute, if the class has several.
    """

    def __init__(self, config_name: str | None = None) -> None:
        super().__init__(config_name, keep_in_memory=True)

    def compute(self, **inputs: Any) -> dict[str, Any]:
        """Score these inputs together with those collected by `add` and `add_batch`.

        Raises:
            ValueError: There is nothing to score, or the inputs do not match.
        """
        columns = [inputs.get(name) for name in self._feature_names()]
        if len(self) == 0 and all(column is None or len(column) == 0 for column in columns):
            raise ValueError(f"{' and '.join(self._feature_names())} are empty, but must have at least one example.")
        return super().compute(**inputs)


class TextScore(OfflineMetric):
    """Metric for predicted texts with one or more references each; `config_name` is a key of `SCORES`."""

    def _info(self) -> evaluate.MetricInfo:
        shapes = (List(Value("string")), Value("string"))
        return evaluate.MetricInfo(
            description=f"{self.config_name}, computed offline",
            citation="",
            inputs_description="predictions: list of strings; references: list of strings, or of lists of strings.",
            features=[Features(predictions=Value("string"), references=references) for references in shapes],
        )

    def _compute(
        self, predictions: list[str], references: list[str] | list[list[str]], **options: Any
    ) -> dict[str, Any]:
        accepted = [[texts] if isinstance(texts, str) else texts for texts in references]
        if not all(accepted):
            raise ValueError(f"references[{accepted.index([])}] is empty, but must have at least one text.")
        return SCORES[self.config_name](predictions, accepted, **options)


class Perplexity(OfflineMetric):
    """Exponential of the mean negative log-likelihood per token, from sums over batches of any size."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="perplexity, from summed negative log-likelihoods",
            citation="",
            inputs_description="nll: list of sums in nats; num_tokens: number of tokens in each sum.",
            features=Features(nll=Value("float64"), num_tokens=Value("int64")),
        )

    def _compute(self, nll: list[float], num_tokens: list[int]) -> dict[str, Any]:
        if sum(num_tokens) == 0:
            raise ValueError("num_tokens sums to 0, but perplexity needs at least one token.")
        mean = sum(nll) / sum(num_tokens)
        try:
            return {"score": math.exp(mean), "loss": mean}
        except OverflowError:  # a diverged model: report infinity instead of failing
            return {"score": math.inf, "loss": mean}
