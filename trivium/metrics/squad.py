"""Metrics for answers that are spans of a text: exact match and F1 of words, as SQuAD counts them."""

import re
import string
from collections import Counter
from collections.abc import Callable
from typing import Any

from trivium.metrics.scores import TextScore

ARTICLES = re.compile(r"\b(a|an|the)\b")
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(answer: str) -> list[str]:
    """Return the lowercase words of an answer, without ASCII punctuation and English articles."""
    return ARTICLES.sub(" ", answer.lower().translate(WITHOUT_PUNCTUATION)).split()


def exact_match(prediction: str, reference: str) -> float:
    """Return 1 if the normalized answers are equal, else 0."""
    return float(normalize(prediction) == normalize(reference))


def f1(prediction: str, reference: str) -> float:
    """Return the word-level F1 score of the normalized answers; 1 if neither has any words."""
    predicted, expected = normalize(prediction), normalize(reference)
    if not predicted and not expected:
        return 1.0
    shared = (Counter(predicted) & Counter(expected)).total()
    return 2 * shared / (len(predicted) + len(expected))  # harmonic mean of precision and recall


SCORES: dict[str, Callable[[str, str], float]] = {"squad_f1": f1, "squad_exact_match": exact_match}


class AnswerScore(TextScore):
    """Mean score over questions, from 0 to 100, each against its best answer; `config_name` selects the score."""

    def _score(self, predictions: list[str], references: list[list[str]], **options: Any) -> dict[str, Any]:
        score = SCORES[self.config_name]
        best = [
            max(score(prediction, reference) for reference in accepted)
            for prediction, accepted in zip(predictions, references, strict=True)
        ]
        return {"score": 100 * sum(best) / len(best)}
