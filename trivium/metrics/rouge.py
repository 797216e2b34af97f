"""ROUGE for summaries: Google's rouge-score behind the `evaluate` interface."""

from importlib.metadata import version
from typing import Any

from rouge_score.rouge_scorer import RougeScorer

from trivium.metrics.scores import TextScore


class RougeScore(TextScore):
    """Mean F1 of the n-grams or of the longest common subsequence; `config_name` selects the score.

    Words are stemmed, as in published figures. A text with several references gets its best score over them.
    """

    def _score(self, predictions: list[str], references: list[list[str]], **options: Any) -> dict[str, Any]:
        scorer = RougeScorer([self.config_name], use_stemmer=True)
        scores = [
            scorer.score_multi(accepted, prediction)[self.config_name]
            for prediction, accepted in zip(predictions, references, strict=True)
        ]
        means = {
            name: 100 * sum(score) / len(scores)
            for name, score in zip(("precision", "recall", "score"), zip(*scores, strict=True), strict=True)
        }
        return {**means, "signature": f"refs:best|stemmer:yes|rouge-score:{version('rouge-score')}"}
